//! A report from what runs left on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mgsd_tasks::plan::parse_benchmark;
use mgsd_tasks::{Board, Instance, Plan, RenderOptions, Task, TileSet};
use serde_json::Value;

use super::data::{BoardCard, Curve, Fact, Headline, Outcome, ReportData, Series, Stage, png_data_url, verdict};
use crate::demo::{Demo, MACRO};
use crate::error::{Error, Result};
use crate::perception::PerceptionRow;
use crate::rows::{self, PlanRow};

/// Boards shown of each stage, task and outcome.
const CARDS: usize = 4;
/// Side of a board in the gallery, in pixels.
const CARD_SIZE: usize = 192;
/// Seed of the bootstrap intervals.
const SEED: u64 = 0;

/// Known stages: file label, name on the page, and what happened.
const STAGES: [[&str; 3]; 3] = [
    ["base", "Base", "the model as it comes"],
    ["sft", "+ perception SFT", "taught to read the boards"],
    ["mgsd", "+ OPCD", "taught by its text-only self on its own rollouts"],
];

/// Reads run folders: evaluation rows (`*_image.jsonl`, `*_text.jsonl`, `*_perception.jsonl`, in the folder or its
/// `eval/`), training metrics (`*/metrics.jsonl`), boards below `data/`, and `demo.json`.
///
/// # Errors
/// When a folder cannot be read, or holds nothing to report.
pub fn read_runs(folders: &[PathBuf]) -> Result<ReportData> {
    let mut data = ReportData { title: "From reading the picture to planning from it".into(), ..ReportData::default() };
    for folder in folders {
        let prefix = if folders.len() > 1 { format!("{}: ", name(folder)) } else { String::new() };
        let boards = read_boards(&folder.join("data"));
        for sub in [folder.clone(), folder.join("eval")] {
            add_evaluations(&mut data, &sub, &prefix, &boards)?;
        }
        add_training(&mut data, folder, &prefix)?;
        add_demo(&mut data, folder)?;
    }
    if data.stages.is_empty() && data.curves.is_empty() {
        let path = folders.first().cloned().unwrap_or_default();
        return Err(Error::Json {
            path,
            message:
                "holds no evaluation rows (*_image.jsonl, *_text.jsonl, *_perception.jsonl) and no metrics.jsonl: \
                      name a folder that `mgsd demo`, `mgsd eval` or `mgsd train` wrote"
                    .into(),
        });
    }
    Ok(data)
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Entries of a folder by name; none when it is missing.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).map(|items| items.flatten().map(|item| item.path()).collect()).unwrap_or_default();
    paths.sort();
    paths
}

/// Boards by case id, from the task folders below `root`.
fn read_boards(root: &Path) -> BTreeMap<String, Board> {
    let mut boards = BTreeMap::new();
    for folder in [root.to_path_buf(), root.join("test")] {
        if !Task::ALL.iter().any(|task| folder.join(task.dir_name()).is_dir()) {
            continue;
        }
        // A board that cannot be read is only missing from the gallery.
        for example in mgsd_data::folder::read(&folder, &Default::default()).unwrap_or_default() {
            let Instance { board, .. } = example.instance;
            boards.insert(example.id, board);
        }
    }
    boards
}

fn add_evaluations(data: &mut ReportData, folder: &Path, prefix: &str, boards: &BTreeMap<String, Board>) -> Result<()> {
    let mut labels: Vec<String> = Vec::new();
    for path in entries(folder) {
        let file = name(&path);
        for suffix in ["_image.jsonl", "_text.jsonl", "_perception.jsonl"] {
            match file.strip_suffix(suffix) {
                Some(label) if !labels.iter().any(|known| known == label) => labels.push(label.to_string()),
                _ => {}
            }
        }
    }
    labels.sort_by_key(|label| STAGES.iter().position(|stage| stage[0] == label).unwrap_or(STAGES.len()));
    for label in labels {
        let plans = |modality: &str| -> Result<Vec<PlanRow>> {
            let path = folder.join(format!("{label}_{modality}.jsonl"));
            if path.exists() { Ok(rows::latest(rows::read(&path)?)) } else { Ok(Vec::new()) }
        };
        let (image, text) = (plans("image")?, plans("text")?);
        let path = folder.join(format!("{label}_perception.jsonl"));
        let perception: Vec<PerceptionRow> = if path.exists() { rows::latest(rows::read(&path)?) } else { Vec::new() };
        let known = STAGES.iter().find(|stage| stage[0] == label);
        let [_, title, note] = known.copied().unwrap_or(["", &label, ""]);
        let key = format!("{prefix}{label}");
        let stage = Stage::from_rows([&key, &format!("{prefix}{title}"), note], &image, &text, &perception, SEED);
        data.stages.push(stage);
        add_cards(data, &key, &image, boards);
    }
    Ok(())
}

