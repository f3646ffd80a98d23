//! The configuration of a model folder: `config.json` and `generation_config.json`.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// The sizes and settings of a Qwen3-VL model, as its folder states them.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The decoder.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// Whether the output projection is the token embedding.
    pub tie_word_embeddings: bool,
    /// The token that an image's features replace.
    pub image_token_id: u32,
    /// The token before an image.
    pub vision_start_token_id: u32,
    /// The token after an image.
    pub vision_end_token_id: u32,
    /// The tokens that end a response (`generation_config.json`, else `config.json`).
    pub eos_token_ids: Vec<u32>,
    /// The type in which the folder wants its weights written.
    pub dtype: WeightDtype,
}

/// The type of weights on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32-bit IEEE floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
}

/// The text decoder. Field names are those of `text_config`.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; heads times this need not be `hidden_size`.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Frequencies that belong to time, height, width (interleaved); sums to `head_dim / 2`.
    pub mrope_section: [usize; 3],
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
}

/// The vision tower. Field names are those of `vision_config`.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Width after merging: the decoder's `hidden_size`.
    pub out_hidden_size: usize,
    /// Entries of the learned position table, a square number.
    pub num_position_embeddings: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames in a patch.
    pub temporal_patch_size: usize,
    /// Side of the block of patches that becomes one token.
    pub spatial_merge_size: usize,
    /// Colour channels.
    pub in_channels: usize,
    /// Blocks whose outputs feed decoder layers 0, 1, 2, ….
    pub deepstack_visual_indexes: Vec<usize>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
}

impl VisionConfig {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// Side of the learned position table.
    pub fn position_side(&self) -> usize {
        self.num_position_embeddings.isqrt()
    }

    /// Numbers in one patch.
    pub fn patch_len(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Patches in one token.
    pub fn merge_unit(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }
}

impl TextConfig {
    /// Width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

impl Config {
    /// Reads `config.json` (published layout and that of transformers 5) and, if there is one,
    /// `generation_config.json` of a model folder.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let root = read_json(&path)?;
        let generation_path = dir.join("generation_config.json");
        let generation = if generation_path.is_file() { Some(read_json(&generation_path)?) } else { None };
        Self::from_json(&path, &root, generation.as_ref().map(|value| (generation_path.as_path(), value)))
    }

    /// The configuration in `root`; `path` is named in errors.
    pub fn from_json(path: &Path, root: &Value, generation: Option<(&Path, &Value)>) -> Result<Self> {
        let top = Section { path, name: "", value: root };
        top.expect_text("model_type", &["qwen3_vl"])?;
        let text_section = top.section("text_config")?;
        let text = read_text(&text_section)?;
        let vision = read_vision(&top.section("vision_config")?)?;
        if vision.out_hidden_size != text.hidden_size {
            return Err(top.wrong(
                "vision_config.out_hidden_size",
                format!(
                    "is {}, but text_config.hidden_size is {}; they must be equal",
                    vision.out_hidden_size, text.hidden_size
                ),
            ));
        }
        if vision.deepstack_visual_indexes.len() > text.num_hidden_layers {
            return Err(top.wrong(
                "vision_config.deepstack_visual_indexes",
                format!(
                    "has {} entries, but the decoder has only {} layers to feed",
                    vision.deepstack_visual_indexes.len(),
                    text.num_hidden_layers
                ),
            ));
        }
        let from_generation = match generation {
            Some((path, value)) => Section { path, name: "", value }.token_ids("eos_token_id")?,
            None => Vec::new(),
        };
        let mut eos_token_ids = from_generation;
        for section in [&top, &text_section] {
            if eos_token_ids.is_empty() {
                eos_token_ids = section.token_ids("eos_token_id")?;
            }
        }
        let config = Config {
            tie_word_embeddings: top.flag("tie_word_embeddings", false)?,
            image_token_id: top.token_id("image_token_id")?,
            vision_start_token_id: top.token_id("vision_start_token_id")?,
            vision_end_token_id: top.token_id("vision_end_token_id")?,
            eos_token_ids,
            dtype: read_dtype(&top, &text_section)?,
            text,
            vision,
        };
        for (field, id) in [
            ("image_token_id", config.image_token_id),
            ("vision_start_token_id", config.vision_start_token_id),
            ("vision_end_token_id", config.vision_end_token_id),
        ] {
            if id as usize >= config.text.vocab_size {
                return Err(top.wrong(
                    field,
                    format!("is {id}, but text_config.vocab_size is {}; it must be smaller", config.text.vocab_size),
                ));
            }
        }
        Ok(config)
    }
}

fn read_text(section: &Section) -> Result<TextConfig> {
    section.expect_text("model_type", &["qwen3_vl_text", "qwen3_vl"])?;
    section.expect_text("hidden_act", &["silu"])?;
    if section.flag("attention_bias", false)? {
        return Err(section.wrong("attention_bias", "is true; only false is supported, as in every Qwen3-VL".into()));
    }
    let Some(rope) = read_rope(section, &["default", "mrope"])? else {
        return Err(section.wrong("rope_scaling", "is missing (or rope_parameters); it must hold mrope_section".into()));
    };
    let rope_theta = rope.theta.map_or_else(|| section.number("rope_theta"), Ok)?;
    let rope = rope.place;
    let hidden_size = section.size("hidden_size")?;
    let num_attention_heads = section.size("num_attention_heads")?;
    let num_key_value_heads = section.size("num_key_value_heads")?;
    let head_dim =
        if section.get("head_dim").is_some() { section.size("head_dim")? } else { hidden_size / num_attention_heads };
    if !num_attention_heads.is_multiple_of(num_key_value_heads) {
        return Err(section.wrong(
            "num_key_value_heads",
            format!("is {num_key_value_heads}, which does not divide num_attention_heads, {num_attention_heads}"),
        ));
    }
    let parts = rope.sizes("mrope_section")?;
    let mrope_section: [usize; 3] = match parts.as_slice().try_into() {
        Ok(section) if parts.iter().sum::<usize>() * 2 == head_dim => section,
        _ => {
            return Err(rope.wrong(
                "mrope_section",
                format!("is {parts:?}; expected three numbers that sum to half of head_dim, {}", head_dim / 2),
            ));
        }
    };
    Ok(TextConfig {
        vocab_size: section.size("vocab_size")?,
        hidden_size,
        intermediate_size: section.size("intermediate_size")?,
        num_hidden_layers: section.size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rms_norm_eps: section.number("rms_norm_eps")? as f32,
        rope_theta,
        mrope_section,
        max_position_embeddings: section.size("max_position_embeddings")?,
        initializer_range: section.number_or("initializer_range", 0.02)? as f32,
    })
}

/// The rotary settings of a section.
struct Rope<'a> {
    /// The object that holds them.
    place: Section<'a>,
    /// The base, there or beside it.
    theta: Option<f64>,
}

