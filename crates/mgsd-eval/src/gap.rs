//! The modality gap: what a model loses when the same boards are shown as pictures instead of as text.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::analysis::{RESAMPLES, SEED};
use crate::compare::{self, Pairing, compare};
use crate::error::{Error, Result};
use crate::gap_table;
use crate::json;
use crate::perception::PERCEPTION_FROM_TEXT;
use crate::rows::{self, PlanRow};
use crate::stats::{Estimate, paired_difference};
use crate::summary::{Group, Macro, Summary};

/// One row of the table: a model's rates in one modality, or text minus picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the field names are the published ones and say what they hold")]
pub struct GapRow {
    pub summary_file: String,
    pub model_label: String,
    /// `image`, `text` or `text_minus_image`.
    pub input_modality: String,
    /// `all_tasks_macro_avg`, `total` or `task`.
    pub scope: String,
    pub task: String,
    pub accuracy: f64,
    pub optimal_accuracy: f64,
    pub parse_rate: f64,
    pub success_rate: f64,
    pub optimal_success_rate: f64,
    pub illegal_movement_rate: f64,
}

/// A summary that enters the table.
#[derive(Clone, Debug)]
pub struct GapInput {
    /// What the table calls the file.
    pub file: String,
    /// The model's name in the table.
    pub label: String,
    /// `image` or `text`.
    pub modality: String,
    /// The rates.
    pub summary: Summary,
    /// The rows behind them, if they lie beside the summary.
    pub rows: Option<PathBuf>,
}

/// The six rates in the table's order.
fn rates(row: &GapRow) -> [f64; 6] {
    [
        row.accuracy,
        row.optimal_accuracy,
        row.parse_rate,
        row.success_rate,
        row.optimal_success_rate,
        row.illegal_movement_rate,
    ]
}

fn row(input: &GapInput, scope: &str, task: &str, rates: [f64; 6]) -> GapRow {
    let [accuracy, optimal_accuracy, parse_rate, success_rate, optimal_success_rate, illegal_movement_rate] = rates;
    GapRow {
        summary_file: input.file.clone(),
        model_label: input.label.clone(),
        input_modality: input.modality.clone(),
        scope: scope.to_string(),
        task: task.to_string(),
        accuracy,
        optimal_accuracy,
        parse_rate,
        success_rate,
        optimal_success_rate,
        illegal_movement_rate,
    }
}

fn group_rates(group: &Group) -> [f64; 6] {
    [
        group.accuracy,
        group.optimal_accuracy,
        group.parse_rate,
        group.success_rate,
        group.optimal_success_rate,
        group.illegal_movement_rate,
    ]
}

fn macro_rates(group: &Macro) -> [f64; 6] {
    [
        group.accuracy,
        group.optimal_accuracy,
        group.parse_rate,
        group.success_rate,
        group.optimal_success_rate,
        group.illegal_movement_rate,
    ]
}

/// The table: each summary's rows in the order given (macro, total, tasks), then the differences of the models that
/// have both modalities, sorted by label, scope and task.
pub fn table(inputs: &[GapInput]) -> Vec<GapRow> {
    let mut rows = Vec::new();
    for input in inputs {
        rows.push(row(input, "all_tasks_macro_avg", "", macro_rates(&input.summary.all_tasks_macro_avg)));
        rows.push(row(input, "total", "", group_rates(&input.summary.total)));
        for (task, group) in &input.summary.by_task {
            rows.push(row(input, "task", task, group_rates(group)));
        }
    }
    let mut gaps = Vec::new();
    for text in rows.iter().filter(|row| row.input_modality == "text") {
        let image = rows.iter().find(|row| {
            row.input_modality == "image"
                && (&row.model_label, &row.scope, &row.task) == (&text.model_label, &text.scope, &text.task)
        });
        let Some(image) = image else { continue };
        let (with_text, with_image) = (rates(text), rates(image));
        let of = GapInput {
            file: String::new(),
            label: text.model_label.clone(),
            modality: "text_minus_image".to_string(),
            summary: Summary::default(),
            rows: None,
        };
        gaps.push(row(&of, &text.scope, &text.task, std::array::from_fn(|at| with_text[at] - with_image[at])));
    }
    gaps.sort_by(|a, b| (&a.model_label, &a.scope, &a.task).cmp(&(&b.model_label, &b.scope, &b.task)));
    rows.extend(gaps);
    rows
}

/// The table as CSV with a header and CRLF line ends.
pub fn to_csv(rows: &[GapRow]) -> String {
    let mut out = String::from(
        "model_label,input_modality,scope,task,accuracy,optimal_accuracy,parse_rate,success_rate,\
         optimal_success_rate,illegal_movement_rate,summary_file\r\n",
    );
    for row in rows {
        for field in [&row.model_label, &row.input_modality, &row.scope, &row.task] {
            out.push_str(&csv_field(field));
            out.push(',');
        }
        for rate in rates(row) {
            let _ = write!(out, "{},", json::python_float(rate));
        }
        out.push_str(&csv_field(&row.summary_file));
        out.push_str("\r\n");
    }
    out
}

fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
}

/// The gap of one model on one task (or the mean over tasks, `macro`) over the boards answered in both modalities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GapInterval {
    /// The model's name in the table.
    pub model_label: String,
    /// Task, or `macro`.
    pub task: String,
    /// Text against picture on the same boards.
    #[serde(flatten)]
    pub pairing: Pairing,
}

