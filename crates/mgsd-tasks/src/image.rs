//! An RGB picture in memory and its PNG form.

use crate::{Error, Result, resample};
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// A picture of 8-bit red, green and blue, rows from the top, no padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub pixels: Vec<u8>,
}

impl RgbImage {
    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, color: [u8; 3]) -> Self {
        let pixels = if color[0] == color[1] && color[1] == color[2] {
            vec![color[0]; width * height * 3]
        } else {
            color.repeat(width * height)
        };
        Self { width, height, pixels }
    }

    /// The colour of a pixel inside the picture.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let i = (y * self.width + x) * 3;
        [self.pixels[i], self.pixels[i + 1], self.pixels[i + 2]]
    }

    /// Resized to a square by Lanczos in Pillow's fixed-point arithmetic: across first, then down, each pass rounded to
    /// bytes; a pass that changes nothing is left out.
    pub fn resized(&self, side: usize) -> Self {
        let horizontal = (self.width != side).then(|| resample::taps(self.width, side));
        let vertical = (self.height != side).then(|| resample::taps(self.height, side));
        let pixels = resample::resize::<3>(&self.pixels, self.width, horizontal.as_deref(), vertical.as_deref());
        Self { width: side, height: side, pixels }
    }

    /// The picture as a PNG file, compressed for speed.
    ///
    /// # Errors
    /// When a side is 0 or the pixels do not fill the picture.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        let fail =
            |e: png::EncodingError| Error::Image { path: PathBuf::from("(PNG in memory)"), problem: e.to_string() };
        let mut bytes = Vec::with_capacity(self.pixels.len() / 4 + 1024);
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        // Boards repeat row by row, so the row above predicts best, and without a search.
        encoder.set_filter(png::Filter::Up);
        let mut writer = encoder.write_header().map_err(fail)?;
        writer.write_image_data(&self.pixels).map_err(fail)?;
        writer.finish().map_err(fail)?;
        Ok(bytes)
    }
}

/// A picture with transparency: width, height and RGBA bytes.
pub(crate) struct RgbaImage {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<u8>,
}

/// Reads a PNG of any colour type as RGBA.
pub(crate) fn read_rgba_png(path: &Path) -> Result<RgbaImage> {
    let fail = |problem: String| Error::Image { path: path.to_owned(), problem };
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8() | png::Transformations::ALPHA);
    let mut reader = decoder.read_info().map_err(|e| fail(e.to_string()))?;
    let size = reader.output_buffer_size().ok_or_else(|| fail("is too large".to_owned()))?;
    let mut raw = vec![0; size];
    let frame = reader.next_frame(&mut raw).map_err(|e| fail(e.to_string()))?;
    raw.truncate(frame.buffer_size());
    let pixels = match frame.color_type {
        png::ColorType::Rgba => raw,
        png::ColorType::GrayscaleAlpha => raw.chunks_exact(2).flat_map(|p| [p[0], p[0], p[0], p[1]]).collect(),
        other => return Err(fail(format!("has the colour type {other:?}, expected one that converts to RGBA"))),
    };
    Ok(RgbaImage { width: frame.width as usize, height: frame.height as usize, pixels })
}