/// Old files spread the rotary settings over `rope_theta` and `rope_scaling`, new ones gather them in
/// `rope_parameters`. Where both stand they must say the same: transformers follows the old ones without a word.
fn read_rope<'a>(section: &Section<'a>, types: &[&str]) -> Result<Option<Rope<'a>>> {
    let read = |key: &'static str| -> Result<Option<Rope<'a>>> {
        if section.get(key).is_none_or(|value| value.as_object().is_some_and(serde_json::Map::is_empty)) {
            return Ok(None);
        }
        let place = section.section(key)?;
        for key in ["rope_type", "type"] {
            place.expect_text(key, types)?;
        }
        if !place.flag("mrope_interleaved", true)? {
            let problem = "is false; Qwen3-VL interleaves the frequencies, set true";
            return Err(place.wrong("mrope_interleaved", problem.into()));
        }
        let holder = [&place, section].into_iter().find(|holder| holder.get("rope_theta").is_some());
        let theta = holder.map(|holder| holder.number("rope_theta")).transpose()?;
        Ok(Some(Rope { place, theta }))
    };
    let (new, old) = (read("rope_parameters")?, read("rope_scaling")?);
    if let (Some(new), Some(old)) = (&new, &old) {
        let part = |rope: &Rope<'a>| rope.place.get("mrope_section");
        if new.theta != old.theta || part(new) != part(old) {
            let problem =
                "differs from rope_parameters beside it in rope_theta or mrope_section; take one of them away";
            return Err(section.wrong("rope_scaling", problem.into()));
        }
    }
    Ok(new.or(old))
}

