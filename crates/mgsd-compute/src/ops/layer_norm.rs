//! LayerNorm with bias over groups of `weight.cols()` columns; Ba et al., arXiv 1607.06450.
//!
//! `out = w z + b` with `z = r (x - mean(x))`, `r = 1 / √(var(x) + eps)`. `weight, bias: [1, group]`.

use crate::{Tensor, Write, check, par};

/// `out = w z + b`
pub fn forward(out: &mut Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) {
    let op = "layer_norm::forward";
    check::shape(op, "weight", weight, 1, weight.cols());
    check::same(op, "bias", bias, "weight", weight);
    check::groups(op, x.cols(), weight.cols());
    out.place(x, x.rows(), x.cols());
    if let Some(gpu) = x.gpu() {
        let (groups, block) = cuda_shape(x, weight.cols());
        let args = [
            out.pointer().into(),
            x.pointer().into(),
            weight.pointer_f32().into(),
            bias.pointer_f32().into(),
            groups.into(),
            weight.cols().into(),
            eps.into(),
        ];
        return gpu.launch(x.kernel("layer_norm", "forward"), [groups as u32, 1, 1], block, 0, &args);
    }
    let (rows, cols) = (x.rows(), x.cols());
    let (x, weight, bias) = (x.as_slice(), weight.as_slice(), bias.as_slice());
    let out = par::Out::new(out.as_mut_slice());
    par::row_blocks(rows, cols, |first, count| {
        let range = first * cols..(first + count) * cols;
        // SAFETY: blocks of rows do not overlap.
        let out = unsafe { out.slice(range.start, range.len()) };
        cpu::forward(out, &x[range], weight, bias, eps);
    });
}

/// `dx (=|+=) r (g - mean(g) - z mean(g z))` with `g = w dout`.
/// `dparams`: (dweight, dbias), `None` when frozen: `dweight += Σ dout z`, `dbias += Σ dout`.
pub fn backward(
    dx: &mut Tensor,
    dparams: Option<(&mut Tensor, &mut Tensor)>,
    dout: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    write: Write,
) {
    let op = "layer_norm::backward";
    let group = weight.cols();
    check::shape(op, "weight", weight, 1, group);
    check::groups(op, x.cols(), group);
    check::same(op, "dout", dout, "x", x);
    match write {
        Write::Set => dx.place(x, x.rows(), x.cols()),
        Write::Add => check::same(op, "dx", dx, "x", x),
    }
    if let Some(gpu) = x.gpu() {
        let (groups, block) = cuda_shape(x, group);
        let blocks = groups.min(gpu.multiprocessors() as usize * 2);
        let half = blocks * group * 4;
        let partials = if dparams.is_some() { gpu.scratch("partials", 2 * half) } else { 0 };
        let args = [
            dx.pointer().into(),
            partials.into(),
            dout.pointer().into(),
            x.pointer().into(),
            weight.pointer_f32().into(),
            groups.into(),
            group.into(),
            eps.into(),
            (write == Write::Add).into(),
        ];
        gpu.launch(x.kernel("layer_norm", "backward"), [blocks as u32, 1, 1], block, 0, &args);
        if let Some((dweight, dbias)) = dparams {
            check::shape(op, "dweight", dweight, 1, group);
            check::shape(op, "dbias", dbias, 1, group);
            super::linear::cuda::add_partials(gpu, dweight.pointer_f32(), partials, blocks, group);
            super::linear::cuda::add_partials(gpu, dbias.pointer_f32(), partials + half as u64, blocks, group);
        }
        return;
    }
    let (rows, cols) = (x.rows(), x.cols());
    let (dout, x, weight) = (dout.as_slice(), x.as_slice(), weight.as_slice());
    let dx = par::Out::new(dx.as_mut_slice());
    let add = write == Write::Add;
    let block = |first: usize, count: usize, dparams: Option<&mut [f32]>| {
        let range = first * cols..(first + count) * cols;
        // SAFETY: blocks of rows do not overlap.
        let dx = unsafe { dx.slice(range.start, range.len()) };
        par::with_scratch(group, |z| {
            cpu::backward(dx, dparams, &dout[range.clone()], &x[range], weight, eps, add, z);
        });
    };
    match dparams {
        None => par::row_blocks(rows, cols, |first, count| block(first, count, None)),
        Some((dweight, dbias)) => {
            check::shape(op, "dweight", dweight, 1, group);
            check::shape(op, "dbias", dbias, 1, group);
            par::with_scratch(2 * group, |both| {
                both.fill(0.0);
                par::row_blocks_summed(rows, cols, both, |first, count, sums| {
                    block(first, count, Some(sums));
                });
                crate::math::add_scaled(dweight.as_mut_slice(), &both[..group], 1.0);
                crate::math::add_scaled(dbias.as_mut_slice(), &both[group..], 1.0);
            });
        }
    }
}

