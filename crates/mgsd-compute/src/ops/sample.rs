//! The next token of many rows at once, where the logits are: on a GPU, so that only the tokens travel. On the CPU the
//! caller has the logits at hand and chooses for itself.

use crate::cuda::{Arg, Kernel};
use crate::{Dtype, Tensor};

/// Blocks that share a row where they can.
const MOST_PARTS: usize = 8;
/// Bytes of a row that a block keeps in shared memory: with the kernel's own 5 KiB less than the 99 KiB that every GPU from
/// compute capability 8.0 on has.
const MOST_KEPT: usize = 80 << 10;

/// How the token of a row is chosen. Filters apply in the order of the fields; tokens as likely as the last one that a
/// filter keeps are kept too.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Choice {
    /// Divides the logits; 0 takes the likeliest token, the first among equals.
    pub temperature: f32,
    /// Only the k likeliest tokens; 0 is off.
    pub top_k: f32,
    /// Only the likeliest tokens that together reach this probability; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest; 0 is off.
    pub min_p: f32,
    /// A random number, at least 0 and less than 1: where in the distribution the token lies.
    pub uniform: f32,
    /// Not used.
    pub unused: f32,
}

/// A token for each of the first rows of `logits: [rows, vocab]` (F32, on a GPU), and the logarithm of its probability under the
/// unchanged logits. The vectors are cleared and refilled.
pub fn sample(tokens: &mut Vec<u32>, log_probs: &mut Vec<f32>, logits: &Tensor, choices: &[Choice]) {
    assert!(choices.len() <= logits.rows(), "sample: {} choices for {:?}", choices.len(), logits.shape());
    let Some(gpu) = logits.gpu() else { panic!("sample: the logits lie on the CPU") };
    assert!(logits.dtype() == Dtype::F32, "sample: logits must be F32");
    let rows = choices.len();
    let vocab = logits.cols();
    let found = gpu.scratch("sampled", rows * 8);
    // Few rows would leave most multiprocessors idle: where blocks can form clusters, several share a row.
    let parts = if gpu.is_hopper() && vocab >= MOST_PARTS * 1024 { MOST_PARTS } else { 1 };
    let share = vocab.div_ceil(parts);
    let kept = share * 4 <= MOST_KEPT;
    let mut args: Vec<Arg> = vec![found.into(), (found + 4 * rows as u64).into(), logits.pointer().into()];
    args.push(gpu.list(choices).into());
    args.extend([vocab, parts, share, kept as usize].map(Arg::from));
    let (kernel, grid) = (Kernel::plain("sample", "sample"), [(rows * parts) as u32, 1, 1]);
    let shared = if kept { share * 4 } else { 0 };
    match gpu.is_hopper() {
        true => gpu.launch_early(kernel, grid, [1024, 1], shared as u32, parts as u32, &[], &args),
        false => gpu.launch(kernel, grid, [1024, 1], shared as u32, &args),
    }
    let mut host = vec![0u32; 2 * rows];
    gpu.copy_out(found, bytemuck::cast_slice_mut(&mut host));
    tokens.clear();
    tokens.extend_from_slice(&host[..rows]);
    log_probs.clear();
    log_probs.extend(host[rows..].iter().map(|bits| f32::from_bits(*bits)));
}
