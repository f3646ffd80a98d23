//! `mgsd eval`: what a model can do.

use super::Device;
use super::model::Pixels;
use super::tasks::tile_set;
use crate::console::Console;
use anyhow::{Context, bail};
use mgsd_data::{benchmarks, folder, prompts::Prompts};
use mgsd_eval::cases::{EvalCase, Modality};
use mgsd_eval::client::LocalClient;
use mgsd_eval::run::{Resume, RunOptions};
use mgsd_eval::{gap, perception, plan};
use mgsd_tasks::{RenderOptions, Task};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Measure planning, perception and the modality gap.
#[derive(clap::Subcommand)]
pub enum Command {
    Plan(Plan),
    Perception(Perception),
    Gap(Gap),
}

/// Ask a model for plans, and score them by the benchmark's rules.
///
/// Example: mgsd eval plan --model assets/nano --data data --modality text --prompts compact --out runs/eval
#[derive(clap::Args)]
pub struct Plan {
    #[command(flatten)]
    common: Common,
}

/// Ask a model what is on the boards, and score each question.
///
/// Example: mgsd eval perception --model runs/sft/model --data data --prompts compact --out runs/eval
#[derive(clap::Args)]
pub struct Perception {
    #[command(flatten)]
    common: Common,
}

/// The text-minus-picture table of planning runs.
///
/// Example: mgsd eval gap --runs runs/eval --out runs/eval
#[derive(clap::Args)]
pub struct Gap {
    /// Folders with MODEL_image.summary.json and MODEL_text.summary.json.
    #[arg(long, num_args = 1.., required = true)]
    runs: Vec<PathBuf>,
    /// Folder for modality_gap.json and modality_gap.csv; default: the first of --runs.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Common {
    /// Model folder.
    #[arg(long)]
    model: PathBuf,
    /// Task folder, as `mgsd tasks generate` writes it.
    #[arg(long, conflicts_with = "benchmark", required_unless_present = "benchmark")]
    data: Option<PathBuf>,
    /// Folder of a public benchmark: DiffThinker's FrozenLake maps or VisualPlanning.
    #[arg(long)]
    benchmark: Option<PathBuf>,
    /// Benchmark split.
    #[arg(long, default_value = "test")]
    split: String,
    /// How the boards are shown.
    #[arg(long, default_value = "image")]
    modality: Modality,
    /// Tasks to ask about; default: all.
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<Task>,
    /// Levels to ask about; default: all.
    #[arg(long, value_delimiter = ',')]
    levels: Vec<usize>,
    /// At most this many boards of each task.
    #[arg(long)]
    samples_per_task: Option<usize>,
    /// Leave out this many boards of each task first.
    #[arg(long, default_value_t = 0)]
    start_index: usize,
    /// Folder to write rows and summaries to.
    #[arg(long)]
    out: PathBuf,
    /// Name of the model in files and tables; default: its folder's name.
    #[arg(long)]
    label: Option<String>,
    /// Keep rows that are there, ask only about the rest.
    #[arg(long)]
    resume: bool,
    /// Texts around the boards: standard, compact, or a folder.
    #[arg(long, default_value = "standard")]
    prompts: String,
    /// Longest answer in tokens.
    #[arg(long, default_value_t = 4096)]
    max_new_tokens: usize,
    /// 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Only the likeliest tokens that together reach this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Seed of sampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Boards answered side by side.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Folder with FrozenLake tiles, for boards that are drawn anew.
    #[arg(long)]
    tiles: Option<PathBuf>,
    #[command(flatten)]
    pixels: Pixels,
    #[command(flatten)]
    device: Device,
}

pub fn run(command: Command, console: &Console) -> anyhow::Result<()> {
    match command {
        Command::Plan(args) => plan_run(&args.common, console),
        Command::Perception(args) => perception_run(&args.common, console),
        Command::Gap(args) => gap_table(&args, console),
    }
}