fn read_vision(section: &Section) -> Result<VisionConfig> {
    section.expect_text("model_type", &["qwen3_vl", "qwen3_vl_vision"])?;
    section.expect_text("hidden_act", &["gelu_pytorch_tanh"])?;
    let rope = read_rope(section, &["default", "axial"])?;
    let rope_theta = rope.and_then(|rope| rope.theta).map_or_else(|| section.number_or("rope_theta", 10_000.0), Ok)?;
    let vision = VisionConfig {
        hidden_size: section.size("hidden_size")?,
        depth: section.size("depth")?,
        num_heads: section.size("num_heads")?,
        intermediate_size: section.size("intermediate_size")?,
        out_hidden_size: section.size("out_hidden_size")?,
        num_position_embeddings: section.size("num_position_embeddings")?,
        patch_size: section.size("patch_size")?,
        temporal_patch_size: section.size("temporal_patch_size")?,
        spatial_merge_size: section.size("spatial_merge_size")?,
        in_channels: section.size("in_channels")?,
        deepstack_visual_indexes: section.sizes("deepstack_visual_indexes")?,
        rope_theta,
        initializer_range: section.number_or("initializer_range", 0.02)? as f32,
    };
    if !vision.hidden_size.is_multiple_of(vision.num_heads * 4) {
        return Err(section.wrong(
            "hidden_size",
            format!("is {}; it must be a multiple of 4 x num_heads ({})", vision.hidden_size, vision.num_heads),
        ));
    }
    if vision.position_side().pow(2) != vision.num_position_embeddings {
        return Err(section.wrong(
            "num_position_embeddings",
            format!("is {}, which is not a square number", vision.num_position_embeddings),
        ));
    }
    if vision.in_channels != 3 {
        return Err(section.wrong("in_channels", format!("is {}; only 3 (RGB) is supported", vision.in_channels)));
    }
    if let Some(index) = vision.deepstack_visual_indexes.iter().find(|&&index| index >= vision.depth) {
        return Err(
            section.wrong("deepstack_visual_indexes", format!("names block {index}, but depth is {}", vision.depth))
        );
    }
    if !vision.deepstack_visual_indexes.is_sorted_by(|left, right| left < right) {
        return Err(section.wrong(
            "deepstack_visual_indexes",
            format!("is {:?}; the blocks must be in rising order", vision.deepstack_visual_indexes),
        ));
    }
    Ok(vision)
}

fn read_dtype(top: &Section, text: &Section) -> Result<WeightDtype> {
    for (section, key) in [(top, "dtype"), (top, "torch_dtype"), (text, "dtype"), (text, "torch_dtype")] {
        match section.get(key) {
            None => {}
            Some(Value::String(name)) if name == "bfloat16" => return Ok(WeightDtype::Bf16),
            // Half floats are read, and written back as what holds them without loss.
            Some(Value::String(name)) if name == "float32" || name == "float16" => return Ok(WeightDtype::F32),
            Some(other) => {
                return Err(
                    section.wrong(key, format!("is {other}; expected \"float32\", \"float16\" or \"bfloat16\""))
                );
            }
        }
    }
    Ok(WeightDtype::F32)
}

/// Reads a file as JSON.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.into(), source })
}

/// An object within a JSON file, which knows where it lies.
pub(crate) struct Section<'a> {
    pub(crate) path: &'a Path,
    pub(crate) name: &'a str,
    pub(crate) value: &'a Value,
}

impl<'a> Section<'a> {
    /// The value of `key`; a JSON null counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn wrong(&self, key: &str, problem: String) -> Error {
        let dot = if self.name.is_empty() { "" } else { "." };
        Error::Field { path: self.path.into(), field: format!("{}{dot}{key}", self.name), problem }
    }

    fn require(&self, key: &str, expected: &str) -> Result<&'a Value> {
        self.get(key).ok_or_else(|| self.wrong(key, format!("is missing; expected {expected}")))
    }

    pub(crate) fn section(&self, key: &'a str) -> Result<Section<'a>> {
        let value = self.require(key, "an object")?;
        if !value.is_object() {
            return Err(self.wrong(key, format!("is {value}; expected an object")));
        }
        Ok(Section { path: self.path, name: key, value })
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize> {
        let value = self.require(key, "a positive whole number")?;
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if number > 0 => Ok(number as usize),
            _ => Err(self.wrong(key, format!("is {value}; expected a positive whole number"))),
        }
    }

    fn sizes(&self, key: &str) -> Result<Vec<usize>> {
        let value = self.require(key, "a list of whole numbers")?;
        let numbers =
            value.as_array().and_then(|list| list.iter().map(|item| item.as_u64().map(|n| n as usize)).collect());
        numbers.ok_or_else(|| self.wrong(key, format!("is {value}; expected a list of whole numbers")))
    }

    fn number(&self, key: &str) -> Result<f64> {
        let value = self.require(key, "a positive number")?;
        match value.as_f64() {
            Some(number) if number > 0.0 => Ok(number),
            _ => Err(self.wrong(key, format!("is {value}; expected a positive number"))),
        }
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.get(key).is_some() { self.number(key) } else { Ok(default) }
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, format!("is {other}; expected true or false"))),
        }
    }

    /// Refuses any value but `allowed`; an absent key is accepted.
    fn expect_text(&self, key: &str, allowed: &[&str]) -> Result<()> {
        match self.get(key) {
            None => Ok(()),
            Some(Value::String(text)) if allowed.contains(&text.as_str()) => Ok(()),
            Some(other) => Err(self.wrong(key, format!("is {other}; supported: {}", allowed.join(", ")))),
        }
    }

    fn token_id(&self, key: &str) -> Result<u32> {
        let value = self.require(key, "a token id")?;
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.wrong(key, format!("is {value}; expected a token id")))
    }

    /// One token id, a list of them, or nothing.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(key, format!("is {}; expected a token id or a list of them", self.value[key])))
    }
}
