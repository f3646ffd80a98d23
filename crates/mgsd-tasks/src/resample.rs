//! Lanczos resizing in Pillow's fixed-point arithmetic, bit for bit.

/// Fraction bits of a quantised weight.
const BITS: u32 = 22;
const HALF: i32 = 1 << (BITS - 1);

/// The source pixels and weights of one output pixel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Taps {
    /// First source pixel.
    pub first: usize,
    /// Quantised weights.
    pub weights: Vec<i32>,
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| {
        if x == 0.0 {
            return 1.0;
        }
        let x = x * std::f64::consts::PI;
        x.sin() / x
    };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

/// The taps of every output pixel along one axis.
pub(crate) fn taps(source: usize, target: usize) -> Vec<Taps> {
    let scale = source as f64 / target as f64;
    let stretch = scale.max(1.0);
    let support = 3.0 * stretch;
    let narrow = 1.0 / stretch;
    let one = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        let first = ((center - support + 0.5) as i64).max(0) as usize;
        let end = ((center + support + 0.5) as i64).clamp(0, source as i64) as usize;
        let raw: Vec<f64> = (first..end).map(|x| lanczos((x as f64 - center + 0.5) * narrow)).collect();
        let sum: f64 = raw.iter().sum();
        let quantise = |w: f64| {
            let w = if sum != 0.0 { w / sum } else { w } * f64::from(1 << BITS);
            (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32
        };
        Taps { first, weights: raw.into_iter().map(quantise).collect() }
    };
    (0..target).map(one).collect()
}

fn to_byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Resizes interleaved 8-bit channels: rows first, then columns, each pass rounded to bytes.
///
/// `horizontal` and `vertical` hold the taps of the output pixels wanted; `None` copies that axis.
pub(crate) fn resize<const CHANNELS: usize>(
    source: &[u8],
    width: usize,
    horizontal: Option<&[Taps]>,
    vertical: Option<&[Taps]>,
) -> Vec<u8> {
    let stride = width * CHANNELS;
    let rows = source.len() / stride;
    let mut wide = Vec::new();
    let (passed, stride) = match horizontal {
        None => (source, stride),
        Some(taps) => {
            wide.resize(rows * taps.len() * CHANNELS, 0);
            let lines = wide.chunks_exact_mut(taps.len() * CHANNELS);
            for (line, row) in lines.zip(source.chunks_exact(stride)) {
                for (pixel, taps) in line.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(taps) {
                    let mut sums = [HALF; CHANNELS];
                    let from = row[taps.first * CHANNELS..].as_chunks::<CHANNELS>().0;
                    for (pixel, weight) in from.iter().zip(&taps.weights) {
                        for c in 0..CHANNELS {
                            sums[c] += i32::from(pixel[c]) * weight;
                        }
                    }
                    *pixel = sums.map(to_byte);
                }
            }
            (wide.as_slice(), taps.len() * CHANNELS)
        }
    };
    let Some(taps) = vertical else { return passed.to_vec() };
    let mut out = vec![0; taps.len() * stride];
    let mut sums = vec![0_i32; stride];
    for (line, taps) in out.chunks_exact_mut(stride).zip(taps) {
        sums.fill(HALF);
        for (row, weight) in passed[taps.first * stride..].chunks_exact(stride).zip(&taps.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (byte, sum) in line.iter_mut().zip(&sums) {
            *byte = to_byte(*sum);
        }
    }
    out
}

/// Resizes a square picture with transparency; colours are weighted by their opacity.
pub(crate) fn resize_rgba(source: &[u8], side: usize, target: usize) -> Vec<u8> {
    if side == target {
        return source.to_vec();
    }
    let weigh = |c: u8, a: u8| {
        let t = u32::from(c) * u32::from(a) + 128;
        (((t >> 8) + t) >> 8) as u8
    };
    let unweigh = |c: u8, a: u8| (255 * u32::from(c) / u32::from(a)).min(255) as u8;
    let weighed: Vec<u8> = (source.as_chunks::<4>().0.iter())
        .flat_map(|&[r, g, b, a]| [weigh(r, a), weigh(g, a), weigh(b, a), a])
        .collect();
    let taps = taps(side, target);
    let mut out = resize::<4>(&weighed, side, Some(&taps), Some(&taps));
    for pixel in out.as_chunks_mut::<4>().0 {
        let a = pixel[3];
        if a != 0 && a != 255 {
            for c in &mut pixel[..3] {
                *c = unweigh(*c, a);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat_at_every_scale() {
        for (source, target) in [(64, 32), (32, 64), (192, 256), (500, 256), (7, 100)] {
            let taps = taps(source, target);
            let flat = vec![181; source * source * 3];
            let out = resize::<3>(&flat, source, Some(&taps), Some(&taps));
            assert_eq!(out, vec![181; target * target * 3]);
        }
    }
}