/// Groups and the threads of a block on a GPU.
fn cuda_shape(x: &Tensor, width: usize) -> (usize, [u32; 2]) {
    assert!(
        width.is_multiple_of(8) && width <= 16384,
        "layer_norm on a GPU: groups of {width} numbers; a multiple of 8 up to 16384 is expected"
    );
    (x.len() / width, [width.div_ceil(8).next_multiple_of(32).min(512) as u32, 1])
}

mod cpu {
    use crate::math::{dot_in, each_lane, sum_in};
    use crate::simd::{Simd, kernel};

    /// Mean and reciprocal deviation of a row.
    #[inline(always)]
    unsafe fn moments<S: Simd>(x: &[f32], centred: &mut [f32], eps: f32) -> f32 {
        let n = x.len();
        // SAFETY: both hold `n` numbers; the instruction set is there (caller).
        unsafe {
            let mean = S::splat(sum_in::<S>(x) / n as f32);
            let (x, to) = (x.as_ptr(), centred.as_mut_ptr());
            each_lane!(S, n, |x = x| S::sub(x, mean) => to);
            1.0 / (dot_in::<S>(centred, centred) / n as f32 + eps).sqrt()
        }
    }

    kernel! {
        pub(super) fn forward<S>(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
            let n = weight.len();
            assert_eq!(bias.len(), n);
            let (w, b) = (weight.as_ptr(), bias.as_ptr());
            for (out, x) in out.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
                let r = S::splat(moments::<S>(x, out, eps));
                // All hold `n` numbers.
                let out = out.as_mut_ptr();
                each_lane!(S, n, |c = out, w = w, b = b| S::fma(S::mul(c, r), w, b) => out);
            }
        }
    }

    kernel! {
        pub(super) fn backward<S>(
            dx: &mut [f32],
            dparams: Option<&mut [f32]>,
            dout: &[f32],
            x: &[f32],
            weight: &[f32],
            eps: f32,
            add: bool,
            z: &mut [f32],
        ) {
            let n = weight.len();
            let w = weight.as_ptr();
            let mut dparams = dparams;
            {
                let rows = dx.chunks_exact_mut(n).zip(dout.chunks_exact(n)).zip(x.chunks_exact(n));
                for ((dx, dout), x) in rows {
                    let r = moments::<S>(x, z, eps);
                    let rv = S::splat(r);
                    let mean = S::splat(-dot_in::<S>(weight, dout) / n as f32);
                    // All hold `n` numbers.
                    let zp = z.as_mut_ptr();
                    each_lane!(S, n, |c = zp| S::mul(c, rv) => zp);
                    let along = S::splat(crate::math::dot3_in::<S>(weight, dout, z) / n as f32);
                    let (dx, dout) = (dx.as_mut_ptr(), dout.as_ptr());
                    each_lane!(S, n, |d = dout, z = zp, w = w, old = dx| {
                        let g = S::fnma(z, along, S::fma(d, w, mean));
                        S::fma(g, rv, if add { old } else { S::splat(0.0) })
                    } => dx);
                    if let Some(sums) = &mut dparams {
                        assert_eq!(sums.len(), 2 * n);
                        let dw = sums.as_mut_ptr();
                        each_lane!(S, n, |d = dout, z = zp, old = dw| S::fma(d, z, old) => dw);
                        let db = dw.add(n);
                        each_lane!(S, n, |d = dout, old = db| S::add(d, old) => db);
                    }
                }
            }
        }
    }
}
