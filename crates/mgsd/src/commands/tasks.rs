//! `mgsd tasks`: boards made, drawn, solved and scored.

use crate::console::Console;
use anyhow::{Context, bail};
use clap::ValueEnum;
use mgsd_data::{folder, split};
use mgsd_tasks::plan::{parse_benchmark, parse_training};
use mgsd_tasks::score::{BenchmarkCase, TrainingCase, benchmark, training};
use mgsd_tasks::{
    Action, Difficulty, FrozenLakeOptions, GenerateOptions, Instance, Plan, RenderOptions, Task, TileSet, files,
};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Make, draw, solve and score planning boards.
///
/// Example: mgsd tasks generate --task maze --levels 3,4 --count 100 --out data
#[derive(clap::Subcommand)]
pub enum Command {
    Generate(Generate),
    Render(Render),
    Solve(Solve),
    Score(Score),
}

/// Make boards with their pictures from a seed.
///
/// Example: mgsd tasks generate --task maze --levels 3,4 --count 100 --out data
#[derive(clap::Args)]
pub struct Generate {
    /// frozenlake, maze or minibehaviour.
    #[arg(long)]
    task: Task,
    /// Sides of the grids, such as 3,4.
    #[arg(long, value_delimiter = ',', required = true, value_parser = super::level)]
    levels: Vec<usize>,
    /// Boards of each level, from 1; `--shard` and `--part` write a share of them.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    count: u64,
    /// Folder to write below: TASK/levelN/{text,image}/NNNN.{txt,png}.
    #[arg(long)]
    out: PathBuf,
    /// Base seed.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Name of the split, written into the text files.
    #[arg(long, default_value = "train")]
    split: String,
    /// Number of the first board; it changes names and where the cycle of difficulties begins, not the seeds.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    start_index: u64,
    /// Added to every seed. A level's boards are drawn from seeds that count up, so that near seeds give the same boards
    /// again, and small boards are few with any seed: `--part` keeps what is measured apart from what is trained on.
    #[arg(long, default_value_t = 0)]
    seed_offset: u64,
    /// Side of the pictures in pixels.
    #[arg(long, default_value_t = 256)]
    image_size: usize,
    /// Write the text files only.
    #[arg(long)]
    no_images: bool,
    /// Folder with the eight FrozenLake tiles under gymnasium 1.3.0's names; default: our own tiles.
    #[arg(long)]
    tiles: Option<PathBuf>,
    /// Write only every n-th board, beginning with the i-th (from 0): i/n.
    #[arg(long, value_name = "I/N", value_parser = shard)]
    shard: Option<(usize, usize)>,
    /// Which boards to write: the held-out tenth is never trained on when a recipe makes its own boards, nor by the demo.
    #[arg(long, value_enum, default_value_t = Part::All)]
    part: Part,
    /// FrozenLake: probability that a cell is frozen; default: 0.9.
    #[arg(long)]
    frozen_probability: Option<f64>,
    /// FrozenLake: start and goal on random cells.
    #[arg(long)]
    random_start_goal: bool,
    /// FrozenLake: fewest steps from start to goal; default: 2.
    #[arg(long)]
    min_path_length: Option<usize>,
    /// FrozenLake: mark the boards as slippery.
    #[arg(long)]
    slippery: bool,
    /// Maze, MiniBehaviour: difficulties, cycled over the boards; default: easy,medium,hard.
    #[arg(long, value_delimiter = ',')]
    difficulty: Vec<Difficulty>,
}

impl Generate {
    /// Options of another task would do nothing.
    fn check(&self) -> anyhow::Result<()> {
        let of_frozen_lake = [
            ("--frozen-probability", self.frozen_probability.is_some()),
            ("--random-start-goal", self.random_start_goal),
            ("--min-path-length", self.min_path_length.is_some()),
            ("--slippery", self.slippery),
            ("--tiles", self.tiles.is_some()),
        ];
        let of_others = [("--difficulty", !self.difficulty.is_empty())];
        let foreign = if self.task == Task::FrozenLake { &of_others[..] } else { &of_frozen_lake };
        if let Some((option, _)) = foreign.iter().find(|(_, given)| *given) {
            bail!("{option} has no meaning for {}; leave it out", self.task);
        }
        Ok(())
    }
}

/// Boards by their content: see `mgsd_data::split`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// All boards.
    All,
    /// Nine tenths.
    Training,
    /// The tenth that is for measuring.
    HeldOut,
}

/// Draw the board of an instance file.
///
/// Example: mgsd tasks render data/Maze/level3/text/0000.txt --out maze.png --plan RRD
#[derive(clap::Args)]
pub struct Render {
    /// Instance text file.
    instance: PathBuf,
    /// PNG to write.
    #[arg(long)]
    out: PathBuf,
    /// Plan to draw on the board, such as RRD or R,PICK,D,DROP.
    #[arg(long)]
    plan: Option<String>,
    /// Folder with FrozenLake tiles.
    #[arg(long)]
    tiles: Option<PathBuf>,
    /// Side of the picture in pixels.
    #[arg(long, default_value_t = 256)]
    image_size: usize,
}

