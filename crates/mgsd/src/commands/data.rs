//! `mgsd data`: training files from boards, and perception answers scored.

use super::tasks::{Instances, apart, response_rows, tile_set, write_lines};
use crate::console::Console;
use anyhow::Context;
use mgsd_data::benchmarks::{
    self,
    vlmevalkit::{self, Question, Record},
};
use mgsd_data::opcd::{self, RowOrder, SelectOptions};
use mgsd_data::prompts::{Prompts, ReferencePlan};
use mgsd_data::{folder, perception_sft};
use mgsd_tasks::{RenderOptions, Task, perception};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Turn boards into training files, and score perception answers.
///
/// Example: mgsd data perception --data data --out sft.json
#[derive(clap::Subcommand)]
pub enum Command {
    Perception(Perception),
    ScorePerception(ScorePerception),
    Opcd(Opcd),
    Vlmevalkit(VlmEvalKit),
}

/// Write boards as a VLMEvalKit data set (TSV with base64 pictures).
///
/// Example: mgsd data vlmevalkit --benchmark bench --out visual_planning.tsv
#[derive(clap::Args)]
pub struct VlmEvalKit {
    /// Task folder.
    #[arg(long, conflicts_with = "benchmark", required_unless_present = "benchmark")]
    data: Option<PathBuf>,
    /// Folder of a public benchmark.
    #[arg(long)]
    benchmark: Option<PathBuf>,
    /// Split: of a benchmark test (the default) or train, of a task folder as its files say; default there: all.
    #[arg(long)]
    split: Option<String>,
    #[command(flatten)]
    which: Which,
    /// At most this many boards of each task of a benchmark.
    #[arg(long, requires = "benchmark")]
    samples_per_task: Option<usize>,
    /// What is asked: plan or perception.
    #[arg(long, default_value = "plan", value_parser = ["plan", "perception"])]
    ask: String,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
    /// Texts around the boards: standard, compact, or a folder.
    #[arg(long, default_value = "standard")]
    prompts: String,
    /// Folder with FrozenLake tiles, for boards that are drawn anew.
    #[arg(long)]
    tiles: Option<PathBuf>,
}

/// Write perception questions with their answers as LLaMA-Factory sharegpt records.
///
/// Example: mgsd data perception --data data --out sft.json
#[derive(clap::Args)]
pub struct Perception {
    /// Task folder with pictures, as `mgsd tasks generate` writes it.
    #[arg(long)]
    data: PathBuf,
    /// JSON file to write; dataset_info.json goes beside it.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    which: Which,
    /// Texts around the boards: standard, compact, or a folder.
    #[arg(long, default_value = "standard")]
    prompts: String,
}

/// Score perception answers question by question, one JSON object a row.
///
/// Example: mgsd data score-perception --rows answers.jsonl --root data
#[derive(clap::Args)]
pub struct ScorePerception {
    /// JSON lines {"id", "task", "instance", "answer"}.
    #[arg(long)]
    rows: PathBuf,
    /// Folder that the rows' instance paths start from.
    #[arg(long)]
    root: PathBuf,
    /// File to write; default: standard output.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Write the rows of the distillation stage as JSON and parquet.
///
/// Example: mgsd data opcd --train data/train --val data/val --out opcd --shuffle
#[derive(clap::Args)]
pub struct Opcd {
    /// Task folder of the training boards.
    #[arg(long)]
    train: PathBuf,
    /// Task folder of the validation boards.
    #[arg(long)]
    val: PathBuf,
    /// Folder to write train.json, train.parquet, val.json and val.parquet to.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    which: Which,
    /// Take this many boards of each task and level at random.
    #[arg(long)]
    sample_per_level: Option<usize>,
    /// The same for the validation boards.
    #[arg(long)]
    val_sample_per_level: Option<usize>,
    /// Do not show the teacher a reference plan.
    #[arg(long)]
    no_reference_plan: bool,
    /// Shuffle the training rows.
    #[arg(long)]
    shuffle: bool,
    /// Seed of sampling and shuffling.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Texts around the boards: standard, compact, or a folder.
    #[arg(long, default_value = "standard")]
    prompts: String,
}

/// Which boards of a folder.
#[derive(clap::Args)]
pub struct Which {
    /// Tasks to take; default: all.
    #[arg(long, value_delimiter = ',')]
    pub tasks: Vec<Task>,
    /// Levels to take; default: all.
    #[arg(long, value_delimiter = ',', value_parser = super::level)]
    pub levels: Vec<usize>,
}

impl Which {
    pub fn filter(&self) -> folder::Filter {
        folder::Filter { tasks: self.tasks.clone(), levels: self.levels.clone() }
    }
}

pub fn run(command: Command, console: &Console) -> anyhow::Result<()> {
    match command {
        Command::Perception(args) => perception_records(&args, console),
        Command::ScorePerception(args) => score_perception(&args, console),
        Command::Opcd(args) => opcd_rows(&args, console),
        Command::Vlmevalkit(args) => vlmevalkit_file(&args, console),
    }
}

/// The folder a file lies in, made if it is not there: only of a folder that is there can be said how it refers to a
/// picture elsewhere, since its path may go through links.
fn folder_of(file: &Path) -> anyhow::Result<&Path> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folder(folder)?;
    Ok(folder)
}