/// A few boards of each task and outcome, with the plan drawn on them.
fn add_cards(data: &mut ReportData, stage: &str, image: &[PlanRow], boards: &BTreeMap<String, Board>) {
    let pictures = RenderOptions { image_size: CARD_SIZE, tiles: TileSet::drawn() };
    let mut shown: BTreeMap<(String, Outcome), usize> = BTreeMap::new();
    for row in image.iter().filter(|row| row.error.is_none()) {
        let Some(board) = boards.get(&row.case_id) else { continue };
        let outcome = Outcome::of(row);
        let count = shown.entry((row.task.clone(), outcome)).or_default();
        if *count == CARDS {
            continue;
        }
        *count += 1;
        let answer = row.answer_text.clone().unwrap_or_default();
        let plan = Plan(parse_benchmark(board.task(), &answer).actions);
        let Ok(mut picture) = board.render(&pictures) else { continue };
        mgsd_tasks::draw_plan(board, &plan, &mut picture);
        let Ok(png) = picture.to_png() else { continue };
        data.gallery.push(BoardCard {
            case_id: row.case_id.clone(),
            task: row.task.clone(),
            stage: stage.to_string(),
            level: row.level.unwrap_or(0),
            modality: "image".into(),
            outcome,
            verdict: verdict(row),
            actions: row.actions.clone().unwrap_or_default(),
            shortest: board.solve().map(|plan| plan.len() as u64),
            answer,
            picture: png_data_url(&png),
        });
    }
}

/// One chart a quantity: (metric, title, axis, whether it is a share, whether the axis is logarithmic).
const CHARTS: [(&str, &str, &str, bool, bool); 3] = [
    ("loss", "Loss", "loss in nats a token", false, true),
    ("reverse_kl", "Distance from the teacher", "reverse KL in nats a token", false, true),
    ("success", "Rollouts that solve their board", "share of rollouts", true, false),
];

fn add_training(data: &mut ReportData, folder: &Path, prefix: &str) -> Result<()> {
    let mut runs = vec![folder.to_path_buf()];
    runs.extend(entries(folder).into_iter().filter(|path| path.is_dir()));
    for run in runs {
        let path = run.join("metrics.jsonl");
        if !path.exists() {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io("reading", &path))?;
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let distils = lines.iter().any(|line| line.get("reverse_kl").is_some());
        for (metric, title, y_label, percent, log_y) in CHARTS {
            // Distillation's loss is its reverse KL: one chart is enough.
            if metric == "loss" && distils {
                continue;
            }
            let series: Vec<Series> = [("train", "training step"), ("eval", "held-out boards")]
                .into_iter()
                .filter_map(|(phase, label)| {
                    let points: Vec<[f64; 2]> = lines
                        .iter()
                        .filter(|line| line["phase"] == phase)
                        .filter_map(|line| Some([line["step"].as_f64()?, line[metric].as_f64()?]))
                        .collect();
                    (!points.is_empty()).then(|| Series { label: label.into(), points })
                })
                .collect();
            if !series.is_empty() {
                let title = format!("{prefix}{title}, {}", name(&run));
                let (y_label, x_label) = (y_label.to_string(), "optimiser step".to_string());
                data.curves.push(Curve { title, y_label, x_label, percent, log_y, series });
            }
        }
    }
    Ok(())
}

/// The headline numbers of a demo.
fn add_demo(data: &mut ReportData, folder: &Path) -> Result<()> {
    let path = folder.join("demo.json");
    if !path.exists() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io("reading", &path))?;
    let demo: Demo = serde_json::from_str(&text).map_err(|error| Error::Json { path, message: error.to_string() })?;
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let exact = |stage: &crate::demo::StageScores| stage.perception_exact_match.get(MACRO).copied().unwrap_or(0.0);
    data.lead = "A small model with the architecture of Qwen3-VL plans well from a board's text and hardly from its \
                 picture. Stage 1 teaches it to read the picture, stage 2 lets its own text-only self, which sees the \
                 symbolic state, teach it on its own rollouts. All boards measured here were never trained on."
        .into();
    if !data.stages.iter().any(|stage| stage.key.ends_with("sft")) {
        data.lead.push_str(" In this run stage 1 was left out.");
    }
    data.headlines = vec![
        Headline {
            label: "plans from the picture".into(),
            value: percent(demo.mgsd.picture.macro_accuracy()),
            note: format!("{} before training", percent(demo.base.picture.macro_accuracy())),
        },
        Headline {
            label: "of the modality gap closed".into(),
            value: demo.gap_closed.map_or_else(|| "no gap".into(), percent),
            note: format!("text planning of the base: {}", percent(demo.base.text.macro_accuracy())),
        },
        Headline {
            label: "boards read without a mistake".into(),
            value: percent(exact(&demo.sft)),
            note: format!(
                "after stage 1; {} before, {} at the end",
                percent(exact(&demo.base)),
                percent(exact(&demo.mgsd))
            ),
        },
    ];
    let fact = |label: &str, value: String| Fact { label: label.into(), value };
    data.facts.push(fact("Seed", demo.seed.to_string()));
    data.facts.push(fact("Seconds", format!("{:.0}", demo.seconds.get("total").copied().unwrap_or(0.0))));
    if let Some(bytes) = demo.peak_memory_bytes {
        data.facts.push(fact("Peak memory", format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))));
    }
    data.footer.push(format!("Made by `mgsd demo --seed {}`.", demo.seed));
    Ok(())
}
