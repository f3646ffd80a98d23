//! Boards with the model's plan drawn on them: one board through all stages, and all boards with filters.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::data::{BoardCard, Outcome, ReportData};
use super::html::{escape, section, task_name};

/// How many boards are shown before "show more" when scripts run.
const FIRST_SHOWN: usize = 48;

/// One board of each task through all stages, then all boards.
pub fn render(out: &mut String, data: &ReportData) {
    stages_of_one_board(out, data);
    all_boards(out, data);
}

fn stage_label<'a>(data: &'a ReportData, key: &'a str) -> &'a str {
    data.stages.iter().find(|stage| stage.key == key).map_or(key, |stage| &stage.label)
}

/// For each task the first board that every stage answered from its picture; one that ends solved where there is one,
/// since that is what the sequence is about (the gallery below shows the rest).
fn stages_of_one_board(out: &mut String, data: &ReportData) {
    if data.stages.len() < 2 {
        return;
    }
    let mut strips: Vec<Vec<&BoardCard>> = Vec::new();
    let mut seen = Vec::new();
    for card in &data.gallery {
        if seen.contains(&card.task) {
            continue;
        }
        let candidates = data.gallery.iter().filter(|other| other.task == card.task && other.modality == "image");
        let ids: BTreeSet<&str> = candidates.clone().map(|other| other.case_id.as_str()).collect();
        let strip_of = |id: &str| -> Option<Vec<&BoardCard>> {
            data.stages
                .iter()
                .map(|stage| candidates.clone().find(|other| other.case_id == id && other.stage == stage.key))
                .collect()
        };
        let whole: Vec<Vec<&BoardCard>> = ids.into_iter().filter_map(strip_of).collect();
        let tells = |strip: &&Vec<&BoardCard>| {
            strip.last().is_some_and(|card| card.outcome <= Outcome::Solved)
                && strip.first().is_some_and(|card| card.outcome > Outcome::Solved)
        };
        seen.push(card.task.clone());
        if let Some(strip) = whole.iter().find(tells).or(whole.first()) {
            strips.push(strip.clone());
        }
    }
    if strips.is_empty() {
        return;
    }
    section(
        out,
        "strips",
        "The same board after each stage",
        "A board of each task, answered from its picture. The line is the plan as it was walked; a cross marks where it failed.",
    );
    let _ = write!(out, "<div class=\"panel strips\" style=\"--stages:{}\">", data.stages.len());
    for strip in strips {
        let _ = write!(
            out,
            "<h3>{}<small>{side}\u{d7}{side}</small></h3><ol>",
            escape(task_name(&strip[0].task)),
            side = strip[0].level
        );
        for card in strip {
            let stage = escape(stage_label(data, &card.stage));
            let _ = write!(out, "<li><b>{stage}</b>{}{}</li>", picture(card), verdict(card));
        }
        out.push_str("</ol>");
    }
    out.push_str("</div></section>");
}

fn picture(card: &BoardCard) -> String {
    // Only what this page carries itself may be shown: anything else would be a request to the outside.
    if !card.picture.starts_with("data:image/") {
        return String::new();
    }
    format!(
        "<img loading=\"lazy\" decoding=\"async\" width=\"256\" height=\"256\" alt=\"{} board, {side} by {side}, with the plan drawn on it: {}\" src=\"{}\">",
        escape(task_name(&card.task)),
        escape(&card.verdict),
        escape(&card.picture),
        side = card.level
    )
}

fn verdict(card: &BoardCard) -> String {
    let (class, mark) = match card.outcome {
        Outcome::Optimal => ("good", "\u{2713}"),
        Outcome::Solved => ("fair", "\u{2713}"),
        Outcome::Failed => ("bad", "\u{2717}"),
        Outcome::Unparsed => ("none", "?"),
    };
    format!("<span class=\"verdict {class}\"><span aria-hidden=\"true\">{mark}</span> {}</span>", escape(&card.verdict))
}

