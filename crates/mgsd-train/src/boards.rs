//! Boards made while training: sample `i` of a stream is a function of the recipe's seed and `i`.

use crate::error::{Result, TrainError};
use crate::random::{Random, derive};
use crate::recipe::Recipe;
use mgsd_model::image::{ImageSource, RgbImage};
use mgsd_tasks::{Board, Difficulty, FrozenLakeOptions, GenerateOptions, Instance, RenderOptions, Task, TileSet};
use std::sync::Arc;

/// Side of generated pictures when the recipe says nothing.
pub(crate) const IMAGE_SIZE: usize = 256;
/// Boards tried for one of the right part; a tenth of all boards is held out.
const ATTEMPTS: usize = 1000;

/// Samples to train on, or samples kept for measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Train,
    HeldOut,
}

/// An endless supply of boards of the recipe's tasks and levels.
pub(crate) struct BoardStream {
    kinds: Vec<BoardKind>,
    render: RenderOptions,
    seed: u64,
}

struct BoardKind {
    task: Task,
    levels: Vec<usize>,
    weight: f64,
    difficulties: Vec<Difficulty>,
    options: GenerateOptions,
}

impl BoardStream {
    pub(crate) fn open(recipe: &Recipe) -> Result<Self> {
        let mut render =
            RenderOptions { image_size: recipe.data.image_size.unwrap_or(IMAGE_SIZE), ..RenderOptions::default() };
        if let Some(folder) = &recipe.data.tiles {
            render.tiles =
                TileSet::load(folder).map_err(TrainError::other(format!("data.tiles {}", folder.display())))?;
        }
        let mut kinds = Vec::new();
        for (name, board) in &recipe.data.tasks {
            let failed = |key: &str| TrainError::other(format!("data.tasks.{name}.{key}"));
            let task: Task = name.parse().map_err(failed("(name)"))?;
            let mut lake = FrozenLakeOptions::default();
            if let Some(probability) = board.frozen_probability {
                lake.frozen_probability = probability;
            }
            if let Some(random) = board.random_start_goal {
                lake.random_start_goal = random;
            }
            if let Some(length) = board.min_path_length {
                lake.min_path_length = length;
            }
            let difficulties = match &board.difficulty {
                None => Difficulty::ALL.to_vec(),
                Some(names) => {
                    names.iter().map(|name| name.parse().map_err(failed("difficulty"))).collect::<Result<_>>()?
                }
            };
            let options = GenerateOptions { frozen_lake: lake, ..GenerateOptions::default() };
            kinds.push(BoardKind { task, levels: board.levels.clone(), weight: board.weight, difficulties, options });
        }
        Ok(Self { kinds, render, seed: recipe.seed })
    }

    /// Board `index` of `stream`, of one of the tasks `only` (of any when empty).
    pub(crate) fn instance(&self, part: Part, stream: u64, index: u64, only: &[Task]) -> Result<Instance> {
        let stream = derive(self.seed, stream, part as u64);
        let mut random = Random::new(derive(stream, 0x626f_6172, index));
        let weight = |kind: &BoardKind| if only.is_empty() || only.contains(&kind.task) { kind.weight } else { 0.0 };
        let weights: Vec<f64> = self.kinds.iter().map(weight).collect();
        let kind = &self.kinds[random.weighted(&weights)];
        let level = kind.levels[random.below(kind.levels.len())];
        let mut options = kind.options.clone();
        options.difficulties = vec![kind.difficulties[random.below(kind.difficulties.len())]];
        for _ in 0..ATTEMPTS {
            // Room is left for what the generators add to a seed.
            options.seed = random.next() >> 33;
            let made = mgsd_tasks::generate(kind.task, level, &options, 0..1);
            let made = made.map_err(TrainError::other(format!("data.tasks.{}, level {level}", kind.task)))?;
            for instance in made {
                let held_out = mgsd_data::split::held_out(&instance.board.key());
                if held_out == (part == Part::HeldOut) {
                    return Ok(instance);
                }
            }
        }
        Err(TrainError::Other {
            context: format!("data.tasks.{}, level {level}", kind.task),
            message: format!(
                "no {part:?} board among {ATTEMPTS}: there are too few different boards; add levels or loosen the options"
            ),
        })
    }

    /// The board's picture.
    pub(crate) fn picture(&self, board: &Board) -> Result<ImageSource> {
        let image = board.render(&self.render).map_err(TrainError::other("drawing a board"))?;
        Ok(rgb(image))
    }
}

/// A drawn picture as the image processor takes it.
pub(crate) fn rgb(image: mgsd_tasks::RgbImage) -> ImageSource {
    ImageSource::Rgb(Arc::new(RgbImage { width: image.width, height: image.height, pixels: image.pixels }))
}
