//! RMSNorm over groups of `weight.cols()` columns (so per head when `x` is `[tokens, heads * head_dim]`);
//! Zhang and Sennrich, arXiv 1910.07467.
//!
//! `out = r w x` with `r = 1 / √(mean(x²) + eps)`. `weight: [1, group]`.

use crate::{Tensor, Write, check, par};

/// `out = r w x`
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) {
    let op = "rms_norm::forward";
    check::shape(op, "weight", weight, 1, weight.cols());
    check::groups(op, x.cols(), weight.cols());
    out.place(x, x.rows(), x.cols());
    if let Some(gpu) = x.gpu() {
        let shape = cuda::Shape::of(gpu, x, weight.cols());
        let args = [out.pointer().into(), x.pointer().into(), weight.pointer_f32().into(), shape.groups.into()];
        let args = [args[0], args[1], args[2], args[3], shape.width.into(), eps.into()];
        return gpu.launch(x.kernel("rms_norm", shape.pick("forward")), shape.all(), shape.block, 0, &args);
    }
    let (cols, x, weight) = (x.cols(), x.as_slice(), weight.as_slice());
    let rows = out.rows();
    let out = par::Out::new(out.as_mut_slice());
    par::row_blocks(rows, cols, |first, count| {
        let range = first * cols..(first + count) * cols;
        // SAFETY: blocks of rows do not overlap.
        let out = unsafe { out.slice(range.start, range.len()) };
        cpu::forward(out, &x[range], weight, eps);
    });
}

/// `dx (=|+=) r w dout - x r³ mean(w dout x)`, `dweight += Σ dout r x`. Recomputes `r` from `x`. `dweight`: `None` when frozen.
pub fn backward(
    dx: &mut Tensor,
    dweight: Option<&mut Tensor>,
    dout: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    write: Write,
) {
    let op = "rms_norm::backward";
    let group = weight.cols();
    check::shape(op, "weight", weight, 1, group);
    check::groups(op, x.cols(), group);
    check::same(op, "dout", dout, "x", x);
    match write {
        Write::Set => dx.place(x, x.rows(), x.cols()),
        Write::Add => check::same(op, "dx", dx, "x", x),
    }
    if let Some(gpu) = x.gpu() {
        let shape = cuda::Shape::of(gpu, x, group);
        let partials = if dweight.is_some() { gpu.scratch("partials", shape.workers() * group * 4) } else { 0 };
        let args = [
            dx.pointer().into(),
            partials.into(),
            dout.pointer().into(),
            x.pointer().into(),
            weight.pointer_f32().into(),
            shape.groups.into(),
            shape.width.into(),
            eps.into(),
            (write == Write::Add).into(),
        ];
        gpu.launch(x.kernel("rms_norm", shape.pick("backward")), shape.few(), shape.block, 0, &args);
        if let Some(dweight) = dweight {
            check::shape(op, "dweight", dweight, 1, group);
            let workers = shape.workers();
            super::linear::cuda::add_partials(gpu, dweight.pointer_f32(), partials, workers, group);
        }
        return;
    }
    let (rows, cols) = (x.rows(), x.cols());
    let (dout, x, weight) = (dout.as_slice(), x.as_slice(), weight.as_slice());
    let dx = par::Out::new(dx.as_mut_slice());
    let add = write == Write::Add;
    let block = |first: usize, count: usize, dweight: Option<&mut [f32]>| {
        let range = first * cols..(first + count) * cols;
        // SAFETY: blocks of rows do not overlap.
        let dx = unsafe { dx.slice(range.start, range.len()) };
        cpu::backward(dx, dweight, &dout[range.clone()], &x[range], weight, eps, add);
    };
    match dweight {
        None => par::row_blocks(rows, cols, |first, count| block(first, count, None)),
        Some(dweight) => {
            check::shape(op, "dweight", dweight, 1, group);
            par::row_blocks_summed(rows, cols, dweight.as_mut_slice(), |first, count, sums| {
                block(first, count, Some(sums));
            });
        }
    }
}

mod cuda {
    use crate::Tensor;
    use crate::cuda::Cuda;

    /// How groups are dealt to blocks of threads.
    pub(super) struct Shape {
        pub(super) groups: usize,
        pub(super) width: usize,
        pub(super) block: [u32; 2],
        few: u32,
    }

