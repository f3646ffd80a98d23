//! A PNG as RGB, resized to a square by Lanczos in Pillow's fixed-point arithmetic, as the published loader does.

use std::io::Cursor;
use std::path::Path;

use mgsd_tasks::RgbImage;

use crate::{DataError, Result, files};

/// Bits behind the point of a quantised weight.
const WEIGHT_BITS: u32 = 22;

/// Reads a PNG of any colour type; transparency is dropped.
pub(super) fn read_png(path: &Path) -> Result<RgbImage> {
    let bytes = files::read_bytes(path)?;
    let broken = |problem: String| DataError::format(path, "picture", problem);
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(|error| broken(format!("not a PNG: {error}")))?;
    let size = reader.output_buffer_size().ok_or_else(|| broken("too large".to_string()))?;
    let mut raw = vec![0; size];
    let frame = reader.next_frame(&mut raw).map_err(|error| broken(format!("broken PNG: {error}")))?;
    raw.truncate(frame.buffer_size());
    let pixels = match frame.color_type {
        png::ColorType::Rgb => raw,
        png::ColorType::Rgba => raw.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
        png::ColorType::Grayscale => raw.iter().flat_map(|&grey| [grey; 3]).collect(),
        png::ColorType::GrayscaleAlpha => raw.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3]).collect(),
        png::ColorType::Indexed => return Err(broken("a palette that does not expand".to_string())),
    };
    Ok(RgbImage { width: frame.width as usize, height: frame.height as usize, pixels })
}

/// Resizes to a square: across first, then down; each pass rounds to bytes, and one that changes nothing is left out.
pub(super) fn to_square(mut image: RgbImage, side: usize) -> RgbImage {
    if image.width != side {
        let taps = taps(image.width, side);
        let rows = image.pixels.chunks_exact(image.width * 3);
        image.pixels = rows.flat_map(|row| taps.iter().flat_map(|taps| mix(taps, |index| &row[index * 3..]))).collect();
        image.width = side;
    }
    if image.height != side {
        let stride = side * 3;
        let taps = taps(image.height, side);
        let source = &image.pixels;
        image.pixels = taps
            .iter()
            .flat_map(|taps| (0..side).flat_map(move |x| mix(taps, |index| &source[index * stride + x * 3..])))
            .collect();
        image.height = side;
    }
    image
}

/// The source pixels of one output pixel: the first one's index, and a weight for each.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// The weighted sum of pixels in three channels.
fn mix<'a>(taps: &Taps, pixel: impl Fn(usize) -> &'a [u8]) -> [u8; 3] {
    let mut sums = [1i32 << (WEIGHT_BITS - 1); 3];
    for (offset, weight) in taps.weights.iter().enumerate() {
        let pixel = pixel(taps.first + offset);
        for (sum, channel) in sums.iter_mut().zip(pixel) {
            *sum += weight * i32::from(*channel);
        }
    }
    sums.map(|sum| (sum >> WEIGHT_BITS).clamp(0, 255) as u8)
}

/// Lanczos weights along one axis, the kernel stretched when the picture shrinks.
fn taps(source: usize, target: usize) -> Vec<Taps> {
    let scale = source as f64 / target as f64;
    let stretch = scale.max(1.0);
    let support = 3.0 * stretch;
    (0..target)
        .map(|index| {
            let centre = (index as f64 + 0.5) * scale;
            // Casts towards zero, as the C code does; a negative start is clamped.
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(source);
            let raw: Vec<f64> = (first..end).map(|at| lanczos((at as f64 - centre + 0.5) / stretch)).collect();
            let sum: f64 = raw.iter().sum();
            let unit = f64::from(1u32 << WEIGHT_BITS);
            Taps {
                first,
                // `round` goes half away from zero, which is what Pillow does here.
                weights: raw.iter().map(|weight| (weight / sum * unit).round() as i32).collect(),
            }
        })
        .collect()
}

fn lanczos(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    if !(-3.0..3.0).contains(&x) {
        return 0.0;
    }
    let angle = x * std::f64::consts::PI;
    3.0 * angle.sin() * (angle / 3.0).sin() / (angle * angle)
}
