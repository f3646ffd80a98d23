//! GELU, exact (erf) or by the tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415).

use crate::{Tensor, check, par};

/// Which of the two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// `x/2 (1 + erf(x / √2))`
    Erf,
    /// `x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`
    Tanh,
}

/// `out = gelu(x)`
pub fn forward(out: &mut Tensor, x: &Tensor, kind: Gelu) {
    out.place(x, x.rows(), x.cols());
    if let Some(gpu) = x.gpu() {
        check::eights("gelu::forward", x);
        let function = match kind {
            Gelu::Erf => "forward_erf",
            Gelu::Tanh => "forward_tanh",
        };
        let args = [out.pointer().into(), x.pointer().into(), (x.len() as u64).into()];
        return gpu.flat(x.kernel("gelu", function), x.len(), 8, &args);
    }
    let x = x.as_slice();
    par::chunks_mut(out.as_mut_slice(), |start, out| {
        let x = &x[start..start + out.len()];
        match kind {
            Gelu::Erf => cpu::forward_erf(out, x),
            Gelu::Tanh => cpu::forward_tanh(out, x),
        }
    });
}

/// `dx = dout * gelu'(x)`
pub fn backward(dx: &mut Tensor, dout: &Tensor, x: &Tensor, kind: Gelu) {
    check::same("gelu::backward", "dout", dout, "x", x);
    dx.place(x, x.rows(), x.cols());
    if let Some(gpu) = x.gpu() {
        check::eights("gelu::backward", x);
        let function = match kind {
            Gelu::Erf => "backward_erf",
            Gelu::Tanh => "backward_tanh",
        };
        let args = [dx.pointer().into(), dout.pointer().into(), x.pointer().into(), (x.len() as u64).into()];
        return gpu.flat(x.kernel("gelu", function), x.len(), 8, &args);
    }
    let (dout, x) = (dout.as_slice(), x.as_slice());
    par::chunks_mut(dx.as_mut_slice(), |start, dx| {
        let range = start..start + dx.len();
        match kind {
            Gelu::Erf => cpu::backward_erf(dx, &dout[range.clone()], &x[range]),
            Gelu::Tanh => cpu::backward_tanh(dx, &dout[range.clone()], &x[range]),
        }
    });
}

mod cpu {
    use crate::math::{each_lane, erf, exp, tanh};
    use crate::simd::{Simd, kernel};
    use std::f32::consts::FRAC_1_SQRT_2;

    /// `√(2/π)`
    const INNER: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;

    /// `tanh(√(2/π) (x + 0.044715 x³))`
    #[inline(always)]
    unsafe fn inner_tanh<S: Simd>(x: S::V) -> S::V {
        // SAFETY: the instruction set is there (caller).
        unsafe {
            let cubic = S::fma(S::mul(x, x), S::splat(CUBIC), S::splat(1.0));
            tanh::<S>(S::mul(S::mul(x, S::splat(INNER)), cubic))
        }
    }

    kernel! {
        pub(super) fn forward_erf<S>(out: &mut [f32], x: &[f32]) {
            assert_eq!(x.len(), out.len());
            let (n, out, x) = (out.len(), out.as_mut_ptr(), x.as_ptr());
            each_lane!(S, n, |v = x| {
                let e = erf::<S>(S::mul(v, S::splat(FRAC_1_SQRT_2)));
                let half = S::mul(v, S::splat(0.5));
                S::fma(half, e, half)
            } => out);
        }
    }

    kernel! {
        pub(super) fn forward_tanh<S>(out: &mut [f32], x: &[f32]) {
            assert_eq!(x.len(), out.len());
            let (n, out, x) = (out.len(), out.as_mut_ptr(), x.as_ptr());
            each_lane!(S, n, |v = x| {
                let half = S::mul(v, S::splat(0.5));
                S::fma(half, inner_tanh::<S>(v), half)
            } => out);
        }
    }

    kernel! {
        pub(super) fn backward_erf<S>(dx: &mut [f32], dout: &[f32], x: &[f32]) {
            assert!(x.len() == dx.len() && dout.len() == dx.len());
            let (n, dx, dout, x) = (dx.len(), dx.as_mut_ptr(), dout.as_ptr(), x.as_ptr());
            each_lane!(S, n, |v = x, d = dout| {
                // Φ(x) + x φ(x)
                let half = S::splat(0.5);
                let below = S::fma(half, erf::<S>(S::mul(v, S::splat(FRAC_1_SQRT_2))), half);
                let density = exp::<S>(S::mul(S::mul(v, v), S::splat(-0.5)));
                let slope = S::fma(S::mul(v, S::splat(0.398_942_3)), density, below);
                S::mul(d, slope)
            } => dx);
        }
    }

    kernel! {
        pub(super) fn backward_tanh<S>(dx: &mut [f32], dout: &[f32], x: &[f32]) {
            assert!(x.len() == dx.len() && dout.len() == dx.len());
            let (n, dx, dout, x) = (dx.len(), dx.as_mut_ptr(), dout.as_ptr(), x.as_ptr());
            each_lane!(S, n, |v = x, d = dout| {
                // (1 + t)/2 + x/2 (1 - t²) √(2/π) (1 + 3·0.044715 x²)
                // with e = exp(-2 argument): (1 + t)/2 = 1 / (1 + e), (1 - t²)/2 = 2e / (1 + e)², free of cancellation
                let one = S::splat(1.0);
                let square = S::mul(v, v);
                let argument = S::mul(v, S::fma(square, S::splat(CUBIC * INNER), S::splat(INNER)));
                let e = exp::<S>(S::mul(argument, S::splat(-2.0)));
                let s = S::div(one, S::add(one, e));
                let inner = S::fma(square, S::splat(3.0 * CUBIC * INNER), S::splat(INNER));
                let bend = S::mul(S::mul(S::mul(e, s), s), S::mul(S::add(v, v), inner));
                S::mul(d, S::add(s, bend))
            } => dx);
        }
    }
}