    /// Warps in a block that serves narrow groups.
    const WARPS: u32 = 8;
    /// Numbers of a wide group of which a thread keeps one piece of eight.
    const ONE_PIECE: usize = 4096;

    impl Shape {
        pub(super) fn of(gpu: &Cuda, x: &Tensor, width: usize) -> Self {
            assert!(
                width.is_multiple_of(8) && width <= 16384,
                "rms_norm on a GPU: groups of {width} numbers; a multiple of 8 up to 16384 is expected"
            );
            let groups = x.len() / width;
            let narrow = width <= 256;
            let block = match narrow {
                true => [32, WARPS],
                false => [width.div_ceil(8).next_multiple_of(32).min(512) as u32, 1],
            };
            // Blocks that find room side by side on a multiprocessor, as the kernels' bounds say.
            let (needed, beside) = match (narrow, width.div_ceil(ONE_PIECE)) {
                (true, _) => (groups.div_ceil(WARPS as usize), 4),
                (false, 1) => (groups, 1024 / block[0]),
                (false, _) => (groups, 1),
            };
            Self { groups, width, block, few: (needed as u32).min(gpu.multiprocessors() * beside) }
        }

        pub(super) fn pick(&self, direction: &str) -> &'static str {
            let forward = direction == "forward";
            match (self.block[1] > 1, self.width.div_ceil(ONE_PIECE)) {
                (true, _) if forward => "forward_narrow",
                (true, _) => "backward_narrow",
                (false, 1) if forward => "forward_wide_1",
                (false, 1) => "backward_wide_1",
                (false, 2) if forward => "forward_wide_2",
                (false, 2) => "backward_wide_2",
                (false, _) if forward => "forward_wide_4",
                (false, _) => "backward_wide_4",
            }
        }

        /// Blocks for all groups at once.
        pub(super) fn all(&self) -> [u32; 3] {
            [(self.groups as u32).div_ceil(self.block[1]), 1, 1]
        }

        /// Few blocks that go through many groups each.
        pub(super) fn few(&self) -> [u32; 3] {
            [self.few, 1, 1]
        }

        /// Partial sums of the weight's gradient.
        pub(super) fn workers(&self) -> usize {
            (self.few * self.block[1]) as usize
        }
    }
}

mod cpu {
    use crate::math::{dot_in, dot3_in, each_lane};
    use crate::simd::kernel;

    kernel! {
        pub(super) fn forward<S>(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
            let n = weight.len();
            let w = weight.as_ptr();
            for (out, x) in out.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
                let r = 1.0 / (dot_in::<S>(x, x) / n as f32 + eps).sqrt();
                let r = S::splat(r);
                // All three hold `n` numbers.
                let (out, x) = (out.as_mut_ptr(), x.as_ptr());
                each_lane!(S, n, |x = x, w = w| S::mul(S::mul(x, r), w) => out);
            }
        }
    }

    kernel! {
        pub(super) fn backward<S>(
            dx: &mut [f32],
            dweight: Option<&mut [f32]>,
            dout: &[f32],
            x: &[f32],
            weight: &[f32],
            eps: f32,
            add: bool,
        ) {
            let n = weight.len();
            let w = weight.as_ptr();
            let mut dweight = dweight;
            let rows = dx.chunks_exact_mut(n).zip(dout.chunks_exact(n)).zip(x.chunks_exact(n));
            for ((dx, dout), x) in rows {
                let r = 1.0 / (dot_in::<S>(x, x) / n as f32 + eps).sqrt();
                let back = r * r * r * dot3_in::<S>(weight, dout, x) / n as f32;
                let (r, back) = (S::splat(r), S::splat(back));
                // All hold `n` numbers.
                let (dx, dout, x) = (dx.as_mut_ptr(), dout.as_ptr(), x.as_ptr());
                if add {
                    each_lane!(S, n, |d = dout, x = x, w = w, old = dx| {
                        S::fma(S::mul(d, r), w, S::fnma(x, back, old))
                    } => dx);
                } else {
                    each_lane!(S, n, |d = dout, x = x, w = w| {
                        S::fnma(x, back, S::mul(S::mul(d, r), w))
                    } => dx);
                }
                if let Some(sums) = &mut dweight {
                    assert_eq!(sums.len(), n);
                    let sums = sums.as_mut_ptr();
                    each_lane!(S, n, |d = dout, x = x, old = sums| S::fma(S::mul(d, r), x, old) => sums);
                }
            }
        }
    }
}
