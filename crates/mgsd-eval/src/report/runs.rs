//! A report from what runs left on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mgsd_tasks::plan::parse_benchmark;
use mgsd_tasks::{Board, Instance, Plan, RenderOptions, Task, TileSet};
use serde_json::Value;

use super::data::{BoardCard, Curve, Fact, Headline, Outcome, ReportData, Series, Stage, png_data_url, verdict};
use crate::demo::{Demo, MACRO};
use crate::error::{Error, Result};
use crate::failures;
use crate::perception::{PERCEPTION_FROM_TEXT, PerceptionRow};
use crate::rows::{self, PlanRow, Row};

/// Side of a board in the strips, in pixels.
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
/// `eval/`), training metrics (`*/metrics.jsonl`), and `demo.json`. Boards come from the rows, or, where rows do not
/// carry them, from task folders below `data/`.
///
/// # Errors
/// When a folder cannot be read, or holds nothing to report.
pub fn read_runs(folders: &[PathBuf]) -> Result<ReportData> {
    let mut data = ReportData { title: "From reading the picture to planning from it".into(), ..ReportData::default() };
    let mut shown = Vec::new();
    for folder in folders {
        if !folder.is_dir() {
            let message = "no such folder: name one that `mgsd demo`, `mgsd eval` or `mgsd train` wrote".to_string();
            return Err(Error::Json { path: folder.clone(), message });
        }
        let alike = folders.iter().filter(|other| name(other) == name(folder)).count();
        let prefix = match (folders.len(), alike) {
            (1, _) => String::new(),
            (_, 1) => format!("{}: ", name(folder)),
            _ => format!("{}: ", folder.display()),
        };
        let boards = read_boards(&folder.join("data"));
        for sub in [folder.clone(), folder.join("eval")] {
            add_evaluations(&mut data, &mut shown, &sub, &prefix, &boards)?;
        }
        add_training(&mut data, folder, &prefix)?;
        add_demo(&mut data, folder)?;
    }
    data.gallery = strips(&shown);
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

/// A stage's key and its picture rows, each with its board.
type Shown = (String, BTreeMap<String, (PlanRow, Board)>);

fn add_evaluations(
    data: &mut ReportData,
    shown: &mut Vec<Shown>,
    folder: &Path,
    prefix: &str,
    boards: &BTreeMap<String, Board>,
) -> Result<()> {
    let mut labels: Vec<String> = Vec::new();
    for path in entries(folder) {
        let file = name(&path);
        // Perception is shown from pictures.
        if file.strip_suffix(".jsonl").is_some_and(|stem| stem.ends_with(PERCEPTION_FROM_TEXT)) {
            continue;
        }
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
            if path.exists() { rows::plans(&path) } else { Ok(Vec::new()) }
        };
        let (image, text) = (plans("image")?, plans("text")?);
        let path = folder.join(format!("{label}_perception.jsonl"));
        let perception: Vec<PerceptionRow> = if path.exists() { rows::latest(rows::read(&path)?) } else { Vec::new() };
        let known = STAGES.iter().find(|stage| stage[0] == label);
        let [_, title, note] = known.copied().unwrap_or(["", &label, ""]);
        let key = format!("{prefix}{label}");
        let stage = Stage::from_rows([&key, &format!("{prefix}{title}"), note], &image, &text, &perception, SEED);
        data.stages.push(stage);
        let title = format!("{prefix}{title}");
        data.explorer.add(&title, "image", &image, boards);
        data.explorer.add(&title, "text", &text, boards);
        let with_board = |row: PlanRow| {
            let board = failures::board_of(&row).or_else(|| boards.get(&row.case_id).cloned())?;
            Some((row.case_id.clone(), (row, board)))
        };
        shown.push((key, image.into_iter().filter(|row| !row.failed()).filter_map(with_board).collect()));
    }
    Ok(())
}

/// For each task the first board that every stage answered from its picture, rather one that the first stage fails and
/// the last one solves: its cards, stage by stage.
fn strips(shown: &[Shown]) -> Vec<BoardCard> {
    let (Some((_, first)), Some((_, last))) = (shown.first(), shown.last()) else { return Vec::new() };
    if shown.len() < 2 {
        return Vec::new();
    }
    let pictures = RenderOptions { image_size: CARD_SIZE, tiles: TileSet::drawn() };
    let mut cards = Vec::new();
    for task in Task::ALL {
        let everywhere = |(id, (_, board)): &(&String, &(PlanRow, Board))| {
            board.task() == task && shown.iter().all(|(_, rows)| rows.get(*id).is_some_and(|(_, other)| other == board))
        };
        let candidates = || first.iter().filter(everywhere).map(|(id, _)| id);
        let tells = |id: &&String| !first[*id].0.flag("success") && last[*id].0.flag("success");
        let Some(id) = candidates().find(tells).or_else(|| candidates().next()) else { continue };
        cards.extend(shown.iter().filter_map(|(stage, rows)| card(stage, &rows[id].0, &rows[id].1, &pictures)));
    }
    cards
}

fn card(stage: &str, row: &PlanRow, board: &Board, pictures: &RenderOptions) -> Option<BoardCard> {
    let answer = row.answer_text.clone().unwrap_or_default();
    let mut picture = board.render(pictures).ok()?;
    mgsd_tasks::draw_plan(board, &Plan(parse_benchmark(board.task(), &answer).actions), &mut picture);
    Some(BoardCard {
        case_id: row.case_id.clone(),
        task: row.task.clone(),
        stage: stage.to_string(),
        level: row.level.unwrap_or(0),
        modality: "image".into(),
        outcome: Outcome::of(row),
        verdict: verdict(row),
        actions: row.actions.clone().unwrap_or_default(),
        shortest: board.solve().map(|plan| plan.len() as u64),
        answer,
        picture: png_data_url(&picture.to_png().ok()?),
    })
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