fn make_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot create the folder", folder.display()))
}

fn perception_records(args: &Perception, console: &Console) -> anyhow::Result<()> {
    let examples = folder::read(&args.data, &args.which.filter())?;
    let records = perception_sft::records(&examples, &Prompts::open(&args.prompts)?, folder_of(&args.out)?)?;
    perception_sft::write(&args.out, &records)?;
    console.say(format_args!("{} records in {}", records.len(), args.out.display()));
    console.result(&serde_json::json!({"records": records.len(), "out": args.out}))
}

fn score_perception(args: &ScorePerception, console: &Console) -> anyhow::Result<()> {
    apart(args.out.as_deref(), &args.rows)?;
    let rows = response_rows(&args.rows)?;
    let mut instances = Instances::below(&args.root);
    let (mut lines, mut exact) = (String::new(), 0_usize);
    for row in &rows {
        let score = perception::score(&instances.of(row)?.board, row.response.as_deref().unwrap_or_default());
        let mut object = serde_json::Map::new();
        object.insert("id".to_string(), row.id.clone());
        object.extend(score.questions.iter().map(|(question, right)| ((*question).to_string(), (*right).into())));
        object.insert("all_exact_match".to_string(), score.all_exact_match().into());
        exact += usize::from(score.all_exact_match());
        lines.push_str(&serde_json::to_string(&object)?);
        lines.push('\n');
    }
    write_lines(args.out.as_deref(), &lines)?;
    let rate = exact as f64 / rows.len() as f64;
    console.note(format_args!("{} rows, all exact {rate:.4}", rows.len()));
    console.result(&serde_json::json!({"rows": rows.len(), "all_exact_match": rate, "out": args.out}))
}

fn opcd_rows(args: &Opcd, console: &Console) -> anyhow::Result<()> {
    let prompts = Prompts::open(&args.prompts)?;
    let plan = if args.no_reference_plan { ReferencePlan::Withheld } else { ReferencePlan::Given };
    let train = SelectOptions {
        sample_per_level: args.sample_per_level,
        seed: args.seed,
        order: if args.shuffle { RowOrder::Shuffled } else { RowOrder::ByName },
        ..SelectOptions::default()
    };
    make_folder(&args.out)?;
    let mut counts = serde_json::Map::new();
    let validation = train.for_validation(args.val_sample_per_level);
    let mut boards = HashSet::new();
    for (name, source, options) in [("train", &args.train, train), ("val", &args.val, validation)] {
        let examples = opcd::select(folder::read(source, &args.which.filter())?, &options)?;
        // Small boards are few: other seeds make many of them again.
        let keys = examples.iter().map(|example| example.instance.board.key());
        match name {
            "train" => boards.extend(keys),
            _ => {
                let shared = keys.filter(|key| boards.contains(key)).count();
                counts.insert("shared".to_string(), shared.into());
                if shared > 0 {
                    console.note(format_args!(
                        "{shared} of {} validation boards are among those to train on; make the boards of the two with \
                         `mgsd tasks generate --part training` and `--part held-out`",
                        examples.len()
                    ));
                }
            }
        }
        let rows = opcd::rows(&examples, &prompts, plan, &args.out)?;
        opcd::write_json(&args.out.join(format!("{name}.json")), &rows)?;
        let samples = rows.iter().map(|row| opcd::sample(row, &args.out)).collect::<Result<Vec<_>, _>>()?;
        opcd::write_parquet(&args.out.join(format!("{name}.parquet")), &samples, &args.out)?;
        console.say(format_args!("{} {name} rows in {}", rows.len(), args.out.display()));
        counts.insert(name.to_string(), rows.len().into());
    }
    console.result(&counts)
}

fn vlmevalkit_file(args: &VlmEvalKit, console: &Console) -> anyhow::Result<()> {
    let (prompts, pictures) =
        (Prompts::open(&args.prompts)?, RenderOptions { image_size: 256, tiles: tile_set(args.tiles.as_deref())? });
    let ask = if args.ask == "plan" { Question::Plan } else { Question::Perception };
    let count = if let Some(root) = &args.benchmark {
        let options = benchmarks::Options {
            tasks: args.which.tasks.clone(),
            levels: args.which.levels.clone(),
            split: args.split.clone().unwrap_or("test".to_string()),
            samples_per_task: args.samples_per_task,
            ..benchmarks::Options::default()
        };
        let cases = benchmarks::read(root, &options)?;
        vlmevalkit::write(&args.out, cases.iter().map(|case| Record::from_case(case, ask, &prompts, &pictures)))?
    } else {
        let root = args.data.as_ref().context("--data or --benchmark must say which boards")?;
        let mut examples = folder::read(root, &args.which.filter())?;
        if let Some(split) = &args.split {
            examples.retain(|example| example.instance.split == *split);
            anyhow::ensure!(!examples.is_empty(), "{}: no board says split={split}", root.display());
        }
        let records = examples.iter().map(|example| Record::from_example(example, ask, &prompts, &pictures));
        vlmevalkit::write(&args.out, records)?
    };
    console.say(format_args!("{count} boards in {}", args.out.display()));
    console.result(&serde_json::json!({"boards": count, "out": args.out}))
}
