//! The boards of distillation: what the student sees, what the teacher sees, and the board behind both.

use crate::boards::BoardStream;
use crate::error::{Result, TrainError};
use crate::examples::Conversation;
use crate::mixture::Epochs;
use crate::packing::filler;
use crate::random::derive;
use crate::recipe::Recipe;
use crate::source::Part;
use crate::student;
use mgsd_data::message::Message;
use mgsd_data::prompts::{PromptContext, Prompts, ReferencePlan};
use mgsd_data::{folder, opcd};
use mgsd_model::image::ImageSource;
use mgsd_model::processor::{Processor, Prompt};
use mgsd_tasks::score::TrainingCase;
use mgsd_tasks::{Instance, Task};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Stream of seeds for generated boards.
const BOARDS: u64 = 0x6f70_6364;

/// One board, ready for student and teacher.
pub(super) struct BoardRow {
    pub(super) name: String,
    pub(super) task: Option<Task>,
    /// Without it answers cannot be scored, only distilled.
    pub(super) case: Option<TrainingCase>,
    /// Question and picture.
    pub(super) student: Arc<Prompt>,
    /// Symbolic state, no picture.
    pub(super) teacher: Prompt,
}

impl BoardRow {
    /// Tokens of the longer of the two prompts.
    pub(super) fn longer(&self) -> usize {
        self.student.ids.len().max(self.teacher.ids.len())
    }

    /// Nothing of meaning, with prompts of so many tokens.
    pub(super) fn filler(&self, student: usize, teacher: usize) -> Self {
        let (student, teacher) = (Arc::new(filler(student)), filler(teacher));
        Self { name: self.name.clone(), task: None, case: None, student, teacher }
    }
}

/// Where rows come from.
enum Set {
    File { path: PathBuf, samples: Vec<opcd::Sample> },
    Folder(Vec<folder::Example>),
    Generated,
}

/// Training and validation rows.
pub(super) struct Rows {
    train: Set,
    validation: Set,
    order: Option<Epochs>,
    /// One order for all measurements, since files and folders have their tasks one after another.
    validation_order: Option<Epochs>,
    /// Keys of the training boards, when validation rows are given beside training rows.
    trained: Option<BTreeSet<String>>,
    boards: BoardStream,
    prompts: Prompts,
    plan: ReferencePlan,
    processor: Arc<Processor>,
    max_tokens: usize,
}

/// The texts and pictures of a row.
struct Texts {
    name: String,
    task: Option<Task>,
    case: Option<TrainingCase>,
    student: String,
    pictures: Vec<ImageSource>,
    teacher_system: Option<String>,
    teacher: String,
}

impl Rows {
    pub(super) fn open(recipe: &Recipe) -> Result<Self> {
        let set = &recipe.prompts.set;
        let train = Set::open(recipe.data.train.as_deref())?;
        let validation = Set::open(recipe.data.validation.as_deref())?;
        if recipe.eval.every > 0 && recipe.data.validation.is_none() && recipe.data.tasks.is_empty() {
            return Err(TrainError::other("data.validation")(
                "expected rows, a task folder, or boards to generate in data.tasks when eval.every is set",
            ));
        }
        if !recipe.opcd.reference_plan {
            train.refuse_teacher_texts()?;
        }
        let order = |set: &Set, stream| {
            set.count().map(|count| Epochs::new((0..count).collect(), derive(recipe.seed, BOARDS, stream)))
        };
        let (order, validation_order) = (order(&train, 0), order(&validation, 1));
        // Generated boards are held out by their keys.
        let both = train.count().and(validation.count()).is_some();
        Ok(Self {
            trained: both.then(|| train.keys()),
            train,
            validation,
            order,
            validation_order,
            boards: BoardStream::open(recipe)?,
            prompts: Prompts::open(set).map_err(TrainError::other(format!("prompts.set {set}")))?,
            plan: if recipe.opcd.reference_plan { ReferencePlan::Given } else { ReferencePlan::Withheld },
            processor: Arc::new(student::processor(recipe)?),
            max_tokens: recipe.batch.max_tokens_per_sample,
        })
    }

    /// Rows of the training set, if it has an end.
    pub(super) fn count(&self) -> Option<usize> {
        self.train.count()
    }

    pub(super) fn validation_count(&self, wanted: usize) -> usize {
        self.validation.count().map_or(wanted, |count| count.min(wanted))
    }

    /// Whether training has a validation row's board too; `None` when it cannot, or the rows do not say.
    pub(super) fn is_trained_on(&self, row: &BoardRow) -> Option<bool> {
        let board = row.case.as_ref()?.board.as_ref()?;
        Some(self.trained.as_ref()?.contains(&board.key()))
    }

    pub(super) fn processor(&self) -> Arc<Processor> {
        Arc::clone(&self.processor)
    }

    /// Row `index` of the training or validation stream, tokenised.
    pub(super) fn row(&self, part: Part, index: u64) -> Result<BoardRow> {
        let (set, order) = match part {
            Part::Train => (&self.train, &self.order),
            Part::HeldOut => (&self.validation, &self.validation_order),
        };
        let at = order.as_ref().map_or(index as usize, |order| order.at(index));
        let texts = match set {
            Set::File { path, samples } => self.file_row(path, &samples[at], at)?,
            Set::Folder(examples) => self.folder_row(&examples[at])?,
            Set::Generated => {
                let instance = self.boards.instance(part, BOARDS, index, &[])?;
                let pictures = vec![self.boards.picture(&instance.board)?];
                let name = format!("{} level {} sample {index}", instance.task(), instance.level());
                self.texts(name, &instance, pictures)?
            }
        };
        self.tokenise(texts)
    }

