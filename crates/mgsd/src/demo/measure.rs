//! The three measurements of a stage: plans from pictures, plans from text, and what is read from pictures.

use mgsd_data::Example;
use mgsd_data::prompts::Prompts;
use mgsd_eval::cases::{EvalCase, Modality};
use mgsd_eval::client::LocalClient;
use mgsd_eval::demo::StageScores;
use mgsd_eval::run::RunOptions;
use mgsd_eval::{perception, plan};
use mgsd_model::image::PixelLimits;
use mgsd_tasks::{RenderOptions, TileSet};
use mgsd_train::Device;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Boards answered side by side.
const SLOTS: usize = 64;
/// Longest answer: half as long again as the longest right one.
const MAX_NEW_TOKENS: usize = 160;

/// The boards that every stage is measured on.
pub struct Bench {
    cases: Vec<EvalCase>,
    prompts: Prompts,
    folder: PathBuf,
    device: Device,
}

impl Bench {
    /// Results go below `folder`; models run on `device`.
    pub fn new(boards: &[Example], prompts: Prompts, folder: PathBuf, device: Device) -> Self {
        let pictures = Arc::new(RenderOptions { image_size: 128, tiles: TileSet::drawn() });
        let cases = boards.iter().map(|example| EvalCase::from_example(example, &pictures)).collect();
        Self { cases, prompts, folder, device }
    }

    /// Measures a model folder, greedily.
    pub fn measure(&self, stage: &str, model: &Path) -> anyhow::Result<StageScores> {
        let mut client = LocalClient::open(model, None, PixelLimits::default(), SLOTS, self.device)?;
        let mut quiet = |_| {};
        let mut planned = |modality| -> anyhow::Result<_> {
            let options = RunOptions { max_new_tokens: MAX_NEW_TOKENS, ..RunOptions::greedy(modality) };
            let (run, _) = plan::run_to_folder(
                &mut client,
                stage,
                &self.cases,
                &self.prompts,
                &options,
                &self.folder,
                &mut quiet,
            )?;
            Ok(run.summary)
        };
        let (picture, text) = (planned(Modality::Image)?, planned(Modality::Text)?);
        let options = RunOptions { max_new_tokens: MAX_NEW_TOKENS, ..RunOptions::greedy(Modality::Image) };
        let (read, _) = perception::run_to_folder(
            &mut client,
            stage,
            &self.cases,
            &self.prompts,
            &options,
            &self.folder,
            &mut quiet,
        )?;
        Ok(StageScores::new(&picture, &text, &read.summary))
    }
}
