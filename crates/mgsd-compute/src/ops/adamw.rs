//! AdamW (decoupled weight decay, Loshchilov and Hutter, arXiv 1711.05101), PyTorch's formula.

use crate::cuda::{Arg, Kernel};
use crate::{Dtype, Tensor, check, par};

/// The optimiser's settings.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Step size, already scheduled.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the corrected second moment.
    pub eps: f32,
    /// Decoupled: the parameter shrinks by `learning_rate * weight_decay` of itself.
    pub weight_decay: f32,
}

/// One step on one parameter; `step` counts from 1; `grad_scale` multiplies the gradient first (clipping).
///
/// `p -= lr wd p`, `m = β₁ m + (1 - β₁) g`, `v = β₂ v + (1 - β₂) g²`,
/// `p -= lr / (1 - β₁^t) · m / (√v / √(1 - β₂^t) + eps)`.
///
/// On a GPU a bfloat16 parameter is the rounded half of a 32-bit master; `rest` holds the other half, as
/// [`rest_of`] makes it. It is `None` for parameters that are 32-bit floats themselves.
#[allow(clippy::too_many_arguments)] // All that a step reads and writes.
pub fn step(
    param: &mut Tensor,
    rest: Option<&mut Tensor>,
    grad: &Tensor,
    first_moment: &mut Tensor,
    second_moment: &mut Tensor,
    settings: &AdamW,
    step: u64,
    grad_scale: f32,
) {
    check::same("adamw::step", "grad", grad, "param", param);
    check::same("adamw::step", "first_moment", first_moment, "param", param);
    check::same("adamw::step", "second_moment", second_moment, "param", param);
    if param.gpu().is_some() {
        return step_all(&mut [Update { param, rest, grad, first_moment, second_moment }], settings, step, grad_scale);
    }
    let factors = factors(settings, step, grad_scale);
    let grad = grad.as_slice();
    let first = par::Out::new(first_moment.as_mut_slice());
    let second = par::Out::new(second_moment.as_mut_slice());
    par::chunks_mut(param.as_mut_slice(), |start, param| {
        let len = param.len();
        // SAFETY: pieces of different tasks do not overlap.
        let (m, v) = unsafe { (first.slice(start, len), second.slice(start, len)) };
        cpu::step(param, &grad[start..start + len], m, v, &factors);
    });
}

/// One parameter of [`step_all`], with what belongs to it; see [`step`].
pub struct Update<'a> {
    /// What is trained.
    pub param: &'a mut Tensor,
    /// The other half of a bfloat16 parameter's master.
    pub rest: Option<&'a mut Tensor>,
    /// Its gradient.
    pub grad: &'a Tensor,
    /// Running mean of the gradient.
    pub first_moment: &'a mut Tensor,
    /// Running mean of its square.
    pub second_moment: &'a mut Tensor,
}

/// [`step`] on many parameters, in one launch on a GPU.
pub fn step_all(updates: &mut [Update], settings: &AdamW, count: u64, grad_scale: f32) {
    let op = "adamw::step_all";
    let Some(gpu) = updates.first().and_then(|update| update.param.gpu()) else {
        for u in updates {
            step(u.param, u.rest.as_deref_mut(), u.grad, u.first_moment, u.second_moment, settings, count, grad_scale);
        }
        return;
    };
    const BLOCK: usize = 2048;
    let (mut table, mut starts, mut blocks): (Vec<u64>, Vec<u32>, usize) = (Vec::new(), Vec::new(), 0);
    for update in updates.iter() {
        let Update { param, rest, grad, first_moment, second_moment } = update;
        check::same(op, "grad", grad, "param", param);
        check::same(op, "first_moment", first_moment, "param", param);
        check::same(op, "second_moment", second_moment, "param", param);
        let rest = match (param.dtype(), rest) {
            (Dtype::F32, None) => 0,
            (Dtype::Bf16, Some(rest)) => {
                check::same(op, "rest", rest, "param", param);
                rest.pointer()
            }
            (dtype, rest) => panic!("{op}: {dtype:?} parameter and {} rest", rest.as_ref().map_or("no", |_| "a")),
        };
        let moments = [first_moment.pointer_f32(), second_moment.pointer_f32()];
        table.extend([param.pointer(), rest, grad.pointer_f32(), moments[0], moments[1], param.len() as u64]);
        starts.push(blocks as u32);
        blocks += param.len().div_ceil(BLOCK);
    }
    let mut args: Vec<Arg> = vec![gpu.list(&table).into(), gpu.list(&starts).into(), updates.len().into()];
    let f = factors(settings, count, grad_scale);
    args.extend([f.grad_scale, f.keep, f.new1, f.beta2, f.new2, f.root, f.eps, f.size].map(Arg::from));
    gpu.launch(Kernel::plain("adamw", "step_many"), [blocks as u32, 1, 1], [256, 1], 0, &args);
}

fn factors(settings: &AdamW, step: u64, grad_scale: f32) -> cpu::Factors {
    assert!(step > 0, "adamw: steps count from 1");
    // Powers and differences in f64: 1 - 0.999 has few digits in f32.
    let (beta1, beta2) = (f64_of(settings.beta1), f64_of(settings.beta2));
    let correction1 = 1.0 - beta1.powf(step as f64);
    let correction2 = 1.0 - beta2.powf(step as f64);
    cpu::Factors {
        keep: (1.0 - f64_of(settings.learning_rate) * f64_of(settings.weight_decay)) as f32,
        new1: (1.0 - beta1) as f32,
        beta2: settings.beta2,
        new2: (1.0 - beta2) as f32,
        root: (1.0 / correction2.sqrt()) as f32,
        eps: settings.eps,
        size: (f64_of(settings.learning_rate) / correction1) as f32,
        grad_scale,
    }
}