fn plan(card: &BoardCard) -> String {
    if card.actions.is_empty() {
        return String::new();
    }
    let mut shown = String::new();
    for action in &card.actions {
        match action.to_ascii_lowercase().as_str() {
            "left" | "l" => shown.push('\u{2190}'),
            "down" | "d" => shown.push('\u{2193}'),
            "right" | "r" => shown.push('\u{2192}'),
            "up" | "u" => shown.push('\u{2191}'),
            other => {
                let _ = write!(shown, " {} ", escape(other));
            }
        }
    }
    let shortest = match card.shortest {
        Some(shortest) => format!("<small>{} steps, shortest {shortest}</small>", card.actions.len()),
        None => format!("<small>{} steps</small>", card.actions.len()),
    };
    let spoken = escape(&card.actions.join(", "));
    format!("<p class=\"plan\"><span role=\"img\" aria-label=\"plan: {spoken}\">{}</span> {shortest}</p>", shown.trim())
}

fn all_boards(out: &mut String, data: &ReportData) {
    if data.gallery.is_empty() {
        return;
    }
    section(out, "boards", "Boards", "Every board that this page carries, right ones and wrong ones.");
    let _ = write!(out, "<div id=\"filters\" class=\"filters\" hidden data-first=\"{FIRST_SHOWN}\">");
    filter(out, "task", "Task", data.gallery.iter().map(|card| card.task.as_str()), |task| task_name(task).to_string());
    filter(out, "stage", "Stage", data.gallery.iter().map(|card| card.stage.as_str()), |key| {
        stage_label(data, key).to_string()
    });
    filter(out, "modality", "Shown as", data.gallery.iter().map(|card| card.modality.as_str()), |modality| {
        if modality == "image" { "picture".to_string() } else { modality.to_string() }
    });
    filter(out, "outcome", "Outcome", data.gallery.iter().map(|card| outcome_key(card.outcome)), |key| {
        let name = match key {
            "optimal" => "shortest plan",
            "solved" => "solved, longer",
            "failed" => "failed",
            _ => "no plan",
        };
        name.to_string()
    });
    let _ = write!(
        out,
        "<p id=\"count\" role=\"status\">{} boards</p></div><div class=\"cards\" id=\"cards\">",
        data.gallery.len()
    );
    for card in &data.gallery {
        let modality = if card.modality == "image" { "picture" } else { &card.modality };
        let _ = write!(
            out,
            "<article class=\"card\" data-task=\"{}\" data-stage=\"{}\" data-modality=\"{}\" data-outcome=\"{}\">{}\
             <div class=\"card-body\"><h3>{} <small>{side}\u{d7}{side}</small></h3><p class=\"meta\">{}, from the {}</p>{}{}",
            escape(&card.task),
            escape(&card.stage),
            escape(&card.modality),
            outcome_key(card.outcome),
            picture(card),
            escape(task_name(&card.task)),
            escape(stage_label(data, &card.stage)),
            escape(modality),
            verdict(card),
            plan(card),
            side = card.level
        );
        if !card.answer.is_empty() {
            let _ = write!(out, "<details><summary>Answer</summary><pre>{}</pre></details>", escape(&card.answer));
        }
        out.push_str("</div></article>");
    }
    out.push_str("</div><button id=\"more\" class=\"more\" hidden>Show more</button></section>");
}

fn outcome_key(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Optimal => "optimal",
        Outcome::Solved => "solved",
        Outcome::Failed => "failed",
        Outcome::Unparsed => "unparsed",
    }
}

/// A row of buttons for the values that occur, in the order in which they do; nothing when there is no choice.
fn filter<'a>(
    out: &mut String,
    key: &str,
    label: &str,
    values: impl Iterator<Item = &'a str>,
    name: impl Fn(&str) -> String,
) {
    let mut known: Vec<(&str, usize)> = Vec::new();
    for value in values {
        match known.iter_mut().find(|(other, _)| *other == value) {
            Some((_, count)) => *count += 1,
            None => known.push((value, 1)),
        }
    }
    if known.len() < 2 {
        return;
    }
    if key == "outcome" {
        let order = ["optimal", "solved", "failed", "unparsed"];
        known.sort_by_key(|(value, _)| order.iter().position(|other| other == value));
    }
    let _ = write!(
        out,
        "<div role=\"group\" aria-label=\"{label}\"><span class=\"group\">{label}</span>\
         <button data-key=\"{key}\" data-value=\"\" aria-pressed=\"true\">all</button>"
    );
    for (value, count) in known {
        let _ = write!(
            out,
            "<button data-key=\"{key}\" data-value=\"{}\" aria-pressed=\"false\">{} <small>{count}</small></button>",
            escape(value),
            escape(&name(value))
        );
    }
    out.push_str("</div>");
}