    fn texts(&self, name: String, instance: &Instance, pictures: Vec<ImageSource>) -> Result<Texts> {
        let task = instance.task();
        let failed = || TrainError::other(format!("prompts for {name}"));
        let context = PromptContext::of_instance(instance);
        Ok(Texts {
            student: self.prompts.student(task).map_err(failed())?,
            teacher_system: self.prompts.teacher_system(task).map_err(failed())?,
            teacher: self.prompts.teacher_context(&context, self.plan).map_err(failed())?,
            task: Some(task),
            case: Some(TrainingCase::from_instance(instance)),
            pictures,
            name,
        })
    }

    fn folder_row(&self, example: &folder::Example) -> Result<Texts> {
        let path = example.existing_image().map_err(TrainError::other(&example.id))?;
        let pictures = vec![ImageSource::Path(path.to_path_buf())];
        self.texts(example.id.clone(), &example.instance, pictures)
    }

    fn file_row(&self, path: &Path, sample: &opcd::Sample, at: usize) -> Result<Texts> {
        let name = format!("{} row {at}", path.display());
        let wrong = |what: &str| TrainError::Sample { sample: name.clone(), what: what.to_string() };
        if !sample.teacher_images.is_empty() {
            return Err(wrong("teacher_images is not empty; this teacher reads text only, expected an empty list"));
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        let picture = |picture: &mgsd_data::picture::Picture| {
            Ok(ImageSource::Bytes(picture.load(folder).map_err(TrainError::other(&name))?.into()))
        };
        let pictures = sample.images.iter().map(picture).collect::<Result<Vec<_>>>()?;
        // A row that says what its board is must say it right: success is measured on it.
        let instance = sample.instance().map_err(|problem| wrong(&problem))?;
        let Some(teacher) = sample.teacher_context().map(str::to_string) else {
            let instance =
                instance.ok_or_else(|| wrong("neither teacher_text_context nor an instance text to make one from"))?;
            let texts = self.texts(name.clone(), &instance, pictures)?;
            return Ok(Texts { student: sample.problem.clone(), ..texts });
        };
        let task = instance.as_ref().map(Instance::task).or_else(|| opcd::task_of(sample));
        let teacher_system = sample.teacher_system_prompt.clone().filter(|text| !text.trim().is_empty());
        let case = instance.as_ref().map(TrainingCase::from_instance);
        Ok(Texts { name, task, case, student: sample.problem.clone(), pictures, teacher_system, teacher })
    }

    fn tokenise(&self, texts: Texts) -> Result<BoardRow> {
        let Texts { name, task, case, student, pictures, teacher_system, teacher } = texts;
        let student = Conversation { name: name.clone(), messages: vec![Message::user(student)], pictures };
        let mut messages: Vec<Message> = teacher_system.map(Message::system).into_iter().collect();
        messages.push(Message::user(teacher));
        let teacher = Conversation { name: name.clone(), messages, pictures: Vec::new() };
        let (student, teacher) = (student.prompt(&self.processor)?, teacher.prompt(&self.processor)?);
        for (who, prompt) in [("student", &student), ("teacher", &teacher)] {
            if prompt.ids.len() > self.max_tokens {
                return Err(TrainError::Sample {
                    sample: name,
                    what: format!(
                        "the {who} prompt has {} tokens, batch.max_tokens_per_sample is {}; raise it or lower images.max_pixels",
                        prompt.ids.len(),
                        self.max_tokens
                    ),
                });
            }
        }
        Ok(BoardRow { name, task, case, student: Arc::new(student), teacher })
    }
}

impl Set {
    fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::Generated) };
        let failed = || TrainError::other(format!("rows {}", path.display()));
        let set = if path.is_dir() {
            Self::Folder(folder::read(path, &folder::Filter::default()).map_err(failed())?)
        } else {
            Self::File { path: path.to_path_buf(), samples: opcd::read(path).map_err(failed())? }
        };
        if set.count() == Some(0) {
            return Err(TrainError::file(path, "no rows; expected OPCD rows or a task folder"));
        }
        Ok(set)
    }

    /// For a teacher without the reference plan: what a file's rows tell the teacher stands in the file.
    fn refuse_teacher_texts(&self) -> Result<()> {
        let Self::File { path, samples } = self else { return Ok(()) };
        if !samples.iter().any(|sample| sample.teacher_context().is_some()) {
            return Ok(());
        }
        Err(TrainError::other("opcd.reference_plan")(format!(
            "false does nothing here: the rows of {} bring the teacher's texts along; leave the key out and make them \
             with `mgsd data opcd --no-reference-plan`, or name a task folder",
            path.display()
        )))
    }

    /// Keys of the boards that are known. A row that says its board wrongly is refused when its turn comes.
    fn keys(&self) -> BTreeSet<String> {
        match self {
            Self::File { samples, .. } => {
                let instances = samples.iter().filter_map(|sample| sample.instance().ok().flatten());
                instances.map(|instance| instance.board.key()).collect()
            }
            Self::Folder(examples) => examples.iter().map(|example| example.instance.board.key()).collect(),
            Self::Generated => BTreeSet::new(),
        }
    }

    fn count(&self) -> Option<usize> {
        match self {
            Self::File { samples, .. } => Some(samples.len()),
            Self::Folder(examples) => Some(examples.len()),
            Self::Generated => None,
        }
    }
}
