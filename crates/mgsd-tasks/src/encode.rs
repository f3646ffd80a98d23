//! A picture as a PNG file, for boards: rows repeat, and what is new in a row is mostly runs of one colour.
//!
//! Each row is stored as the difference from the row above or from the pixel to its left, whichever leaves more zeros;
//! a row that repeats costs one comparison. The compressor turns runs of zeros into a few bits.

use std::io::Cursor;

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// Bytes of a pixel.
const PIXEL: usize = 3;
/// Filter types of the PNG specification (section 9.2).
const SUB: u8 = 1;
const UP: u8 = 2;

/// The file of an RGB picture; `pixels` holds `height` rows of `width` pixels.
pub(crate) fn png(width: u32, height: u32, pixels: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut header = Vec::with_capacity(13);
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    // Eight bits, RGB, deflate, the five filters, not interlaced.
    header.extend([8, 2, 0, 0, 0]);
    let data = compressed(width as usize * PIXEL, pixels)?;
    let mut file = Vec::with_capacity(data.len() + 64);
    file.extend(SIGNATURE);
    for (kind, content) in [(b"IHDR", &header), (b"IDAT", &data), (b"IEND", &Vec::new())] {
        push_chunk(&mut file, kind, content);
    }
    Ok(file)
}

fn push_chunk(file: &mut Vec<u8>, kind: &[u8; 4], content: &[u8]) {
    let mut sum = crc32fast::Hasher::new();
    sum.update(kind);
    sum.update(content);
    file.extend((content.len() as u32).to_be_bytes());
    file.extend(kind);
    file.extend(content);
    file.extend(sum.finalize().to_be_bytes());
}

/// The filtered rows as a zlib stream.
fn compressed(row: usize, pixels: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = fdeflate::Compressor::new(Cursor::new(Vec::with_capacity(pixels.len() / 16 + 1024)))?;
    let mut repeated = vec![0; row + 1];
    repeated[0] = UP;
    let (mut up, mut sub) = (repeated.clone(), vec![SUB; row + 1]);
    // The row above the first one counts as zeros.
    let nothing = vec![0; row];
    let mut above: &[u8] = &nothing;
    for line in pixels.chunks_exact(row) {
        if line == above {
            stream.write_data(&repeated)?;
            continue;
        }
        for (out, (new, old)) in up[1..].iter_mut().zip(line.iter().zip(above)) {
            *out = new.wrapping_sub(*old);
        }
        sub[1..=PIXEL].copy_from_slice(&line[..PIXEL]);
        for (out, (new, left)) in sub[1 + PIXEL..].iter_mut().zip(line[PIXEL..].iter().zip(line)) {
            *out = new.wrapping_sub(*left);
        }
        let zeros = |filtered: &[u8]| filtered.iter().filter(|byte| **byte == 0).count();
        stream.write_data(if zeros(&sub) > zeros(&up) { &sub } else { &up })?;
        above = line;
    }
    Ok(stream.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(file: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((frame.color_type, frame.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        (frame.width, frame.height, pixels)
    }

    #[test]
    fn a_decoder_gives_every_pixel_back() {
        let mut state = 1u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for (width, height) in [(1, 1), (2, 3), (5, 4), (257, 7), (64, 64)] {
            let flat = vec![60; width * height * PIXEL];
            let random: Vec<u8> = (0..width * height * PIXEL).map(|_| noise()).collect();
            // Rows that repeat in threes, flat to the right of a step.
            let stepped: Vec<u8> = (0..height)
                .flat_map(|y| (0..width).flat_map(move |x| [if x > y / 3 { 181 } else { 0 }, (y / 3) as u8, 96]))
                .collect();
            for pixels in [flat, random, stepped] {
                let file = png(width as u32, height as u32, &pixels).unwrap();
                assert_eq!(decoded(&file), (width as u32, height as u32, pixels));
            }
        }
    }

    #[test]
    fn a_repeated_row_costs_next_to_nothing() {
        let size = |height: usize| png(100, height as u32, &[181, 143, 96].repeat(100 * height)).unwrap().len();
        // A stored row has 301 bytes.
        assert!(size(200) < size(100) + 6 * 100, "{} and {}", size(100), size(200));
    }
}
