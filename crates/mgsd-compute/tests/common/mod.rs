//! What the tests share: numbers, plain f64 formulas' derivatives, comparison.
#![allow(dead_code)] // Each test file uses a part.

use std::sync::Arc;

use mgsd_compute::Tensor;

/// Repeatable numbers, about normal.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1u64 << 31) as f64
    }

    pub fn next(&mut self) -> f64 {
        f64::from((0..6).map(|_| self.uniform()).sum::<f64>() as f32 - 3.0) * 1.4
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.uniform() * bound as f64) as usize
    }

    pub fn vec(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| f64::from(self.next() as f32)).collect()
    }
}

pub fn tensor(rows: usize, cols: usize, data: &[f64]) -> Tensor {
    Tensor::from_vec(rows, cols, data.iter().map(|x| *x as f32).collect())
}

/// A mapped matrix with the numbers cut to bf16, and the numbers.
pub fn bf16(rows: usize, cols: usize, data: &[f64]) -> (Tensor, Vec<f64>) {
    let bits: Vec<u16> = data.iter().map(|x| ((*x as f32).to_bits() >> 16) as u16).collect();
    let mut bytes = vec![0u8; 8];
    bytes.extend(bits.iter().flat_map(|x| x.to_ne_bytes()));
    let exact = bits.iter().map(|x| f64::from(f32::from_bits(u32::from(*x) << 16))).collect();
    (Tensor::from_mapped_bf16(Arc::new(bytes), 8, rows, cols), exact)
}

/// Central differences of `f` at `x`.
pub fn slope(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let here = x[i];
            x[i] = here + STEP;
            let above = f(&x);
            x[i] = here - STEP;
            let below = f(&x);
            x[i] = here;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Every number within `tolerance` times the largest wanted (or 1).
#[track_caller]
pub fn close(name: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{name}: lengths");
    let scale = want.iter().fold(1.0f64, |top, x| top.max(x.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*got) - want).abs();
        assert!(off <= tolerance * scale, "{name}[{i}]: got {got}, want {want}, off by {off:.2e} of {scale:.2e}");
    }
}

#[track_caller]
pub fn same(name: &str, got: &Tensor, want: &[f64], tolerance: f64) {
    close(name, &got.to_vec(), want, tolerance);
}

pub fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
