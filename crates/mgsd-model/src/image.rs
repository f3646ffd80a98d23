//! Pictures from files, bytes or data URLs, and the image processor of a model folder.

use std::{
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::Engine as _;
use image::{DynamicImage, ImageDecoder as _, ImageReader};

use crate::{
    config::{Section, read_json},
    error::{Error, Result},
    patches::{self, Grid, ImagePatches, PatchLayout},
    resize::{bicubic, smart_resize},
};

/// A decoded picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes, row-major.
    pub pixels: Vec<u8>,
}

/// Where a picture comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageSource {
    /// A PNG or JPEG file.
    Path(PathBuf),
    /// The bytes of a PNG or JPEG file.
    Bytes(Arc<[u8]>),
    /// A picture decoded or drawn already.
    Rgb(Arc<RgbImage>),
    /// A picture that went through an [`ImageProcessor`] already.
    Patches(Arc<ImagePatches>),
}

impl ImageSource {
    /// What an OpenAI-style `image_url` means: a data URL, a `file://` URL, an absolute path, or a path relative to
    /// `base`.
    pub fn from_url(url: &str, base: &Path) -> Result<Self> {
        if let Some(data) = url.strip_prefix("data:") {
            let wrong = |problem: String| Error::Image { origin: "data URL".into(), problem };
            let Some((kind, data)) = data.split_once(',') else {
                return Err(wrong("has no comma; expected data:image/png;base64,...".into()));
            };
            if !kind.ends_with(";base64") {
                return Err(wrong(format!("of kind {kind:?}; expected base64, as in data:image/png;base64,...")));
            }
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(data.trim())
                .map_err(|problem| wrong(format!("is not valid base64: {problem}")))?;
            return Ok(ImageSource::Bytes(bytes.into()));
        }
        if url.starts_with("http://") || url.starts_with("https://") {
            return Err(Error::Image {
                origin: url.into(),
                problem: "is not fetched from the network; download it and give its path or a data URL".into(),
            });
        }
        Ok(ImageSource::Path(base.join(url.strip_prefix("file://").unwrap_or(url))))
    }
}

impl RgbImage {
    /// Reads a PNG or JPEG file.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
        Self::decode(&bytes, &path.display().to_string())
    }

    /// Decodes a PNG or JPEG, turned as its EXIF orientation says. Gray is replicated; a transparent picture is laid
    /// on white. `origin` is named in errors.
    pub fn decode(bytes: &[u8], origin: &str) -> Result<Self> {
        let decoded = || -> image::ImageResult<DynamicImage> {
            let mut decoder = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?.into_decoder()?;
            let orientation = decoder.orientation()?;
            let mut image = DynamicImage::from_decoder(decoder)?;
            image.apply_orientation(orientation);
            Ok(image)
        };
        let image = decoded().map_err(|problem| Error::Image {
            origin: origin.into(),
            problem: format!("cannot be decoded: {problem}; expected a PNG or JPEG"),
        })?;
        // The decoder makes up what a JPEG lacks.
        if bytes.starts_with(&[0xff, 0xd8]) && !jpeg_ends(bytes) {
            return Err(Error::Image { origin: origin.into(), problem: "is cut short; copy it again".into() });
        }
        let (width, height) = (image.width() as usize, image.height() as usize);
        let image = bytes_of_colours(image);
        let pixels =
            if image.color().has_alpha() { on_white(&image.into_rgba8()) } else { image.into_rgb8().into_raw() };
        Ok(Self { width, height, pixels })
    }
}

/// Colours of 16 bits become the byte on top, as in Pillow, where `image` would round. Plain gray is left to it: Pillow clips
/// that at 255.
fn bytes_of_colours(image: DynamicImage) -> DynamicImage {
    let top = |level: u16| (level >> 8) as u8;
    match image {
        DynamicImage::ImageRgb16(wide) => {
            DynamicImage::ImageRgb8(image::ImageBuffer::from_fn(wide.width(), wide.height(), |x, y| {
                image::Rgb(wide.get_pixel(x, y).0.map(top))
            }))
        }
        DynamicImage::ImageRgba16(wide) => {
            DynamicImage::ImageRgba8(image::ImageBuffer::from_fn(wide.width(), wide.height(), |x, y| {
                image::Rgba(wide.get_pixel(x, y).0.map(top))
            }))
        }
        DynamicImage::ImageLumaA16(wide) => {
            DynamicImage::ImageLumaA8(image::ImageBuffer::from_fn(wide.width(), wide.height(), |x, y| {
                image::LumaA(wide.get_pixel(x, y).0.map(top))
            }))
        }
        other => other,
    }
}

