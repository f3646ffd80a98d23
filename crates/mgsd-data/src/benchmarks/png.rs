//! A benchmark's PNG as RGB.

use std::io::Cursor;
use std::path::Path;

use mgsd_tasks::RgbImage;

use crate::{DataError, Result, files};

/// Reads a PNG of any colour type; transparency is dropped.
pub(super) fn read(path: &Path) -> Result<RgbImage> {
    decode(&files::read_bytes(path)?).map_err(|problem| DataError::format(path, "picture", problem))
}

/// The picture of a whole PNG file; an error says what is wrong with it.
pub(crate) fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(|error| format!("not a PNG: {error}"))?;
    let size = reader.output_buffer_size().ok_or_else(|| "too large".to_string())?;
    let mut raw = vec![0; size];
    let frame = reader.next_frame(&mut raw).map_err(|error| format!("broken PNG: {error}"))?;
    raw.truncate(frame.buffer_size());
    let pixels = match frame.color_type {
        png::ColorType::Rgb => raw,
        png::ColorType::Rgba => raw.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
        png::ColorType::Grayscale => raw.iter().flat_map(|&grey| [grey; 3]).collect(),
        png::ColorType::GrayscaleAlpha => raw.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3]).collect(),
        png::ColorType::Indexed => return Err("a palette that does not expand".to_string()),
    };
    Ok(RgbImage { width: frame.width as usize, height: frame.height as usize, pixels })
}
