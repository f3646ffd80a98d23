//! The losses on a GPU: chunks of logits in 32-bit floats, their gradients in the type of the activations.

use super::{Clip, Divergence, Grads, TokenStats};
use crate::cuda::{Arg, Cuda};
use crate::ops::linear::cuda::{accumulate, project, unproject};
use crate::{Device, Dtype, Tensor, Write, check};

/// Logits in memory at once, in numbers: 320 MiB of them.
const NUMBERS: usize = 80 << 20;

/// Which loss, with what it alone needs.
pub(super) enum Loss<'a> {
    LogProbs,
    CrossEntropy,
    Distill { kind: Divergence, top_k: Option<usize>, teacher_log_prob: &'a mut Vec<f32> },
    PolicyGradient { clip: Clip, old_log_prob: &'a [f32], advantage: &'a [f32] },
}

/// `[n, vocab]`, 32-bit floats.
pub(super) fn logits(gpu: &'static Cuda, out: &mut Tensor, hidden: &Tensor, head: &Tensor) {
    check::shape("loss::logits", "head", head, head.rows(), hidden.cols());
    out.place_on(Device::Cuda(gpu), Dtype::F32, hidden.rows(), head.rows());
    let (to, from) = ((out.pointer(), Dtype::F32), (hidden.pointer(), hidden.dtype()));
    project(gpu, to, None, from, hidden.rows(), head, None, 1.0);
}

/// Where the rows of a matrix begin.
fn rows_at(tensor: &Tensor, first: usize) -> (u64, Dtype) {
    (tensor.pointer() + (first * tensor.cols() * tensor.dtype().size()) as u64, tensor.dtype())
}

/// Fills `stats` and the gradients.
#[allow(clippy::too_many_arguments)]
pub(super) fn run(
    gpu: &'static Cuda,
    stats: &mut TokenStats,
    hidden: &Tensor,
    head: &Tensor,
    other: Option<(&Tensor, &Tensor)>,
    targets: &[u32],
    weights: Option<&[f32]>,
    mut loss: Loss,
    mut grads: Option<Grads>,
) {
    let (rows, width, vocab) = (hidden.rows(), hidden.cols(), head.rows());
    let slope = grads.is_some();
    if let Some(grads) = &mut grads {
        grads.dhidden.place(hidden, rows, width);
        if let Some(dhead) = &grads.dhead {
            check::same("loss", "dhead", dhead, "head", head);
        }
    }
    let chunk = (NUMBERS / vocab.max(1)).next_multiple_of(64).min(rows.max(1));
    let size = chunk * vocab * 4;
    let ours = gpu.scratch("logits", size);
    let theirs = if other.is_some() { gpu.scratch("other logits", size) } else { 0 };
    let dtype = hidden.dtype();
    let slopes = match (slope, dtype) {
        (false, _) => 0,
        (true, Dtype::F32) => ours,
        (true, Dtype::Bf16) => gpu.scratch("slopes", chunk * vocab * 2),
    };
    let out = gpu.scratch("loss results", 5 * rows * 4);
    let teachers = out + (4 * rows * 4) as u64;
    let targets = gpu.list(targets);
    let weights = weights.map_or(0, |weights| gpu.list(weights));
    // Lists are sent once, before the chunks.
    let lists = match &loss {
        Loss::PolicyGradient { old_log_prob, advantage, .. } => [gpu.list(old_log_prob), gpu.list(advantage)],
        _ => [0, 0],
    };
    for first in (0..rows).step_by(chunk) {
        let count = chunk.min(rows - first);
        project(gpu, (ours, Dtype::F32), None, rows_at(hidden, first), count, head, None, 1.0);
        if let Some((hidden, head)) = other {
            project(gpu, (theirs, Dtype::F32), None, rows_at(hidden, first), count, head, None, 1.0);
        }
        let (name, args): (_, Vec<Arg>) =
            arguments(&loss, [slopes, ours, theirs, out, teachers, targets, weights], lists);
        let tail = [vocab, first, rows].map(Arg::from);
        let last: &[Arg] = if matches!(loss, Loss::LogProbs) { &[] } else { &[slope.into()] };
        let args = [&args[..], &tail[..], last].concat();
        gpu.launch(hidden.kernel("loss", name), [count as u32, 1, 1], [1024, 1], 0, &args);
        if let Some(grads) = &mut grads {
            let to = rows_at(grads.dhidden, first);
            unproject(gpu, to, (slopes, dtype), count, head, 1.0, Write::Set);
            if let Some(dhead) = &mut grads.dhead {
                accumulate(gpu, dhead, (slopes, dtype), rows_at(hidden, first), count, 1.0);
            }
        }
    }
    let mut all = vec![0.0f32; 5 * rows];
    gpu.copy_out(out, bytemuck::cast_slice_mut(&mut all));
    let part = |index: usize| &all[index * rows..(index + 1) * rows];
    for (list, index) in [(&mut stats.loss, 0), (&mut stats.log_prob, 1), (&mut stats.entropy, 2)] {
        list.clear();
        list.extend_from_slice(part(index));
    }
    stats.correct.clear();
    stats.correct.extend(part(3).iter().map(|correct| *correct != 0.0));
    if let Loss::Distill { teacher_log_prob, .. } = &mut loss {
        teacher_log_prob.clear();
        teacher_log_prob.extend_from_slice(part(4));
    }
}

/// The kernel of a loss and its arguments up to the sizes.
fn arguments(
    loss: &Loss,
    [slopes, ours, theirs, out, teachers, targets, weights]: [u64; 7],
    lists: [u64; 2],
) -> (&'static str, Vec<Arg>) {
    let pointers = |list: &[u64]| list.iter().map(|pointer| Arg::from(*pointer)).collect::<Vec<_>>();
    match loss {
        Loss::LogProbs => ("log_probs", pointers(&[ours, out, targets])),
        Loss::CrossEntropy => ("cross_entropy", pointers(&[slopes, ours, out, targets, weights])),
        Loss::Distill { kind, top_k, .. } => {
            let (number, beta): (usize, f32) = match kind {
                Divergence::ReverseKl => (0, 0.5),
                Divergence::ForwardKl => (1, 0.5),
                Divergence::Jsd { beta } => (2, *beta),
            };
            let mut args = pointers(&[slopes, ours, theirs, out, teachers, targets, weights]);
            args.extend([Arg::from(number), beta.into(), top_k.unwrap_or(0).into()]);
            ("distill", args)
        }
        Loss::PolicyGradient { clip, .. } => {
            let mut args = pointers(&[slopes, ours, out, targets, weights, lists[0], lists[1]]);
            args.extend([clip.low, clip.high, clip.dual].map(Arg::from));
            ("policy_gradient", args)
        }
    }
}
