//! `mgsd eval gap` and `mgsd eval compare`: tables over runs that are there already.

use crate::console::Console;
use anyhow::Context;
use mgsd_eval::analysis::{RESAMPLES, SEED};
use mgsd_eval::compare::{Pairing, compare};
use mgsd_eval::rows;
use mgsd_eval::{gap, json};
use std::path::{Path, PathBuf};

/// The text-minus-picture table of planning runs, as JSON, CSV, Markdown and LaTeX.
///
/// Example: mgsd eval gap --runs runs/eval --out runs/eval
#[derive(clap::Args)]
pub struct Gap {
    /// Folders with MODEL_image.summary.json and MODEL_text.summary.json.
    #[arg(long, num_args = 1.., required = true)]
    runs: Vec<PathBuf>,
    /// Folder for modality_gap.json, .csv, .md, .tex and modality_gap_intervals.json; default: the first of --runs.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// One planning run against another on the boards that both answered, with a paired bootstrap interval.
///
/// Example: mgsd eval compare runs/eval/mgsd_image.jsonl runs/eval/base_image.jsonl
#[derive(clap::Args)]
pub struct Compare {
    /// Rows of the first run.
    first: PathBuf,
    /// Rows of the second run.
    second: PathBuf,
    /// JSON file to write.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub fn gap_table(args: &Gap, console: &Console) -> anyhow::Result<()> {
    let mut runs = Vec::new();
    for folder in &args.runs {
        runs.push((folder.as_path(), gap::read_folder(folder)?));
    }
    gap::tell_apart(&mut runs);
    let inputs: Vec<_> = runs.into_iter().flat_map(|(_, inputs)| inputs).collect();
    for (text, image) in gap::pairs(&inputs).filter(|(text, image)| !gap::of_same_boards(text, image)) {
        console.note(format_args!(
            "{}: {} boards as text, {} as pictures: each mean is over its own boards, the gap in the tables for people over \
             those that both answered; run both with the same boards",
            text.label, text.summary.total.num_cases, image.summary.total.num_cases
        ));
    }
    let rows = gap::table(&inputs);
    let out = args.out.as_ref().unwrap_or(&args.runs[0]);
    let paths = gap::write(out, &inputs, &rows)?;
    for row in rows.iter().filter(|row| row.input_modality == "text_minus_image") {
        let of = if row.task.is_empty() { &row.scope } else { &row.task };
        console.say(format_args!("{:12} {of:20} text minus image {:+.4}", row.model_label, row.accuracy));
    }
    for path in paths {
        console.say(path.display());
    }
    console.result(&serde_json::json!({"rows": rows}))
}

pub fn compare_runs(args: &Compare, console: &Console) -> anyhow::Result<()> {
    let name = |path: &Path| path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (first, second) = (rows::plans(&args.first)?, rows::plans(&args.second)?);
    let compared = compare([&name(&args.first), &name(&args.second)], [&first, &second], RESAMPLES, SEED)
        .with_context(|| {
            let (first, second) = (args.first.display(), args.second.display());
            format!("{first} and {second} have no answered board in common: compare runs over the same boards")
        })?;
    let line = |task: &str, pairing: &Pairing| {
        let interval = pairing.difference.interval;
        console.say(format_args!(
            "{task:14} {:6.2} % against {:6.2} %   difference {:+6.2} points, 95 % {:+.2} to {:+.2}   only first {}, only second {}, boards {}",
            100.0 * pairing.first,
            100.0 * pairing.second,
            100.0 * pairing.difference.value,
            100.0 * interval.low,
            100.0 * interval.high,
            pairing.only_first,
            pairing.only_second,
            pairing.cases
        ));
    };
    for (task, pairing) in &compared.by_task {
        line(task, pairing);
    }
    line("mean of tasks", &compared.mean);
    if let Some(path) = &args.out {
        json::write(path, &compared)?;
        console.say(path.display());
    }
    console.result(&compared)
}