/// Print a shortest plan.
///
/// Example: mgsd tasks solve data/Maze/level3/text/0000.txt
#[derive(clap::Args)]
pub struct Solve {
    /// Instance text file.
    instance: PathBuf,
}

/// Score responses to boards, one JSON object a row.
///
/// Example: mgsd tasks score --rows rows.jsonl --root data --rules benchmark --out scores.jsonl
#[derive(clap::Args)]
pub struct Score {
    /// JSON lines {"id", "task", "instance", "response"}.
    #[arg(long)]
    rows: PathBuf,
    /// Folder that the rows' instance paths start from.
    #[arg(long)]
    root: PathBuf,
    /// Which scoring rules.
    #[arg(long)]
    rules: Rules,
    /// File to write; default: standard output.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rules {
    /// The reward of the training stage.
    Training,
    /// The benchmark's evaluation.
    Benchmark,
}

pub fn run(command: Command, console: &Console) -> anyhow::Result<()> {
    match command {
        Command::Generate(args) => generate(&args, console),
        Command::Render(args) => render(&args, console),
        Command::Solve(args) => solve(&args, console),
        Command::Score(args) => score(&args, console),
    }
}

/// `i/n` with `i < n`.
fn shard(text: &str) -> Result<(usize, usize), String> {
    let expected = || format!("{text:?}: expected I/N with I from 0 to N-1, such as 0/4");
    let (index, count) = text.split_once('/').ok_or_else(expected)?;
    match (index.parse(), count.parse()) {
        (Ok(index), Ok(count)) if index < count => Ok((index, count)),
        _ => Err(expected()),
    }
}

/// Our own tiles, or those of a folder.
pub fn tile_set(folder: Option<&Path>) -> anyhow::Result<TileSet> {
    Ok(match folder {
        Some(folder) => TileSet::load(folder)?,
        None => TileSet::drawn(),
    })
}

fn generate(args: &Generate, console: &Console) -> anyhow::Result<()> {
    args.check()?;
    let usual = GenerateOptions::default();
    let options = GenerateOptions {
        seed: args.seed,
        seed_offset: args.seed_offset,
        split: args.split.clone(),
        difficulties: if args.difficulty.is_empty() { usual.difficulties.clone() } else { args.difficulty.clone() },
        frozen_lake: FrozenLakeOptions {
            frozen_probability: args.frozen_probability.unwrap_or(usual.frozen_lake.frozen_probability),
            random_start_goal: args.random_start_goal,
            min_path_length: args.min_path_length.unwrap_or(usual.frozen_lake.min_path_length),
            slippery: args.slippery,
        },
        ..usual
    };
    let pictures = RenderOptions { image_size: args.image_size, tiles: tile_set(args.tiles.as_deref())? };
    let numbers = args.start_index as usize..(args.start_index + args.count) as usize;
    let levels = folder::without_repeats(&args.levels);
    let bar = console.bar(args.count * levels.len() as u64, "generate");
    let mut written = 0;
    for level in levels {
        let mut instances = mgsd_tasks::generate(args.task, level, &options, numbers.clone())?;
        if let Some((index, count)) = args.shard {
            instances.retain(|instance| instance.index % count == index);
        }
        let wanted = |instance: &Instance| {
            args.part == Part::All || split::held_out(&instance.board.key()) == (args.part == Part::HeldOut)
        };
        let (instances, left_out): (Vec<_>, Vec<_>) = instances.into_iter().partition(wanted);
        files::check_free(&args.out, &instances, &left_out)?;
        files::write_instances(&args.out, &instances, (!args.no_images).then_some(&pictures), || bar.inc(1))?;
        written += instances.len();
    }
    bar.finish_and_clear();
    console.say(format_args!("{written} boards in {}", args.out.join(args.task.dir_name()).display()));
    console.result(&serde_json::json!({"task": args.task.name(), "written": written, "out": args.out}))
}

fn render(args: &Render, console: &Console) -> anyhow::Result<()> {
    let instance = files::read_instance(&args.instance)?;
    let options = RenderOptions { image_size: args.image_size, tiles: tile_set(args.tiles.as_deref())? };
    let mut image = instance.board.render(&options)?;
    if let Some(text) = &args.plan {
        let plan: Plan = text.parse().with_context(|| format!("--plan {text:?}"))?;
        if plan.is_empty() {
            bail!("--plan is empty: expected letters such as RRD, or R,PICK,D,DROP for MiniBehaviour");
        }
        mgsd_tasks::draw_plan(&instance.board, &plan, &mut image);
    }
    files::write_whole(&args.out, &image.to_png()?)?;
    console.say(args.out.display());
    console.result(&serde_json::json!({"out": args.out, "width": image.width, "height": image.height}))
}