/// Whether a JPEG has its end (ITU T.81, B.1): segments of a length of their own, and after each start of a scan data in which
/// a byte 0xff is followed by 0 or by a restart's number.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[mark, kind]) = bytes.get(at..at + 2) {
        match (mark, kind) {
            (0xff, 0xd9) => return true,
            // Filling bytes, and markers without a length.
            (0xff, 0xff) => at += 1,
            (0xff, 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, kind) if kind != 0 => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                if kind == 0xda {
                    let next = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7);
                    let Some(length) = bytes.get(at..).and_then(|rest| rest.windows(2).position(next)) else {
                        return false;
                    };
                    at += length;
                }
            }
            // Bytes that belong to nothing, which decoders skip.
            _ => at += 1,
        }
    }
    false
}

/// Pillow's `alpha_composite` over opaque white, in its own integer arithmetic.
fn on_white(rgba: &[u8]) -> Vec<u8> {
    let blend = |byte: u8, alpha: u8| {
        let (byte, alpha) = (u32::from(byte), u32::from(alpha));
        // The sum over 255, rounded, with seven extra bits.
        let sum = ((byte * alpha + 255 * (255 - alpha)) << 7) + (0x80 << 7);
        (((sum >> 8) + sum) >> 15) as u8
    };
    let (pixels, _) = rgba.as_chunks::<4>();
    pixels.iter().flat_map(|&[r, g, b, alpha]| [blend(r, alpha), blend(g, alpha), blend(b, alpha)]).collect()
}

/// Bounds on the number of pixels after resizing that replace those of the model folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PixelLimits {
    /// Smaller pictures are enlarged to at least so many pixels.
    pub min_pixels: Option<usize>,
    /// Larger pictures are reduced to at most so many pixels.
    pub max_pixels: Option<usize>,
}

/// Makes patches of pictures, as the model folder's `processor_config.json` or `preprocessor_config.json` says.
#[derive(Clone, Debug)]
pub struct ImageProcessor {
    layout: PatchLayout,
    min_pixels: usize,
    max_pixels: usize,
    /// The normalised value of each byte by channel.
    levels: Box<[[f32; 256]; 3]>,
}

impl ImageProcessor {
    /// Reads the settings of a model folder; `limits` replace its own where given.
    pub fn open(dir: &Path, limits: PixelLimits) -> Result<Self> {
        let gathered = dir.join("processor_config.json");
        if gathered.is_file() {
            let root = read_json(&gathered)?;
            let top = Section { path: &gathered, name: "", value: &root };
            if top.get("image_processor").is_some() {
                return Self::from_section(&top.section("image_processor")?, limits);
            }
        }
        let path = dir.join("preprocessor_config.json");
        if !path.is_file() {
            return Err(Error::Folder {
                path: dir.into(),
                problem: "holds neither preprocessor_config.json nor a processor_config.json with image_processor"
                    .into(),
            });
        }
        let root = read_json(&path)?;
        Self::from_section(&Section { path: &path, name: "", value: &root }, limits)
    }

