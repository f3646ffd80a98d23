//! `mgsd eval plan` and `mgsd eval perception`: asking a model about boards.

use super::endpoint::EndpointArgs;
use crate::commands::model::Pixels;
use crate::commands::tasks::tile_set;
use crate::commands::{Devices, alone, model_folder, model_folder_of};
use crate::console::Console;
use anyhow::{Context, bail};
use mgsd_data::{benchmarks, folder, prompts::Prompts};
use mgsd_eval::analysis::{self, Tokens};
use mgsd_eval::cases::{EvalCase, Modality};
use mgsd_eval::client::{Client, LocalClient, Request};
use mgsd_eval::run::{Progress, Resume, RunOptions};
use mgsd_eval::several::Several;
use mgsd_eval::{endpoint, perception, plan};
use mgsd_tasks::{RenderOptions, Task};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Ask a model for plans, and score them by the benchmark's rules.
///
/// Examples:
///   mgsd eval plan --model assets/nano --data data --modality text --prompts compact --out runs/eval
///   mgsd eval plan --endpoint http://127.0.0.1:8000/v1 --model NAME --benchmark bench --out runs/eval
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Plan {
    #[command(flatten)]
    pub common: Common,
}

/// Ask a model what is on the boards, and score each question.
///
/// Example: mgsd eval perception --model runs/sft/model --data data --prompts compact --out runs/eval
#[derive(clap::Args)]
pub struct Perception {
    #[command(flatten)]
    pub common: Common,
}

