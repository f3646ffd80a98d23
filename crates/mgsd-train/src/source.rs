//! Samples of supervised training: files and generated boards and pictures, mixed in fixed shares.

use crate::boards::{BoardStream, IMAGE_SIZE, rgb};
use crate::error::{Result, TrainError};
use crate::examples::Conversation;
use crate::mixture::{Epochs, Shares, split};
use crate::packing::Sample;
use crate::random::derive;
use crate::recipe::{MixEntry, Recipe, SampleKind};
use crate::student;
use mgsd_data::message::Message;
use mgsd_data::perception_sft;
use mgsd_data::prompts::{PromptContext, Prompts, ReferencePlan};
use mgsd_model::image::ImageSource;
use mgsd_model::processor::Processor;
use mgsd_tasks::{Instance, Task};
use std::path::PathBuf;

pub(crate) use crate::boards::Part;

/// Stream of seeds for generic pictures.
const SHAPES: u64 = 0x7368_6170;

/// All samples of a run; `sample(part, index)` is a pure function of the recipe.
pub(crate) struct Source {
    entries: Vec<Entry>,
    shares: Shares,
    boards: BoardStream,
    prompts: Prompts,
    processor: Processor,
    image_size: usize,
    max_tokens: usize,
    seed: u64,
}

enum Entry {
    File(Records),
    Boards { kind: SampleKind, tasks: Vec<Task>, stream: u64 },
    Shapes { stream: u64, sides: [u32; 2] },
}

/// A sharegpt file with its split.
struct Records {
    path: PathBuf,
    conversations: Vec<perception_sft::Conversation>,
    train: Epochs,
    held_out: Vec<usize>,
}

impl Source {
    pub(crate) fn open(recipe: &Recipe) -> Result<Self> {
        let set = &recipe.prompts.set;
        let entry = |(i, entry): (usize, &MixEntry)| open_entry(recipe, i, entry);
        let weights: Vec<f64> = recipe.data.mix.iter().map(|entry| entry.weight).collect();
        Ok(Self {
            entries: recipe.data.mix.iter().enumerate().map(entry).collect::<Result<_>>()?,
            shares: Shares::new(&weights, recipe.seed),
            boards: BoardStream::open(recipe)?,
            prompts: Prompts::open(set).map_err(TrainError::other(format!("prompts.set {set}")))?,
            processor: student::processor(recipe)?,
            image_size: recipe.data.image_size.unwrap_or(IMAGE_SIZE),
            max_tokens: recipe.batch.max_tokens_per_sample,
            seed: recipe.seed,
        })
    }

    /// Samples until every file was gone through once.
    pub(crate) fn samples_per_epoch(&self) -> f64 {
        let needed = self.files().map(|(i, records)| records.train.len() as f64 / self.shares.share(i));
        needed.fold(0.0, f64::max)
    }

    /// How many of `wanted` held-out samples there are without taking a record twice.
    pub(crate) fn held_out_count(&self, wanted: usize) -> usize {
        let available =
            self.files().map(|(i, records)| (records.held_out.len() as f64 / self.shares.share(i)) as usize);
        available.fold(wanted, usize::min).max(1)
    }

    fn files(&self) -> impl Iterator<Item = (usize, &Records)> {
        self.entries.iter().enumerate().filter_map(|(i, entry)| match entry {
            Entry::File(records) => Some((i, records)),
            _ => None,
        })
    }

    /// Sample `index` of the training or held-out stream, tokenised.
    pub(crate) fn sample(&self, part: Part, index: u64) -> Result<Sample> {
        let (entry, ordinal) = self.shares.at(index);
        let conversation = match &self.entries[entry] {
            Entry::File(records) => records.conversation(part, ordinal)?,
            Entry::Boards { kind, tasks, stream } => {
                let instance = self.boards.instance(part, *stream, ordinal, tasks)?;
                self.board(*kind, &instance, ordinal)?
            }
            Entry::Shapes { stream, sides } => {
                let seed = derive(derive(self.seed, *stream, part as u64), SHAPES, ordinal);
                let shapes = mgsd_data::shapes::sample(seed, self.image_size, *sides);
                Conversation {
                    name: format!("shapes sample {ordinal}"),
                    messages: vec![Message::user(shapes.question), Message::assistant(shapes.answer)],
                    pictures: vec![rgb(shapes.image)],
                }
            }
        };
        conversation.sample(&self.processor, self.max_tokens)
    }

