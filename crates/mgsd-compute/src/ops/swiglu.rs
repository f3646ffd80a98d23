//! `out = silu(gate) * up`, with `silu(x) = x / (1 + e^-x)`. All of one shape.

use crate::{Tensor, check, par};

/// `out = silu(gate) * up`
pub fn forward(out: &mut Tensor, gate: &Tensor, up: &Tensor) {
    check::same("swiglu::forward", "up", up, "gate", gate);
    out.place(gate, gate.rows(), gate.cols());
    if let Some(gpu) = gate.gpu() {
        check::eights("swiglu::forward", gate);
        let args = [out.pointer().into(), gate.pointer().into(), up.pointer().into(), (gate.len() as u64).into()];
        return gpu.flat(gate.kernel("swiglu", "forward"), gate.len(), 8, &args);
    }
    let (gate, up) = (gate.as_slice(), up.as_slice());
    par::chunks_mut(out.as_mut_slice(), |start, out| {
        let range = start..start + out.len();
        cpu::forward(out, &gate[range.clone()], &up[range]);
    });
}

/// `dup = dout * silu(gate)`, `dgate = dout * up * s (1 + gate (1 - s))` with `s = sigmoid(gate)`. `again`, where it is wanted,
/// receives what [`forward`] gave, which costs less on this way than on its own.
pub fn backward(
    dgate: &mut Tensor,
    dup: &mut Tensor,
    again: Option<&mut Tensor>,
    dout: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) {
    check::same("swiglu::backward", "up", up, "gate", gate);
    check::same("swiglu::backward", "dout", dout, "gate", gate);
    dgate.place(gate, gate.rows(), gate.cols());
    dup.place(gate, gate.rows(), gate.cols());
    if let Some(gpu) = gate.gpu() {
        check::eights("swiglu::backward", gate);
        let again = again.map_or(0, |again| {
            again.place(gate, gate.rows(), gate.cols());
            again.pointer()
        });
        let args = [
            dgate.pointer().into(),
            dup.pointer().into(),
            again.into(),
            dout.pointer().into(),
            gate.pointer().into(),
            up.pointer().into(),
            (gate.len() as u64).into(),
        ];
        return gpu.flat(gate.kernel("swiglu", "backward"), gate.len(), 8, &args);
    }
    if let Some(again) = again {
        forward(again, gate, up);
    }
    let dup = par::Out::new(dup.as_mut_slice());
    let (dout, gate, up) = (dout.as_slice(), gate.as_slice(), up.as_slice());
    par::chunks_mut(dgate.as_mut_slice(), |start, dgate| {
        let range = start..start + dgate.len();
        // SAFETY: pieces of different tasks do not overlap.
        let dup = unsafe { dup.slice(start, dgate.len()) };
        cpu::backward(dgate, dup, &dout[range.clone()], &gate[range.clone()], &up[range]);
    });
}

mod cpu {
    use crate::math::{each_lane, sigmoid};
    use crate::simd::kernel;

    kernel! {
        pub(super) fn forward<S>(out: &mut [f32], gate: &[f32], up: &[f32]) {
            assert!(gate.len() == out.len() && up.len() == out.len());
            // Pointers stay below the common length.
            let (n, out, gate, up) = (out.len(), out.as_mut_ptr(), gate.as_ptr(), up.as_ptr());
            each_lane!(S, n, |g = gate, u = up| S::mul(S::mul(g, sigmoid::<S>(g)), u) => out);
        }
    }

    kernel! {
        pub(super) fn backward<S>(dgate: &mut [f32], dup: &mut [f32], dout: &[f32], gate: &[f32], up: &[f32]) {
            let n = dgate.len();
            assert!(dup.len() == n && dout.len() == n && gate.len() == n && up.len() == n);
            // Pointers stay below the common length `n`.
            let one = S::splat(1.0);
            let mut i = 0;
            while i < n {
                let left = (n - i).min(S::LANES);
                let whole = left == S::LANES;
                macro_rules! at {
                    ($x:ident) => {
                        if whole { S::load($x.as_ptr().add(i)) } else { S::load_n($x.as_ptr().add(i), left) }
                    };
                }
                let (d, g, u) = (at!(dout), at!(gate), at!(up));
                let s = sigmoid::<S>(g);
                let silu = S::mul(g, s);
                let slope = S::fma(silu, S::sub(one, s), s);
                let (to_up, to_gate) = (S::mul(d, silu), S::mul(S::mul(d, u), slope));
                if whole {
                    S::store(dup.as_mut_ptr().add(i), to_up);
                    S::store(dgate.as_mut_ptr().add(i), to_gate);
                } else {
                    S::store_n(dup.as_mut_ptr().add(i), to_up, left);
                    S::store_n(dgate.as_mut_ptr().add(i), to_gate, left);
                }
                i += left;
            }
        }
    }
}
