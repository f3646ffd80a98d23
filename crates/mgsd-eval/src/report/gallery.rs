//! One board of each task through all stages, with the model's plan drawn on it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::data::{BoardCard, Outcome, ReportData};
use super::html::{escape, section, task_name};

fn stage_label<'a>(data: &'a ReportData, key: &'a str) -> &'a str {
    data.stages.iter().find(|stage| stage.key == key).map_or(key, |stage| &stage.label)
}

/// For each task the first board that every stage answered from its picture; one that ends solved where there is one,
/// since that is what the sequence is about (the boards with filters show the rest).
pub fn render(out: &mut String, data: &ReportData) {
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