    fn from_section(section: &Section, limits: PixelLimits) -> Result<Self> {
        for key in ["do_resize", "do_rescale", "do_normalize"] {
            if !section.flag(key, true)? {
                return Err(section.wrong(key, "is false; only true is supported".into()));
            }
        }
        if let Some(resample) = section.get("resample").filter(|value| value.as_u64() != Some(3)) {
            return Err(section.wrong("resample", format!("is {resample}; only 3 (bicubic) is supported")));
        }
        let layout = PatchLayout {
            patch_size: section.size("patch_size")?,
            temporal_patch_size: section.size("temporal_patch_size")?,
            merge_size: section.size("merge_size")?,
        };
        let bound = |given: Option<usize>, own: &str, edge: &str| match given {
            Some(pixels) => Ok(pixels),
            None if section.get(own).is_some() => section.size(own),
            None => {
                let size = section.value.get("size").and_then(|size| size.get(edge));
                let pixels = size.and_then(|value| value.as_u64()).filter(|&pixels| pixels > 0);
                pixels.map(|pixels| pixels as usize).ok_or_else(|| {
                    let found = size.map_or("missing".to_string(), ToString::to_string);
                    section
                        .wrong(&format!("size.{edge}"), format!("is {found}; expected a number of pixels (or {own})"))
                })
            }
        };
        let min_pixels = bound(limits.min_pixels, "min_pixels", "shortest_edge")?;
        let max_pixels = bound(limits.max_pixels, "max_pixels", "longest_edge")?;
        if min_pixels > max_pixels {
            return Err(section.wrong(
                "size",
                format!("allows at least {min_pixels} and at most {max_pixels} pixels; the first must not be larger"),
            ));
        }
        if max_pixels < layout.factor().pow(2) {
            let least = layout.factor().pow(2);
            return Err(section.wrong("size", format!("allows at most {max_pixels} pixels; one token needs {least}")));
        }
        let scale = match section.get("rescale_factor") {
            None => 1.0 / 255.0,
            Some(value) => value.as_f64().filter(|&factor| factor > 0.0).ok_or_else(|| {
                section.wrong("rescale_factor", format!("is {value}; expected a positive number, such as 1/255"))
            })?,
        };
        let mean = three(section, "image_mean")?;
        let deviation = three(section, "image_std")?;
        let mut levels = Box::new([[0.0; 256]; 3]);
        for ((levels, mean), deviation) in levels.iter_mut().zip(mean).zip(deviation) {
            // In the order and the precisions of the Pillow processor of transformers, for the same bits.
            let (mean, deviation) = (mean as f32, deviation as f32);
            let level = |byte: usize| ((byte as f64 * scale) as f32 - mean) / deviation;
            levels.iter_mut().enumerate().for_each(|(byte, out)| *out = level(byte));
        }
        Ok(Self { layout, min_pixels, max_pixels, levels })
    }

    /// How pictures are cut.
    pub fn layout(&self) -> PatchLayout {
        self.layout
    }

    /// The least and the greatest number of pixels after resizing.
    pub fn pixel_limits(&self) -> (usize, usize) {
        (self.min_pixels, self.max_pixels)
    }

    /// The grid of a picture of `height` x `width` pixels, without making it.
    pub fn grid(&self, height: usize, width: usize) -> Result<Grid> {
        let (height, width) = smart_resize(height, width, self.layout.factor(), self.min_pixels, self.max_pixels)?;
        Ok(Grid { t: 1, h: height / self.layout.patch_size, w: width / self.layout.patch_size })
    }

    /// The picture brought to the size that the model reads, still as bytes.
    pub fn resize(&self, image: &RgbImage) -> Result<RgbImage> {
        let (height, width) =
            smart_resize(image.height, image.width, self.layout.factor(), self.min_pixels, self.max_pixels)?;
        let pixels = bicubic(&image.pixels, (image.height, image.width), (height, width));
        Ok(RgbImage { width, height, pixels })
    }

    /// Resizes, normalises and cuts a picture.
    pub fn process(&self, image: &RgbImage) -> Result<ImagePatches> {
        let resized = self.resize(image)?;
        Ok(patches::cut(&resized.pixels, resized.height, resized.width, &self.layout, &self.levels))
    }

    /// Loads and processes a picture from wherever it comes.
    pub fn load(&self, source: &ImageSource) -> Result<Arc<ImagePatches>> {
        let image = match source {
            ImageSource::Patches(patches) => return Ok(Arc::clone(patches)),
            ImageSource::Rgb(image) => return Ok(Arc::new(self.process(image)?)),
            ImageSource::Path(path) => RgbImage::open(path)?,
            ImageSource::Bytes(bytes) => RgbImage::decode(bytes, "given as bytes")?,
        };
        Ok(Arc::new(self.process(&image)?))
    }
}

fn three(section: &Section, key: &str) -> Result<[f64; 3]> {
    let list = section.get(key).and_then(|value| value.as_array());
    let numbers: Option<Vec<f64>> = list.and_then(|list| list.iter().map(|value| value.as_f64()).collect());
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| {
        let found = section.get(key).map_or("missing".to_string(), ToString::to_string);
        section.wrong(key, format!("is {found}; expected three numbers"))
    })
}