/// Text runs with the picture runs of the same label.
pub fn pairs(inputs: &[GapInput]) -> impl Iterator<Item = (&GapInput, &GapInput)> {
    inputs.iter().filter(|input| input.modality == "text").filter_map(|text| {
        let twin = inputs.iter().find(|input| input.modality == "image" && input.label == text.label)?;
        Some((text, twin))
    })
}

/// Whether two runs are over as many boards of each task.
pub fn of_same_boards(text: &GapInput, image: &GapInput) -> bool {
    let counts = |of: &GapInput| -> Vec<(String, u64)> {
        of.summary.by_task.iter().map(|(task, group)| (task.clone(), group.num_cases)).collect()
    };
    counts(text) == counts(image)
}

/// The gaps with their paired bootstrap intervals, for models whose rows are there in both modalities.
///
/// # Errors
/// When a row file cannot be read.
pub fn intervals(inputs: &[GapInput]) -> Result<Vec<GapInterval>> {
    let mut found = Vec::new();
    for (text, image) in pairs(inputs) {
        let Some((text_rows, image_rows)) = text.rows.as_ref().zip(image.rows.as_ref()) else { continue };
        let (told, shown) = (rows::plans(text_rows)?, rows::plans(image_rows)?);
        let Some(compared) = compare(["text", "image"], [&told, &shown], RESAMPLES, SEED) else { continue };
        let all = std::iter::once((crate::demo::MACRO.to_string(), compared.mean)).chain(compared.by_task);
        found.extend(all.map(|(task, pairing)| GapInterval { model_label: text.label.clone(), task, pairing }));
    }
    Ok(found)
}

/// Writes the table into `folder`: `modality_gap.json` and `.csv` in the published form, `.md` and `.tex` for papers,
/// and `modality_gap_intervals.json`. Returns the paths in this order.
///
/// # Errors
/// When a row file cannot be read or a file cannot be written.
pub fn write(folder: &Path, inputs: &[GapInput], rows: &[GapRow]) -> Result<Vec<PathBuf>> {
    let intervals = intervals(inputs)?;
    let path = |end: &str| folder.join(format!("modality_gap{end}"));
    let paths = [".json", ".csv", ".md", ".tex", "_intervals.json"].map(path);
    json::write(&paths[0], rows)?;
    json::write_whole(&paths[1], to_csv(rows).as_bytes())?;
    json::write_whole(&paths[2], gap_table::markdown(rows, &intervals).as_bytes())?;
    json::write_whole(&paths[3], gap_table::latex(rows, &intervals).as_bytes())?;
    json::write(&paths[4], &intervals)?;
    Ok(paths.to_vec())
}

/// The summaries `<model>_{image,text}.summary.json` of a folder in the order of their names; those of perception from
/// text, `<model>_perception_text`, are not about plans. The label is the one in the summary's `experiment`, or else the
/// model's part of the file name.
///
/// # Errors
/// When the folder or a summary cannot be read, or when there is none.
pub fn read_folder(folder: &Path) -> Result<Vec<GapInput>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("reading the folder", folder))? {
        let entry = entry.map_err(Error::io("reading the folder", folder))?;
        if let Some(name) = entry.file_name().to_str().map(str::to_string) {
            names.push(name);
        }
    }
    names.sort();
    let shown = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut inputs = Vec::new();
    for name in names {
        let Some(stem) = name.strip_suffix(".summary.json") else { continue };
        let Some((model, modality @ ("image" | "text"))) = stem.rsplit_once('_') else { continue };
        if stem.ends_with(PERCEPTION_FROM_TEXT) {
            continue;
        }
        let summary: Summary = json::read(&folder.join(&name))?;
        let label = summary.experiment.as_ref().map_or(model, |experiment| &experiment.model_label).to_string();
        let file = if shown.is_empty() { name.clone() } else { format!("{shown}/{name}") };
        let rows = Some(folder.join(format!("{stem}.jsonl"))).filter(|path| path.is_file());
        inputs.push(GapInput { file, label, modality: modality.to_string(), summary, rows });
    }
    if inputs.is_empty() {
        return Err(Error::Empty {
            path: folder.to_path_buf(),
            expected: "summaries of planning runs, MODEL_image.summary.json and MODEL_text.summary.json; \
                       `mgsd eval plan --out DIR` writes them, once with --modality image and once with --modality text",
        });
    }
    Ok(inputs)
}

/// Puts the folder in front of labels that several folders have, so that each text run finds its own picture run.
pub fn tell_apart(runs: &mut [(&Path, Vec<GapInput>)]) {
    let labels: Vec<BTreeSet<String>> =
        runs.iter().map(|(_, inputs)| inputs.iter().map(|input| input.label.clone()).collect()).collect();
    for (folder, inputs) in runs {
        for input in inputs {
            if labels.iter().filter(|labels| labels.contains(&input.label)).count() > 1 {
                input.label = format!("{}/{}", folder.display(), input.label);
            }
        }
    }
}

/// The macro gap in accuracy (text minus picture) over the cases that both runs answered, with a paired bootstrap
/// interval that resamples cases within each task. `None` if the runs share no case.
pub fn paired_gap(text: &[PlanRow], image: &[PlanRow], resamples: usize, seed: u64) -> Option<Estimate> {
    let groups: Vec<Vec<[f64; 2]>> = compare::pairs(text, image).into_values().collect();
    paired_difference(&groups, resamples, seed)
}
