//! A report of invented numbers, for looking at the design and for tests of the page.

use std::collections::BTreeMap;

use base64::Engine as _;
use mgsd_eval::perception::PerceptionRow;
use mgsd_eval::report::{BoardCard, Curve, Explorer, Fact, Headline, Outcome, ReportData, Series, Stage, verdict};
use mgsd_eval::rows::PlanRow;

const TASKS: [(&str, [u32; 2], &[&str]); 3] = [
    ("frozenlake", [3, 4], &["map_size", "player_position", "goal_position", "h_positions"]),
    ("maze", [3, 4], &["map_size", "player_position", "goal_position", "open_directions", "player_legal_actions"]),
    (
        "minibehaviour",
        [4, 5],
        &[
            "map_size",
            "agent_position",
            "printer_position",
            "table_cells",
            "printer_adjacent_cells",
            "table_adjacent_cells",
            "movement_legal_actions",
        ],
    ),
];
const STAGES: [[&str; 3]; 3] = [
    ["base", "Base", "The embedded model: plans from text, has seen only generic pictures."],
    ["sft", "Perception SFT", "Stage 1: taught to say what is on a board, not what to do there."],
    ["mgsd", "MGSD", "Stage 2: its own answers, scored by the text-only teacher that sees the state."],
];

/// A number in 0..1 that looks random and depends on its key only.
fn noise(key: &str) -> f64 {
    let hash = key
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

fn plan_rows(stage: usize, modality: &str) -> Vec<PlanRow> {
    let mut rows = Vec::new();
    for (index, (task, levels, _)) in TASKS.iter().enumerate() {
        for case in 0..210 {
            let level = levels[case % 2];
            let case_id = format!("{task}_level{level}_{case:04}");
            let skill = match modality {
                "text" => [0.99, 0.955, 0.97][stage] - 0.02 * index as f64,
                _ => [0.06, 0.045, 0.93][stage] - 0.03 * index as f64,
            };
            // A harder board is harder in every stage and modality.
            let solved = 0.5 * noise(&case_id) + 0.5 * noise(&format!("{case_id}{stage}{modality}")) < skill
                && noise(&format!("{stage}{modality}{case_id}")) < skill.sqrt();
            let optimal = solved && noise(&format!("opt{case_id}")) < 0.94;
            let parsed = solved || noise(&format!("parse{case_id}{stage}")) < 0.8;
            let expected = 2 + case as u64 % 5;
            let reason = match *task {
                _ if solved => None,
                "frozenlake" => Some("fell_into_hole"),
                "maze" => Some("wall_blocked:up"),
                _ => Some("pick_not_adjacent_to_printer"),
            };
            let steps = if optimal { expected } else { expected + 2 };
            let letters = ["right", "down", "down", "right", "up", "left", "down", "right"];
            let actions = letters.iter().take(if parsed { steps as usize } else { 0 }).map(|name| name.to_string());
            rows.push(PlanRow {
                case_id,
                task: task.to_string(),
                level: Some(level),
                modality: Some(modality.to_string()),
                answer_text: Some(if case == 1 {
                    "<script>alert(1)</script>".to_string()
                } else {
                    format!("1. {level}x{level}\n2. (0,0)\n3. (2,2)\n4. (1,1); (2,0)\nRoute: R (0,1) D (1,1)\n<answer>RDDR</answer>")
                }),
                actions: Some(actions.collect()),
                eval_result: Some(serde_json::json!({
                    "parse_success": parsed, "success": solved, "optimal_success": optimal,
                    "expected_action_count": expected, "steps_executed": if solved { steps } else { 2 }, "invalid_reason": reason,
                })),
                ..PlanRow::default()
            });
        }
    }
    rows
}

fn perception_rows(stage: usize) -> Vec<PerceptionRow> {
    let mut rows = Vec::new();
    for (task, levels, questions) in TASKS {
        for case in 0..210 {
            let scores = questions.iter().enumerate().map(|(index, question)| {
                let skill = [[0.9, 0.25, 0.2, 0.05, 0.1, 0.02, 0.3][index], 0.995 - 0.002 * index as f64, 0.99][stage];
                (question.to_string(), noise(&format!("{task}{case}{stage}{question}")) < skill)
            });
            rows.push(PerceptionRow {
                case_id: format!("{task}_{case}"),
                task: format!("{task}_perception_all"),
                level: Some(levels[case % 2]),
                scores: scores.collect(),
                ..PerceptionRow::default()
            });
        }
    }
    rows
}

/// A grid with a line on it, standing in for a drawn board.
fn picture(row: &PlanRow) -> String {
    let side = row.level.unwrap_or(3);
    let cell = 240 / side;
    let mut svg = String::from(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 240 240"><rect width="240" height="240" fill="#dfeaf2"/>"##,
    );
    for y in 0..side {
        for x in 0..side {
            let hole = x + y > 0 && noise(&format!("{}{x}{y}", row.case_id)) < 0.2;
            let fill = if hole { "#5b7f9c" } else { "none" };
            svg += &format!(
                r##"<rect x="{}" y="{}" width="{cell}" height="{cell}" fill="{fill}" stroke="#9db6c9"/>"##,
                x * cell,
                y * cell
            );
        }
    }
    let (mut x, mut y) = (0i64, 0i64);
    let at = |at: i64| at * i64::from(cell) + i64::from(cell) / 2;
    let mut path = format!("M{} {}", at(0), at(0));
    for action in row.actions.iter().flatten() {
        match action.as_str() {
            "right" => x += 1,
            "left" => x -= 1,
            "down" => y += 1,
            _ => y -= 1,
        }
        (x, y) = (x.clamp(0, i64::from(side) - 1), y.clamp(0, i64::from(side) - 1));
        path += &format!("L{} {}", at(x), at(y));
    }
    let end = if row.flag("success") { "#0b6e4f" } else { "#c1272d" };
    svg += &format!(
        r##"<path d="{path}" fill="none" stroke="{end}" stroke-width="7" stroke-linejoin="round"/><circle cx="{}" cy="{}" r="10" fill="{end}"/></svg>"##,
        at(x),
        at(y)
    );
    format!("data:image/svg+xml;base64,{}", base64::engine::general_purpose::STANDARD.encode(svg))
}

fn gallery() -> Vec<BoardCard> {
    let mut cards = Vec::new();
    for (index, [key, ..]) in STAGES.iter().enumerate() {
        for modality in ["image", "text"] {
            let rows = plan_rows(index, modality);
            for (_, row) in
                rows.iter().enumerate().filter(|(at, _)| at % 210 < if modality == "image" { 10 } else { 3 })
            {
                let number = |name: &str| row.eval_result.as_ref()?.get(name)?.as_u64();
                cards.push(BoardCard {
                    case_id: row.case_id.clone(),
                    task: row.task.clone(),
                    stage: key.to_string(),
                    level: row.level.unwrap_or(3),
                    modality: modality.to_string(),
                    outcome: Outcome::of(row),
                    verdict: verdict(row),
                    actions: row.actions.clone().unwrap_or_default(),
                    shortest: number("expected_action_count"),
                    answer: row.answer_text.clone().unwrap_or_default(),
                    picture: picture(row),
                });
            }
        }
    }
    cards
}

fn falling(from: f64, to: f64, steps: usize, name: &str) -> Vec<[f64; 2]> {
    let at = |step: usize| {
        let share = step as f64 / steps as f64;
        to + (from - to) * (-5.0 * share).exp() * (0.75 + 0.5 * noise(&format!("{name}{step}")))
    };
    (1..=steps).map(|step| [step as f64, at(step)]).collect()
}

fn curves() -> Vec<Curve> {
    let curve = |title: &str, y_label: &str, percent, log_y, series| Curve {
        title: title.into(),
        y_label: y_label.into(),
        x_label: "step".into(),
        percent,
        log_y,
        series,
    };
    let line = |label: &str, points| Series { label: label.into(), points };
    let rising = falling(0.05, 0.93, 150, "success").into_iter().map(|[x, y]| [x, y.clamp(0.0, 1.0)]).collect();
    let held_out = (1..=10).map(|step| [15.0 * f64::from(step), 1.0 - 0.95 * (-0.5 * f64::from(step)).exp()]).collect();
    vec![
        curve(
            "Stage 1: loss of perception SFT",
            "nats a token, logarithmic",
            false,
            true,
            vec![
                line("training", falling(3.2, 0.004, 300, "sft")),
                line("held out", falling(3.0, 0.006, 12, "held").into_iter().map(|[x, y]| [x * 25.0, y]).collect()),
            ],
        ),
        curve(
            "Stage 2: reverse KL to the teacher",
            "nats a token",
            false,
            false,
            vec![line("reverse KL", falling(1.4, 0.03, 150, "kl"))],
        ),
        curve(
            "Stage 2: boards solved by the student",
            "share of rollouts",
            true,
            false,
            vec![line("rollouts", rising), line("validation", held_out)],
        ),
        curve(
            "Stage 2: length of an answer",
            "tokens",
            false,
            false,
            vec![line("tokens", falling(80.0, 42.0, 150, "length"))],
        ),
    ]
}

/// The whole sample.
pub fn report() -> ReportData {
    let mut explorer = Explorer::default();
    for (index, [_, label, _]) in STAGES.iter().enumerate() {
        for modality in ["image", "text"] {
            explorer.add(label, modality, &plan_rows(index, modality), &BTreeMap::new());
        }
    }
    let stages: Vec<Stage> = STAGES
        .iter()
        .enumerate()
        .map(|(index, name)| {
            Stage::from_rows(*name, &plan_rows(index, "image"), &plan_rows(index, "text"), &perception_rows(index), 0)
        })
        .collect();
    let fact = |label: &str, value: &str| Fact { label: label.into(), value: value.into() };
    let headline =
        |label: &str, value: &str, note: &str| Headline { label: label.into(), value: value.into(), note: note.into() };
    ReportData {
        title: "A model that learns to plan from pictures".into(),
        lead: "The embedded model solves almost every board from its text and almost none from its picture. Perception training \
               teaches it to read the picture; distillation on its own answers teaches it to plan from what it reads."
            .into(),
        facts: vec![
            fact("Model", "nano, 1.6 M parameters"),
            fact("Boards measured", "630, none seen in training"),
            fact("Seed", "0"),
            fact("Time", "7 min 42 s on 2 cores"),
            fact("Peak memory", "1.1 GiB"),
        ],
        headlines: vec![
            headline("Planning from the picture, before", "4 %", "95 % interval 3–6 %"),
            headline("Planning from the picture, after", "88 %", "95 % interval 85–90 %"),
            headline("Modality gap closed", "89 %", "95 % interval 87–92 %"),
            headline("Boards read exactly", "97 %", "after stage 1, mean over tasks"),
        ],
        stages,
        curves: curves(),
        gallery: gallery(),
        explorer,
        footer: vec!["Made again by: mgsd demo --seed 0".into(), "The numbers on this page are invented.".into()],
    }
}
