//! The model to be trained, as the recipe wants it: weights, adapter, trained parts.

use crate::error::{Result, TrainError};
use crate::random::derive;
use crate::recipe::{Kind, Recipe, Targets};
use mgsd_compute::Device;
use mgsd_model::config::Config;
use mgsd_model::image::PixelLimits;
use mgsd_model::lora::LoraConfig;
use mgsd_model::model::{Parts, Purpose, Qwen3Vl};
use mgsd_model::processor::Processor;
use std::path::Path;

/// Stream of seeds for first weights.
const WEIGHTS: u64 = 0x7765_6967;

/// A model with what is trained on it.
pub(crate) struct Student {
    pub(crate) model: Qwen3Vl,
    /// Settings of the adapter, when one is trained.
    pub(crate) adapter: Option<LoraConfig>,
}

/// Loads or draws the weights and decides what is trained.
pub(crate) fn load(recipe: &Recipe, device: Device) -> Result<Student> {
    let base = &recipe.model.base;
    let failed = || TrainError::other(format!("model.base {}", base.display()));
    let random = recipe.model.random_weights.unwrap_or(recipe.kind == Kind::Pretrain);
    let seed = derive(recipe.seed, WEIGHTS, 0);
    let mut model = if random {
        let config = Config::open(base).map_err(failed())?;
        let mut model = Qwen3Vl::init(&config, seed);
        model.origin = Some(base.clone());
        model
    } else {
        // Under an adapter the base stays as it is on disk; otherwise it is to be changed in full precision, which on a
        // GPU is the optimiser's business.
        let as_stored = recipe.model.adapter.is_some() || !device.is_cpu();
        let purpose = if as_stored { Purpose::Inference } else { Purpose::Training };
        Qwen3Vl::load(base, purpose).map_err(failed())?
    };
    model.settle(device);
    let Some(adapter) = &recipe.model.adapter else {
        let parts = recipe.model.train;
        model.set_trainable(Parts {
            vision: parts.vision,
            merger: parts.merger,
            text: parts.text,
            embeddings: parts.embeddings,
            lora: false,
        });
        return Ok(Student { model, adapter: None });
    };
    if let Some(folder) = &adapter.from {
        let key = || format!("model.adapter.from {}", folder.display());
        let mut config = model.load_adapter(folder).map_err(TrainError::other(key()))?;
        let mut found = Vec::new();
        model.visit_linears(&mut |layer| found.extend(layer.lora.as_ref().map(|lora| (lora.a.shape[0], lora.scale))));
        let &(rank, scale) = found.first().unwrap_or(&(config.rank, config.alpha / config.rank as f32));
        if found.iter().any(|other| *other != (rank, scale)) {
            return Err(TrainError::other(key())(
                "its layers have different ranks or scales; one of each can be trained on: merge it into its base with \
                 `mgsd merge` and begin a new adapter",
            ));
        }
        // Written again, the adapter must have the scale it has now, whichever way its folder expressed that.
        let told = config.alpha;
        (config.rank, config.alpha) = (rank, scale * rank as f32);
        if adapter.rank != rank || ![told, config.alpha].contains(&adapter.alpha) {
            return Err(TrainError::other(key())(format!(
                "has rank {rank} and alpha {told}, the recipe says rank {} and alpha {}; give those of the adapter",
                adapter.rank, adapter.alpha
            )));
        }
        model.set_trainable(Parts::LORA);
        return Ok(Student { model, adapter: Some(config) });
    }
    let targets = match &adapter.targets {
        Targets::Set(name) => vec![name.clone()],
        Targets::Names(names) => names.clone(),
    };
    let config = LoraConfig { rank: adapter.rank, alpha: adapter.alpha, targets };
    model.add_lora(&config, derive(recipe.seed, WEIGHTS, 1)).map_err(TrainError::other("model.adapter.targets"))?;
    Ok(Student { model, adapter: Some(config) })
}

/// A model that only scores.
pub(crate) fn load_frozen(folder: &Path, device: Device) -> Result<Qwen3Vl> {
    let failed = TrainError::other(format!("teacher {}", folder.display()));
    let mut model = Qwen3Vl::load(folder, Purpose::Inference).map_err(failed)?;
    model.settle(device);
    Ok(model)
}

/// Tokenizer, chat template and image processor of the base, with the recipe's limits.
pub(crate) fn processor(recipe: &Recipe) -> Result<Processor> {
    let base = &recipe.model.base;
    let limits = PixelLimits { min_pixels: recipe.images.min_pixels, max_pixels: recipe.images.max_pixels };
    Processor::open(base, limits).map_err(TrainError::other(format!("model.base {}", base.display())))
}