/// The decimal number that was meant: 0.999 as `f32` is 0.99900001, and `1 - 0.999` feels it in the fifth digit.
fn f64_of(x: f32) -> f64 {
    const DIGITS: f64 = 1e7;
    let wide = f64::from(x);
    let decimal = (wide * DIGITS).round() / DIGITS;
    if decimal as f32 == x { decimal } else { wide }
}

/// Whether a master of 32 bits needs something beside `param`; else `param` is its own master.
pub fn has_rest(param: &Tensor) -> bool {
    param.gpu().is_some() && param.dtype() == Dtype::Bf16
}

/// What a master of 32 bits needs beside `param` ([`step`]), zero at first, if it [needs](has_rest) that.
pub fn rest_of(param: &Tensor) -> Option<Tensor> {
    has_rest(param).then(|| Tensor::zeros_on(param.device(), Dtype::Bf16, param.rows(), param.cols()))
}

/// Sum of the squares of all numbers in f64, for the global norm.
pub fn sum_of_squares<'a>(grads: impl IntoIterator<Item = &'a Tensor>) -> f64 {
    let mut sum = 0.0;
    let mut on_gpu: Vec<&Tensor> = Vec::new();
    for grad in grads {
        match grad.gpu() {
            Some(_) => on_gpu.push(grad),
            None => sum += sum_on_cpu(grad),
        }
    }
    sum + sum_on_gpu(&on_gpu)
}

/// Sums of blocks first, then of those, in order; one number comes back.
fn sum_on_gpu(grads: &[&Tensor]) -> f64 {
    const BLOCK: usize = 16384;
    let Some(gpu) = grads.first().and_then(|grad| grad.gpu()) else { return 0.0 };
    let (mut table, mut starts, mut blocks): (Vec<u64>, Vec<u32>, usize) = (Vec::new(), Vec::new(), 0);
    for grad in grads {
        table.extend([grad.pointer_f32(), grad.len() as u64]);
        starts.push(blocks as u32);
        blocks += grad.len().div_ceil(BLOCK);
    }
    let total = gpu.scratch("squares", (blocks + 1) * 8);
    let sums = total + 8;
    let args = [sums.into(), gpu.list(&table).into(), gpu.list(&starts).into(), grads.len().into()];
    gpu.launch(Kernel::plain("adamw", "squares_many"), [blocks as u32, 1, 1], [256, 1], 0, &args);
    let args = [total.into(), sums.into(), blocks.into()];
    gpu.launch(Kernel::plain("adamw", "total"), [1, 1, 1], [256, 1], 0, &args);
    let mut sum = [0.0f64];
    gpu.copy_out(total, bytemuck::cast_slice_mut(&mut sum));
    sum[0]
}

fn sum_on_cpu(grad: &Tensor) -> f64 {
    const BLOCK: usize = 256 * 1024;
    let grad = grad.as_slice();
    // A rayon reduction would add in an order of its own, so blocks are summed where they stand.
    let blocks = grad.len().div_ceil(BLOCK);
    par::with_scratch(2 * blocks, |sums| {
        let out = par::Out::new(sums);
        par::tasks(blocks, |index| {
            let block = &grad[index * BLOCK..((index + 1) * BLOCK).min(grad.len())];
            let sum: f64 = block.chunks(1024).map(|part| f64::from(crate::math::dot(part, part))).sum();
            // SAFETY: each task has a pair of its own.
            let place = unsafe { out.slice(2 * index, 2) };
            place[0] = sum as f32;
            place[1] = (sum - f64::from(sum as f32)) as f32;
        });
        sums.iter().map(|part| f64::from(*part)).sum()
    })
}

mod cpu {
    use crate::simd::kernel;

    pub(super) struct Factors {
        pub(super) keep: f32,
        pub(super) new1: f32,
        pub(super) beta2: f32,
        pub(super) new2: f32,
        pub(super) root: f32,
        pub(super) eps: f32,
        pub(super) size: f32,
        pub(super) grad_scale: f32,
    }

    kernel! {
        pub(super) fn step<S>(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: &Factors) {
            let n = p.len();
            assert!(g.len() == n && m.len() == n && v.len() == n);
            // Pointers stay below the common length `n`.
            let (p, g, m, v) = (p.as_mut_ptr(), g.as_ptr(), m.as_mut_ptr(), v.as_mut_ptr());
            let scale = S::splat(f.grad_scale);
            let mut i = 0;
            // One pass over all four; the tail goes through zero-filled vectors.
            while i < n {
                let left = (n - i).min(S::LANES);
                macro_rules! at {
                    ($x:ident) => {
                        if left == S::LANES { S::load($x.add(i)) } else { S::load_n($x.add(i), left) }
                    };
                }
                let (mut p_i, g_i, mut m_i, mut v_i) = (at!(p), S::mul(at!(g), scale), at!(m), at!(v));
                m_i = S::fma(S::splat(f.new1), S::sub(g_i, m_i), m_i);
                v_i = S::fma(S::mul(S::splat(f.new2), g_i), g_i, S::mul(S::splat(f.beta2), v_i));
                let floor = S::fma(S::sqrt(v_i), S::splat(f.root), S::splat(f.eps));
                let moved = S::div(S::mul(S::splat(f.size), m_i), floor);
                p_i = S::sub(S::mul(p_i, S::splat(f.keep)), moved);
                for (to, x) in [(p, p_i), (m, m_i), (v, v_i)] {
                    if left == S::LANES {
                        S::store(to.add(i), x);
                    } else {
                        S::store_n(to.add(i), x, left);
                    }
                }
                i += left;
            }
        }
    }
}