#[derive(clap::Args)]
pub struct Common {
    /// Model folder, or a name on the Hugging Face Hub; with --endpoint the model's name there.
    #[arg(long)]
    model: String,
    /// Folder of a PEFT adapter that was trained on the model.
    #[arg(long, conflicts_with = "endpoints")]
    adapter: Option<PathBuf>,
    /// Task folder, as `mgsd tasks generate` writes it.
    #[arg(long, conflicts_with = "benchmark", required_unless_present = "benchmark")]
    data: Option<PathBuf>,
    /// Folder of a public benchmark: DiffThinker's FrozenLake maps or VisualPlanning.
    #[arg(long)]
    benchmark: Option<PathBuf>,
    /// Split: for a benchmark test (the default) or train, for a task folder the split that its files name (default:
    /// all).
    #[arg(long)]
    split: Option<String>,
    /// How the boards are shown.
    #[arg(long, default_value = "image")]
    modality: Modality,
    /// Tasks to ask about; default: all.
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<Task>,
    /// Levels to ask about; default: all.
    #[arg(long, value_delimiter = ',', value_parser = crate::commands::level)]
    levels: Vec<usize>,
    /// At most this many boards of each task.
    #[arg(long)]
    samples_per_task: Option<usize>,
    /// Leave out this many boards of each task first.
    #[arg(long, default_value_t = 0)]
    start_index: usize,
    /// Folder to write rows, summaries and analyses to.
    #[arg(long)]
    out: PathBuf,
    /// Name of the model in files and tables; default: its folder's name (of runs/NAME/model: NAME-model), followed by the
    /// adapter's if there is one, or its name at the endpoint.
    #[arg(long)]
    label: Option<String>,
    /// Keep rows that are there, ask only about the rest.
    #[arg(long)]
    resume: bool,
    /// Say what would be asked, and roughly how many tokens that is; ask nothing, write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Texts around the boards: standard, compact, or a folder.
    #[arg(long, default_value = "standard")]
    prompts: String,
    /// Longest answer in tokens.
    #[arg(long, default_value_t = 4096, value_parser = crate::commands::at_least_one)]
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
    /// Boards answered side by side by a model in process.
    #[arg(long, default_value_t = 32, value_parser = crate::commands::at_least_one)]
    batch: usize,
    /// Folder with FrozenLake tiles, for boards that are drawn anew.
    #[arg(long)]
    tiles: Option<PathBuf>,
    #[command(flatten)]
    pixels: Pixels,
    #[command(flatten)]
    devices: Devices,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

impl Common {
    fn cases(&self) -> anyhow::Result<Vec<EvalCase>> {
        let pictures = Arc::new(RenderOptions { image_size: 256, tiles: tile_set(self.tiles.as_deref())? });
        let cases: Vec<EvalCase> = if let Some(root) = &self.benchmark {
            let options = benchmarks::Options {
                tasks: self.tasks.clone(),
                levels: self.levels.clone(),
                split: self.split.clone().unwrap_or_else(|| "test".to_string()),
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
                .filter(|example| self.split.as_ref().is_none_or(|split| *split == example.instance.split))
                .filter(|example| {
                    let place = seen.entry(example.task).or_default();
                    *place += 1;
                    (self.start_index + 1..=last).contains(place)
                })
                .map(|example| EvalCase::from_example(example, &pictures))
                .collect()
        };
        if cases.is_empty() {
            bail!("no board fits --tasks, --levels, --split and --start-index: nothing to ask");
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

    /// A name for files: the last part of a folder or of `vendor/model`; of what a training run left in its folder
    /// (`model`, `adapter`, `best`, `checkpoint-..`) that and the run's name.
    fn label(&self) -> String {
        let last = |path: &Path| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            let of_run = ["model", "adapter", "best"].contains(&name.as_str()) || name.starts_with("checkpoint-");
            let run = path.parent().filter(|_| of_run).and_then(Path::file_name);
            Some(run.map_or(name.clone(), |run| format!("{}-{name}", run.to_string_lossy())))
        };
        let given = || {
            let model = last(Path::new(&self.model))?;
            let adapter = self.adapter.as_deref().and_then(last);
            Some(adapter.map_or(model.clone(), |adapter| format!("{model}-{adapter}")))
        };
        let label = self.label.clone().or_else(given).unwrap_or_else(|| "model".to_string());
        label.replace(['/', '\\', ':'], "-")
    }

    fn client(&self, console: &Console) -> anyhow::Result<Box<dyn Client>> {
        if !self.endpoint.endpoints.is_empty() {
            return Ok(Box::new(self.endpoint.client(&self.model)?));
        }
        let (model, limits) = (model_folder(Path::new(&self.model), console)?, self.pixels.limits());
        let adapter = model_folder_of(self.adapter.as_ref(), console)?;
        let open = |device| Ok(LocalClient::open(&model, adapter.as_deref(), limits, self.batch, device)?);
        let mut clients: Vec<LocalClient> =
            self.devices.open()?.into_iter().map(open).collect::<anyhow::Result<_>>()?;
        match clients.pop() {
            Some(only) if clients.is_empty() => Ok(Box::new(only)),
            last => {
                clients.extend(last);
                // Twice as many as fit, so that a place that becomes free is taken.
                Ok(Box::new(Several::new(clients, 2 * self.batch)))
            }
        }
    }
}

pub fn plan_run(args: &Common, console: &Console) -> anyhow::Result<()> {
    let (cases, prompts, options) = (args.cases()?, Prompts::open(&args.prompts)?, args.options());
    if args.dry_run {
        return dry_run(
            args,
            &plan::pending(&args.label(), &cases, &prompts, &options, &args.out)?,
            cases.len(),
            console,
        );
    }
    alone(SEVERAL)?;
    let mut client = args.client(console)?;
    let bar = console.bar(cases.len() as u64, "plan");
    let mut show = |progress: Progress| bar.set_position(progress.done as u64);
    let run = plan::run_to_folder(&mut *client, &args.label(), &cases, &prompts, &options, &args.out, &mut show);
    bar.finish_and_clear();
    let (run, path) = run?;
    let analysis = analysis::of_plans(&run.rows);
    for (task, group) in &run.summary.by_task {
        console.say(format_args!(
            "{task:14} success {:6.2} %  optimal {:6.2} %",
            100.0 * group.accuracy,
            100.0 * group.optimal_accuracy
        ));
    }
    let mean = &run.summary.all_tasks_macro_avg;
    // The interval is over tasks with an answer; the mean counts one without as 0.
    let complete = run.summary.by_task.len() == analysis.by_task.len();
    let interval = analysis.macro_accuracy.filter(|_| complete).map(|estimate| estimate.interval);
    console.say(format_args!(
        "{:14} success {:6.2} %  optimal {:6.2} %   {}   {}",
        "mean of tasks",
        100.0 * mean.accuracy,
        100.0 * mean.optimal_accuracy,
        interval.map_or_else(String::new, |of| format!("95 % {:.2} to {:.2}", 100.0 * of.low, 100.0 * of.high)),
        path.display()
    ));
    for (ending, causes) in &analysis.failures {
        let parts: Vec<String> = causes.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
        console.say(format_args!("failed: {ending:14} {:5}   ({})", causes.values().sum::<u64>(), parts.join(", ")));
    }
    used(args, client.as_ref(), &analysis.tokens, console)?;
    console.result(&run.summary)?;
    unanswered(run.rows.iter().filter(|row| row.error.is_some()).count(), run.rows.len(), cases.len())
}

pub fn perception_run(args: &Common, console: &Console) -> anyhow::Result<()> {
    let (cases, prompts, options) = (args.cases()?, Prompts::open(&args.prompts)?, args.options());
    if args.dry_run {
        let requests = perception::pending(&args.label(), &cases, &prompts, &options, &args.out)?;
        return dry_run(args, &requests, cases.len(), console);
    }
    alone(SEVERAL)?;
    let mut client = args.client(console)?;
    let bar = console.bar(cases.len() as u64, "perception");
    let mut show = |progress: Progress| bar.set_position(progress.done as u64);
    let run = perception::run_to_folder(&mut *client, &args.label(), &cases, &prompts, &options, &args.out, &mut show);
    bar.finish_and_clear();
    let (run, path) = run?;
    for (task, counts) in &run.summary.tasks {
        let interval = mgsd_eval::stats::wilson(counts.counts.all_exact_match, counts.counts.total);
        console.say(format_args!(
            "{task:28} all exact {:6.2} %   95 % {:.2} to {:.2}",
            100.0 * counts.counts.exact_rate(),
            100.0 * interval.low,
            100.0 * interval.high
        ));
    }
    console.say(path.display());
    used(args, client.as_ref(), &analysis::of_perception(&run.rows).tokens, console)?;
    console.result(&run.summary)?;
    unanswered(run.rows.iter().filter(|row| row.error.is_some()).count(), run.rows.len(), cases.len())
}

/// How an evaluation is shared.
const SEVERAL: &str = "several GPUs of a machine share the boards with --device cuda:0,cuda:1, several machines with \
                       `mgsd serve` on each and --endpoint URL URL";

/// Requests, tokens and cost, where an endpoint counts them.
fn used(args: &Common, client: &dyn Client, tokens: &Tokens, console: &Console) -> anyhow::Result<()> {
    let Some(spent) = client.spent() else { return Ok(()) };
    console.say(format_args!(
        "requests {} (of these {} repeats)   tokens in {}, out {}{}",
        spent.requests,
        spent.retries,
        tokens.prompt,
        tokens.answer,
        if tokens.untold > 0 { format!("   (unknown for {} answers)", tokens.untold) } else { String::new() }
    ));
    if let Some(prices) = args.endpoint.prices()? {
        console.say(format_args!("cost of all rows {:.4}", tokens.cost(prices)));
    }
    if spent.budget_used_up {
        console.note("--max-requests is used up");
    }
    Ok(())
}

/// What would be asked.
fn dry_run(args: &Common, requests: &[Request], boards: usize, console: &Console) -> anyhow::Result<()> {
    let sum = endpoint::estimate(requests).map_err(anyhow::Error::msg)?;
    console.say(format_args!(
        "{} of {boards} boards would be asked about ({} are answered)",
        sum.requests,
        boards - requests.len()
    ));
    console.say(format_args!(
        "roughly {} tokens in, at most {} out (a token is taken for 4 bytes of text or 32 x 32 pixels)",
        sum.prompt_tokens, sum.most_answer_tokens
    ));
    let tokens = Tokens { prompt: sum.prompt_tokens, answer: sum.most_answer_tokens, untold: 0 };
    let cost = args.endpoint.prices()?.map(|prices| tokens.cost(prices));
    if let Some(cost) = cost {
        console.say(format_args!("roughly {cost:.4} at most"));
    }
    let mut example = serde_json::Value::Null;
    if let (Some(first), false) = (requests.first(), args.endpoint.endpoints.is_empty()) {
        example = args.endpoint.client(&args.model)?.body(first)?;
        shorten_pictures(&mut example);
        console.say(format_args!("the first request:\n{}", serde_json::to_string_pretty(&example)?));
    }
    console.result(&serde_json::json!({
        "boards": boards, "requests": sum.requests, "prompt_tokens": sum.prompt_tokens,
        "most_answer_tokens": sum.most_answer_tokens, "most_cost": cost, "first_request": example,
    }))
}

/// Cuts data URLs down to what one can read.
fn shorten_pictures(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) if text.starts_with("data:") => {
            let kept: String = text.chars().take(48).collect();
            *text = format!("{kept}... ({} characters)", text.len());
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(shorten_pictures),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(shorten_pictures),
        _ => {}
    }
}

/// An evaluation in which cases went unanswered has not done all that was asked.
fn unanswered(failed: usize, rows: usize, asked: usize) -> anyhow::Result<()> {
    let unasked = asked - rows;
    if unasked > 0 {
        bail!(
            "{unasked} of {asked} boards were not asked about, {failed} got no answer: run again with --resume for them"
        );
    }
    if failed > 0 {
        bail!("{failed} of {asked} boards got no answer: the rows say why; run again with --resume to ask them again");
    }
    Ok(())
}
