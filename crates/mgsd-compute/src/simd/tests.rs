//! Each instruction set against plain arithmetic.

use super::*;

/// Every function of a set against plain arithmetic.
#[inline(always)]
unsafe fn check<S: Simd>() {
    let n = S::LANES;
    let a: Vec<f32> = (0..16).map(|i| 1.5 * i as f32 - 7.25).collect();
    let b: Vec<f32> = (0..16).map(|i| 3.0 - 0.5 * i as f32).collect();
    let mut out = vec![0.0f32; 16];
    // SAFETY: sixteen numbers are there; the instruction set is there (caller).
    unsafe {
        let (va, vb) = (S::load(a.as_ptr()), S::load(b.as_ptr()));
        let mut want = |name: &str, got: S::V, f: &dyn Fn(usize) -> f32| {
            S::store(out.as_mut_ptr(), got);
            for (i, out) in out.iter().enumerate().take(n) {
                assert_eq!(*out, f(i), "{name}, lane {i}");
            }
        };
        want("add", S::add(va, vb), &|i| a[i] + b[i]);
        want("sub", S::sub(va, vb), &|i| a[i] - b[i]);
        want("mul", S::mul(va, vb), &|i| a[i] * b[i]);
        want("div", S::div(va, S::splat(0.5)), &|i| a[i] / 0.5);
        want("sqrt", S::sqrt(S::mul(va, va)), &|i| a[i].abs());
        want("fma", S::fma(va, vb, va), &|i| a[i] * b[i] + a[i]);
        want("fnma", S::fnma(va, vb, va), &|i| a[i] - a[i] * b[i]);
        want("max", S::max(va, vb), &|i| a[i].max(b[i]));
        want("min", S::min(va, vb), &|i| a[i].min(b[i]));
        let chosen = S::if_less(va, vb, S::splat(1.0), S::splat(2.0));
        want("if_less", chosen, &|i| if a[i] < b[i] { 1.0 } else { 2.0 });
        let power = S::scale_by_power(S::splat(1.5), S::splat(f32::from_bits(3)));
        want("scale_by_power", power, &|_| 12.0);
        let halves: Vec<u16> = a.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
        want("load_bf16", S::load_bf16(halves.as_ptr()), &|i| crate::tensor::widen(halves[i]));
        for count in 0..=n {
            let part = S::load_n(a.as_ptr(), count);
            want("load_n", part, &|i| if i < count { a[i] } else { 0.0 });
        }
        for count in 0..=n {
            let mut to = [9.0f32; 16];
            S::store_n(to.as_mut_ptr(), va, count);
            for (i, to) in to.iter().enumerate() {
                assert_eq!(*to, if i < count { a[i] } else { 9.0 }, "store_n {count}, lane {i}");
            }
        }
        assert_eq!(S::sum(va), a[..n].iter().sum::<f32>());
        assert_eq!(S::highest(vb), 3.0);
        let mut square: [S::V; 16] = std::array::from_fn(|row| S::splat(row as f32));
        S::transpose(&mut square);
        for row in square.iter().take(n) {
            S::store(out.as_mut_ptr(), *row);
            assert!(out.iter().take(n).enumerate().all(|(i, x)| *x == i as f32), "transpose");
        }
    }
}

#[test]
fn every_instruction_set_of_this_cpu_computes_what_plain_arithmetic_does() {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2() {
        // SAFETY: the features are enabled.
        unsafe { check::<Avx2>() }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    unsafe fn avx512() {
        // SAFETY: the features are enabled.
        unsafe { check::<Avx512>() }
    }
    // SAFETY: what is called was detected.
    unsafe {
        check::<Plain>();
        check::<Wide>();
        #[cfg(target_arch = "x86_64")]
        match detect() {
            Level::Avx512 => {
                avx2();
                avx512();
            }
            Level::Avx2 => avx2(),
            _ => {}
        }
    }
}