impl Common {
    fn cases(&self) -> anyhow::Result<Vec<EvalCase>> {
        let pictures = Arc::new(RenderOptions { image_size: 256, tiles: tile_set(self.tiles.as_deref())? });
        let cases: Vec<EvalCase> = if let Some(root) = &self.benchmark {
            let options = benchmarks::Options {
                tasks: self.tasks.clone(),
                levels: self.levels.clone(),
                split: self.split.clone(),
                start_index: self.start_index,
                samples_per_task: self.samples_per_task,
            };
            let cases = benchmarks::read(root, &options)?;
            cases.into_iter().map(|case| EvalCase::from_benchmark(&Arc::new(case), &pictures)).collect()
        } else {
            let root = self.data.as_ref().context("--data or --benchmark must say which boards")?;
            let filter = folder::Filter { tasks: self.tasks.clone(), levels: self.levels.clone() };
            let mut seen: HashMap<Task, usize> = HashMap::new();
            let last = self.samples_per_task.map_or(usize::MAX, |most| self.start_index.saturating_add(most));
            folder::read(root, &filter)?
                .iter()
                .filter(|example| {
                    let place = seen.entry(example.task).or_default();
                    *place += 1;
                    (self.start_index + 1..=last).contains(place)
                })
                .map(|example| EvalCase::from_example(example, &pictures))
                .collect()
        };
        if cases.is_empty() {
            bail!("no board fits --tasks, --levels and --start-index: nothing to ask");
        }
        Ok(cases)
    }

    fn options(&self) -> RunOptions {
        RunOptions {
            modality: self.modality,
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            resume: if self.resume { Resume::Continue } else { Resume::Fresh },
        }
    }

    fn label(&self) -> String {
        let folder = || self.model.file_name().map(|name| name.to_string_lossy().into_owned());
        self.label.clone().or_else(folder).unwrap_or_else(|| "model".to_string())
    }

    fn client(&self) -> anyhow::Result<LocalClient<'static>> {
        Ok(LocalClient::open(&self.model, self.pixels.limits(), self.batch, self.device.open()?)?)
    }
}

fn plan_run(args: &Common, console: &Console) -> anyhow::Result<()> {
    let (cases, prompts, mut client) = (args.cases()?, Prompts::open(&args.prompts)?, args.client()?);
    let bar = console.bar(cases.len() as u64, "plan");
    let mut show = |progress: mgsd_eval::run::Progress| bar.set_position(progress.done as u64);
    let (run, path) =
        plan::run_to_folder(&mut client, &args.label(), &cases, &prompts, &args.options(), &args.out, &mut show)?;
    bar.finish_and_clear();
    for (task, group) in &run.summary.by_task {
        console.say(format_args!(
            "{task:14} success {:6.2} %  optimal {:6.2} %",
            100.0 * group.accuracy,
            100.0 * group.optimal_accuracy
        ));
    }
    let mean = &run.summary.all_tasks_macro_avg;
    console.say(format_args!(
        "{:14} success {:6.2} %  optimal {:6.2} %   {}",
        "mean of tasks",
        100.0 * mean.accuracy,
        100.0 * mean.optimal_accuracy,
        path.display()
    ));
    console.result(&run.summary)?;
    errors(run.rows.iter().filter(|row| row.error.is_some()).count(), cases.len())
}

fn perception_run(args: &Common, console: &Console) -> anyhow::Result<()> {
    let (cases, prompts, mut client) = (args.cases()?, Prompts::open(&args.prompts)?, args.client()?);
    let bar = console.bar(cases.len() as u64, "perception");
    let mut show = |progress: mgsd_eval::run::Progress| bar.set_position(progress.done as u64);
    let (run, path) =
        perception::run_to_folder(&mut client, &args.label(), &cases, &prompts, &args.options(), &args.out, &mut show)?;
    bar.finish_and_clear();
    for (task, counts) in &run.summary.tasks {
        console.say(format_args!("{task:28} all exact {:6.2} %", 100.0 * counts.counts.exact_rate()));
    }
    console.say(path.display());
    console.result(&run.summary)?;
    errors(run.rows.iter().filter(|row| row.error.is_some()).count(), cases.len())
}

/// An evaluation in which cases went unanswered has not done all that was asked.
fn errors(failed: usize, asked: usize) -> anyhow::Result<()> {
    if failed > 0 {
        bail!("{failed} of {asked} boards got no answer: the rows say why; run again with --resume to ask them again");
    }
    Ok(())
}

fn gap_table(args: &Gap, console: &Console) -> anyhow::Result<()> {
    let mut inputs = Vec::new();
    for folder in &args.runs {
        inputs.extend(gap::read_folder(folder)?);
    }
    let rows = gap::table(&inputs);
    let out = args.out.as_ref().unwrap_or(&args.runs[0]);
    let paths = gap::write(out, &rows)?;
    for row in rows.iter().filter(|row| row.input_modality == "text_minus_image") {
        let of = if row.task.is_empty() { &row.scope } else { &row.task };
        console.say(format_args!("{:12} {of:20} text minus image {:+.4}", row.model_label, row.accuracy));
    }
    console.say(paths[0].display());
    console.result(&rows)
}
