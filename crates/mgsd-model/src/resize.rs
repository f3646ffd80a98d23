//! Pillow's bicubic resampling with antialiasing, bit for bit, and the rule for the size of a picture.
//!
//! Pillow works on bytes with 22-bit fixed-point weights and rounds to bytes after each of its two passes, the
//! horizontal one first (releases up to 12; release 13 sometimes swaps them). Pictures with hard edges come out
//! visibly different under floating-point resampling, and models were trained on Pillow's.

use pulp::Arch;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Fractional bits of a weight.
const PRECISION: u32 = 22;
/// Rows that the horizontal pass treats side by side.
const LANE_ROWS: usize = 16;
/// Bytes that a pass accumulates at once; a multiple of the longest vector register.
const STRIP: usize = 3 * LANE_ROWS;
/// The longest side ratio that is accepted.
const MAX_ASPECT: f64 = 200.0;

/// The size `(height, width)` to which a picture is brought: both sides multiples of `factor`, about the same shape,
/// and between `min_pixels` and `max_pixels` in all.
///
/// Halves round to the even multiple. An error if one side is more than 200 times the other.
pub fn smart_resize(
    height: usize,
    width: usize,
    factor: usize,
    min_pixels: usize,
    max_pixels: usize,
) -> Result<(usize, usize)> {
    let wrong = |problem: String| Error::Image { origin: format!("of {height}x{width} pixels"), problem };
    if height == 0 || width == 0 {
        return Err(wrong("has no pixels".into()));
    }
    let (h, w, unit) = (height as f64, width as f64, factor as f64);
    let aspect = h.max(w) / h.min(w);
    if aspect > MAX_ASPECT {
        return Err(wrong(format!("has an aspect ratio of {aspect}; at most {MAX_ASPECT} is possible, crop it first")));
    }
    let nearest = |side: f64| (side / unit).round_ties_even() as usize * factor;
    let (near_h, near_w) = (nearest(h), nearest(w));
    if near_h * near_w > max_pixels {
        let beta = (h * w / max_pixels as f64).sqrt();
        let shrink = |side: f64| ((side / beta / unit).floor() as usize * factor).max(factor);
        return Ok((shrink(h), shrink(w)));
    }
    if near_h * near_w < min_pixels {
        let beta = (min_pixels as f64 / (h * w)).sqrt();
        let grow = |side: f64| (side * beta / unit).ceil() as usize * factor;
        return Ok((grow(h), grow(w)));
    }
    Ok((near_h, near_w))
}

/// Resamples an RGB picture of `from` = (height, width) to `to` = (height, width); three bytes a pixel, row-major.
pub fn bicubic(rgb: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    assert_eq!(
        rgb.len(),
        from.0 * from.1 * 3,
        "a picture of {}x{} needs {} bytes",
        from.0,
        from.1,
        from.0 * from.1 * 3
    );
    let across = if from.1 == to.1 { None } else { Some(horizontal(rgb, from, to.1)) };
    let rgb = across.as_deref().unwrap_or(rgb);
    if from.0 == to.0 { rgb.to_vec() } else { vertical(rgb, from.0, to) }
}

/// Which input samples make up one output sample.
struct Taps {
    /// First input sample.
    first: usize,
    /// Its weight and those of the following samples.
    weights: Vec<i32>,
}

fn taps(input: usize, output: usize) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let make = |index: usize| {
        let centre = (index as f64 + 0.5) * scale;
        // `as` cuts towards zero and at zero, as the clipping to the picture demands.
        let first = (centre - support + 0.5) as usize;
        let end = ((centre + support + 0.5) as usize).min(input);
        let inverse = 1.0 / stretch;
        let mut weights: Vec<f64> = (first..end).map(|at| cubic((at as f64 - centre + 0.5) * inverse)).collect();
        let sum: f64 = weights.iter().sum();
        if sum != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        let one = f64::from(1u32 << PRECISION);
        // Half away from zero.
        let weights = weights.iter().map(|weight| (weight * one + 0.5f64.copysign(*weight)) as i32).collect();
        Taps { first, weights }
    };
    (0..output).map(make).collect()
}

/// The cubic kernel with a = -1/2.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Sixteen rows at a time, turned so that what the vector units add up lies side by side: byte `3 * row + channel`.
fn horizontal(rgb: &[u8], (_, width): (usize, usize), out_width: usize) -> Vec<u8> {
    let taps = taps(width, out_width);
    let mut out = vec![0u8; rgb.len() / width * out_width];
    let blocks = out.par_chunks_mut(LANE_ROWS * out_width * 3).zip(rgb.par_chunks(LANE_ROWS * width * 3));
    blocks.for_each_init(
        || vec![[0u8; STRIP]; width],
        |turned, (out, rgb)| {
            Arch::new().dispatch(|| {
                for (row, line) in rgb.chunks_exact(width * 3).enumerate() {
                    for (pixel, lanes) in line.as_chunks::<3>().0.iter().zip(turned.iter_mut()) {
                        lanes[row * 3..row * 3 + 3].copy_from_slice(pixel);
                    }
                }
                let rows = rgb.len() / (width * 3);
                for (x, taps) in taps.iter().enumerate() {
                    let sources = &turned[taps.first..taps.first + taps.weights.len()];
                    let strip = weighted(sources.iter(), &taps.weights);
                    for row in 0..rows {
                        let at = (row * out_width + x) * 3;
                        out[at..at + 3].copy_from_slice(&strip[row * 3..row * 3 + 3]);
                    }
                }
            });
        },
    );
    out
}

fn vertical(rgb: &[u8], height: usize, (out_height, width): (usize, usize)) -> Vec<u8> {
    let taps = taps(height, out_height);
    let row = width * 3;
    let mut out = vec![0u8; out_height * row];
    out.par_chunks_mut(row).zip(&taps).with_min_len(8).for_each(|(out, taps)| {
        Arch::new().dispatch(|| {
            let sources = &rgb[taps.first * row..(taps.first + taps.weights.len()) * row];
            let (strips, rest) = out.as_chunks_mut::<STRIP>();
            let whole = strips.len() * STRIP;
            for (index, strip) in strips.iter_mut().enumerate() {
                let rows = sources.chunks_exact(row).map(|line| {
                    let Some(strip) = line[index * STRIP..].first_chunk() else { unreachable!("a whole strip") };
                    strip
                });
                *strip = weighted(rows, &taps.weights);
            }
            for (at, byte) in rest.iter_mut().enumerate() {
                let column = sources.chunks_exact(row).zip(&taps.weights);
                *byte = to_byte(column.fold(HALF, |sum, (line, weight)| sum + i32::from(line[whole + at]) * weight));
            }
        });
    });
    out
}

/// Half a byte step, so that the final shift rounds.
const HALF: i32 = 1 << (PRECISION - 1);

#[inline(always)]
fn weighted<'a>(sources: impl Iterator<Item = &'a [u8; STRIP]>, weights: &[i32]) -> [u8; STRIP] {
    let mut sums = [HALF; STRIP];
    for (source, weight) in sources.zip(weights) {
        for (sum, &byte) in sums.iter_mut().zip(source) {
            *sum += i32::from(byte) * weight;
        }
    }
    sums.map(to_byte)
}

#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}