    /// Question and answer about a board.
    fn board(&self, kind: SampleKind, instance: &Instance, ordinal: u64) -> Result<Conversation> {
        let board = &instance.board;
        let task = board.task();
        let name = format!("{kind:?} {task} level {} sample {ordinal}", board.side());
        let failed = || TrainError::other(format!("prompts for {name}"));
        let context = match kind {
            // One board, one plan: the solver's choice among shortest plans is learnt faster than a random one.
            SampleKind::PlanText => PromptContext::new(board),
            _ => PromptContext::of_instance(instance),
        };
        let mut messages = Vec::new();
        let mut pictures = Vec::new();
        match kind {
            SampleKind::PlanReference => {
                let system = self.prompts.teacher_system(task).map_err(failed())?;
                messages.extend(system.map(Message::system));
                let question = self.prompts.teacher_context(&context, ReferencePlan::Given);
                messages.push(Message::user(question.map_err(failed())?));
            }
            SampleKind::ReadText => {
                messages.push(Message::user(self.prompts.text_perception(&context).map_err(failed())?))
            }
            SampleKind::ReadImage => {
                messages.push(Message::user(self.prompts.perception(task).map_err(failed())?));
                pictures.push(self.boards.picture(board)?);
            }
            _ => messages.push(Message::user(self.prompts.text(&context).map_err(failed())?)),
        }
        let answer = match kind {
            SampleKind::ReadText | SampleKind::ReadImage => self.prompts.perception_answer(&context),
            _ => self.prompts.plan_answer(&context),
        };
        messages.push(Message::assistant(answer.map_err(failed())?));
        Ok(Conversation { name, messages, pictures })
    }
}

fn open_entry(recipe: &Recipe, i: usize, entry: &MixEntry) -> Result<Entry> {
    let stream = derive(recipe.seed, 0x6d69_7800, i as u64);
    let tasks = entry.tasks.iter().filter_map(|name| name.parse().ok()).collect();
    match (entry.kind, &entry.file) {
        (SampleKind::Sharegpt, Some(path)) => {
            let conversations = perception_sft::read(path).map_err(TrainError::other(format!("data.mix.{i}.file")))?;
            let (train, held_out) = split(conversations.len(), recipe.eval.held_out, stream);
            if train.is_empty() {
                return Err(TrainError::file(path, "no records to train on; expected a list of conversations"));
            }
            if recipe.eval.every > 0 && held_out.is_empty() {
                return Err(TrainError::file(
                    path,
                    format!(
                        "eval.held_out {} of {} records leaves none to measure on; raise it, or set eval.every to 0",
                        recipe.eval.held_out,
                        conversations.len()
                    ),
                ));
            }
            Ok(Entry::File(Records { path: path.clone(), conversations, train: Epochs::new(train, stream), held_out }))
        }
        (SampleKind::Shapes, _) => Ok(Entry::Shapes { stream, sides: entry.sides.unwrap_or(mgsd_data::shapes::SIDES) }),
        (kind, _) => Ok(Entry::Boards { kind, tasks, stream }),
    }
}

impl Records {
    fn conversation(&self, part: Part, ordinal: u64) -> Result<Conversation> {
        let record = match part {
            Part::Train => self.train.at(ordinal),
            Part::HeldOut => self.held_out[ordinal as usize % self.held_out.len()],
        };
        let conversation = &self.conversations[record];
        let folder = self.path.parent().unwrap_or(std::path::Path::new("."));
        let picture = |picture: &mgsd_data::picture::Picture| {
            let bytes =
                picture.load(folder).map_err(TrainError::other(format!("{} record {record}", self.path.display())))?;
            Ok(ImageSource::Bytes(bytes.into()))
        };
        Ok(Conversation {
            name: format!("{} record {record}", self.path.display()),
            messages: conversation.messages.clone(),
            pictures: conversation.images.iter().map(picture).collect::<Result<_>>()?,
        })
    }
}