fn solve(args: &Solve, console: &Console) -> anyhow::Result<()> {
    let instance = files::read_instance(&args.instance)?;
    let plan = instance.board.solve().with_context(|| {
        format!("{}: no plan solves this board: its goal cannot be reached", args.instance.display())
    })?;
    let answer = plan.answer(instance.task());
    console.say(&answer);
    console.result(&serde_json::json!({"plan": answer, "steps": plan.len()}))
}

/// A row of `--rows`.
#[derive(Deserialize)]
pub struct ResponseRow {
    pub id: serde_json::Value,
    pub task: Option<String>,
    pub instance: PathBuf,
    /// The key must be there; `null` stands for no answer. (Read by a function, since serde takes an `Option` that is
    /// missing for `None`.)
    #[serde(alias = "answer", deserialize_with = "Option::deserialize")]
    pub response: Option<String>,
}

/// Scores must not take the place of the rows that they are made from.
pub fn apart(out: Option<&Path>, rows: &Path) -> anyhow::Result<()> {
    let place = |path: &Path| std::fs::canonicalize(path).ok();
    let same = out.is_some_and(|out| place(out).is_some_and(|out| Some(out) == place(rows)));
    anyhow::ensure!(!same, "--out {}: is the file of --rows, whose responses would be lost", rows.display());
    Ok(())
}

/// Rows of a JSON-lines file, cut at `\n` alone: responses may hold other line separators.
pub fn response_rows(path: &Path) -> anyhow::Result<Vec<ResponseRow>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: the rows cannot be read", path.display()))?;
    let rows: Vec<ResponseRow> = text
        .strip_prefix('\u{feff}')
        .unwrap_or(&text)
        .split('\n')
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            serde_json::from_str(line).with_context(|| {
                format!(
                    "{}: line {}: expected {{\"id\", \"task\", \"instance\", \"response\" or \"answer\"}}",
                    path.display(),
                    number + 1
                )
            })
        })
        .collect::<anyhow::Result<_>>()?;
    if rows.is_empty() {
        bail!("{}: no rows; expected one JSON object a line", path.display());
    }
    Ok(rows)
}

/// Instances by path, each read once; a row's task must be the instance's.
pub struct Instances<'a> {
    root: &'a Path,
    read: HashMap<PathBuf, Instance>,
}

impl<'a> Instances<'a> {
    pub fn below(root: &'a Path) -> Self {
        Self { root, read: HashMap::new() }
    }

    pub fn of(&mut self, row: &ResponseRow) -> anyhow::Result<&Instance> {
        if !self.read.contains_key(&row.instance) {
            self.read.insert(row.instance.clone(), files::read_instance(&self.root.join(&row.instance))?);
        }
        let instance = &self.read[&row.instance];
        if let Some(task) = &row.task {
            // What `mgsd data perception` calls its records.
            let name = task.strip_suffix("_perception_all").unwrap_or(task);
            let named: Task = name.parse().with_context(|| format!("row {}: field \"task\"", row.id))?;
            if named != instance.task() {
                bail!(
                    "row {}: field \"task\" is {task:?}, but {} is a {} board",
                    row.id,
                    row.instance.display(),
                    instance.task()
                );
            }
        }
        Ok(instance)
    }
}

/// Writes lines to a file, whole or not at all, or to standard output.
pub fn write_lines(out: Option<&Path>, lines: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match out {
        Some(path) => Ok(files::write_whole(path, lines.as_bytes())?),
        None => match std::io::stdout().write_all(lines.as_bytes()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written.context("standard output"),
        },
    }
}

fn score(args: &Score, console: &Console) -> anyhow::Result<()> {
    apart(args.out.as_deref(), &args.rows)?;
    let rows = response_rows(&args.rows)?;
    let mut instances = Instances::below(&args.root);
    let (mut lines, mut successes) = (String::new(), 0.0);
    for row in &rows {
        let instance = instances.of(row)?;
        let response = row.response.as_deref();
        let mut object = serde_json::Map::new();
        object.insert("id".to_string(), row.id.clone());
        let (actions, scores) = match args.rules {
            Rules::Training => {
                let score = training::score(&TrainingCase::from_instance(instance), response);
                successes += score.success;
                (parse_training(instance.task(), response.unwrap_or_default()).actions, serde_json::to_value(score)?)
            }
            Rules::Benchmark => {
                let score = benchmark::score(&BenchmarkCase::from_instance(instance), response);
                successes += f64::from(u8::from(score.success));
                (parse_benchmark(instance.task(), response.unwrap_or_default()).actions, serde_json::to_value(&score)?)
            }
        };
        object.insert("actions".to_string(), actions.into_iter().map(Action::word).collect());
        if let serde_json::Value::Object(scores) = scores {
            object.extend(scores);
        }
        lines.push_str(&serde_json::to_string(&object)?);
        lines.push('\n');
    }
    write_lines(args.out.as_deref(), &lines)?;
    let rate = successes / rows.len() as f64;
    console.note(format_args!("{} rows, success {rate:.4}", rows.len()));
    console.result(&serde_json::json!({"rows": rows.len(), "success": rate, "out": args.out}))
}
