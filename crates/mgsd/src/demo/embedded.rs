//! The embedded model and its recipes, part of the binary.

use anyhow::Context;
use std::path::{Path, PathBuf};

/// Stage 1 for the embedded model.
pub const SFT_RECIPE: &str = include_str!("../../../../recipes/nano-sft.toml");
/// Stage 2 for the embedded model.
pub const OPCD_RECIPE: &str = include_str!("../../../../recipes/nano-opcd.toml");

macro_rules! model_files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../../../assets/nano/", $name)).as_slice())),*]
    };
}

const MODEL: [(&str, &[u8]); 8] = model_files![
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
];

/// Lays the embedded model out as a model folder.
pub fn write_model(folder: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    for (name, bytes) in MODEL {
        mgsd_tasks::files::write_whole(&folder.join(name), bytes)?;
    }
    Ok(folder.to_path_buf())
}
