//! Training: pretraining and supervised fine-tuning on packed samples, and on-policy context distillation (OPCD), from
//! recipes in TOML.
//!
//! Start with [`Recipe::load`] and [`run`]. `session` holds what the loops share; `supervised` and `opcd` say how the
//! gradients of a step come about; `source` where samples come from.

mod boards;
mod checkpoint;
pub mod error;
mod examples;
mod files;
pub mod metrics;
mod mixture;
mod opcd;
mod optim;
mod packing;
mod passes;
mod pixels;
mod prefetch;
mod random;
pub mod recipe;
pub mod schedule;
mod session;
mod source;
mod student;
mod supervised;
mod tensorboard;
pub mod world;

pub use checkpoint::{Best, State};
pub use error::{Result, TrainError};
pub use metrics::{Phase, Scalars};
pub use optim::{OptimiserState, clip_factor};
pub use recipe::{Kind, Recipe};

pub use mgsd_compute::Device;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
pub use world::World;

/// What the caller holds on to while a run goes on.
pub struct Control<'a> {
    /// Set to true, the current step is finished, a checkpoint written, and [`TrainError::Interrupted`] returned.
    pub stop: &'a AtomicBool,
    /// Continue from the newest checkpoint in `model.out`; without one the run begins at the start.
    pub resume: bool,
    /// Where the models run.
    pub device: Device,
    /// The processes that share the work, this one among them.
    pub world: World,
    /// Called after every step and every measurement.
    pub progress: Option<&'a dyn Fn(&Progress)>,
}

/// One report of a run in progress.
pub struct Progress<'a> {
    /// Which loop.
    pub kind: Kind,
    /// Training step or measurement.
    pub phase: Phase,
    /// Steps done.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Seconds since [`run`] was called.
    pub seconds: f64,
    /// The numbers, the same as in `metrics.jsonl`.
    pub scalars: &'a Scalars,
}

/// What a finished run leaves.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Optimiser steps done in all.
    pub steps: u64,
    /// Wall-clock seconds of this call.
    pub seconds: f64,
    /// Numbers of the last step.
    pub metrics: Scalars,
    /// Numbers of the last measurement, if there was one.
    pub eval: Option<Scalars>,
    /// Step and folder of the best measurement, if there was one.
    pub best: Option<(u64, PathBuf)>,
    /// The run's folder.
    pub out: PathBuf,
    /// The trained model folder, or the adapter folder, within `out`.
    pub result: PathBuf,
}

/// Runs a recipe to its end.
///
/// # Errors
/// Whatever goes wrong, in words that say how to mend it; [`TrainError::Interrupted`] when the stop flag was raised.
pub fn run(recipe: &Recipe, control: &Control) -> Result<Summary> {
    match recipe.kind {
        Kind::Pretrain | Kind::Sft => supervised::run(recipe, control),
        Kind::Opcd => opcd::run(recipe, control),
    }
}
