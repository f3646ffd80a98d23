//! The modality gap drawn as a gap: on each line a dot for the picture, a dot for the text, and the bar between them.
//! Laid out with percentages instead of a scaled drawing, so that letters keep their size on a narrow screen.

use std::fmt::Write as _;

use super::data::{PlanningScore, Rates, ReportData, Stage};
use super::html::{escape, percent, place, points, section, task_name};
use crate::demo::MACRO;

/// The whole figure; nothing when no stage was measured.
pub fn render(out: &mut String, data: &ReportData) {
    let tasks = tasks(data);
    if tasks.is_empty() {
        return;
    }
    section(
        out,
        "gap",
        "The modality gap, stage by stage",
        "Share of boards solved when the board is given as text and when the same board is given as a picture. The bar \
         between the two dots is the gap. Thin lines are 95 % intervals.",
    );
    for task in &tasks {
        if *task == MACRO {
            panel(out, data, task, "panel lead-panel");
        }
    }
    out.push_str("<div class=\"panels\">");
    for task in tasks.iter().filter(|task| **task != MACRO) {
        panel(out, data, task, "panel");
    }
    out.push_str("</div></section>");
}

/// Tasks in the order in which the stages name them.
pub fn tasks(data: &ReportData) -> Vec<&str> {
    let mut tasks = Vec::new();
    for score in data.stages.iter().flat_map(|stage| &stage.planning) {
        if !tasks.contains(&score.task.as_str()) && (score.image.is_some() || score.text.is_some()) {
            tasks.push(score.task.as_str());
        }
    }
    tasks
}

fn panel(out: &mut String, data: &ReportData, task: &str, class: &str) {
    let boards = data.stages.iter().filter_map(|stage| stage.planning_of(task)).map(|score| score.cases).max();
    let what = if task == MACRO { "mean over tasks, " } else { "" };
    let _ = write!(
        out,
        "<div class=\"{class}\"><h3>{} <small>{what}{} boards</small></h3><div class=\"db\">",
        escape(task_name(task)),
        boards.unwrap_or(0)
    );
    let mut named = false;
    for stage in &data.stages {
        if let Some(score) = stage.planning_of(task) {
            row(out, stage, score, task == MACRO && !named);
            named = true;
        }
    }
    out.push_str("<div class=\"db-axis\" aria-hidden=\"true\"><div class=\"db-scale\">");
    for tick in [0, 25, 50, 75, 100] {
        let unit = if tick == 100 { " %" } else { "" };
        let _ = write!(out, "<span style=\"left:{tick}%\">{tick}{unit}</span>");
    }
    out.push_str("</div></div></div></div>");
}

fn row(out: &mut String, stage: &Stage, score: &PlanningScore, named: bool) {
    let _ = write!(
        out,
        "<div class=\"db-row\" role=\"img\" aria-label=\"{}\"><div class=\"db-stage\">{}</div><div class=\"db-track\"><div class=\"db-scale\">",
        escape(&spoken(stage, score)),
        escape(&stage.label)
    );
    let accuracy = |rates: &Option<Rates>| rates.map(|rates| rates.accuracy);
    let (image, text) = (accuracy(&score.image), accuracy(&score.text));
    if let (Some(image), Some(text)) = (image, text) {
        let (low, high) = (image.value.min(text.value), image.value.max(text.value));
        let class = if text.value >= image.value { "db-gap" } else { "db-gap reversed" };
        let label = if high - low >= 0.3 && named {
            format!("<b>gap {} points</b>", points(gap(score).unwrap_or(text.value - image.value)))
        } else {
            String::new()
        };
        let _ = write!(
            out,
            "<span class=\"{class}\" style=\"left:{};width:{}\">{label}</span>",
            place(low),
            place(high - low)
        );
    }
    // The lower dot carries its number on the left, the higher one on the right: they never meet.
    let image_is_left = match (image, text) {
        (Some(image), Some(text)) => image.value <= text.value,
        (image, _) => image.is_some_and(|image| image.value > 0.5),
    };
    for (estimate, class, name, left) in
        [(text, "text", "text", !image_is_left), (image, "image", "picture", image_is_left)]
    {
        let Some(estimate) = estimate else { continue };
        let interval = estimate.interval;
        let name = if named { format!("<i>{name}</i> ") } else { String::new() };
        let number = percent(estimate.value);
        let label = if left {
            format!(
                "<span class=\"val left {class}\" style=\"right:{}\">{name}{number}</span>",
                place(1.0 - interval.low)
            )
        } else {
            format!("<span class=\"val {class}\" style=\"left:{}\">{number} {name}</span>", place(interval.high))
        };
        let _ = write!(
            out,
            "<span class=\"whisker {class}\" style=\"left:{};width:{}\"></span>\
             <span class=\"dot {class}\" style=\"left:{}\"></span>{label}",
            place(interval.low),
            place(interval.high - interval.low),
            place(estimate.value)
        );
    }
    out.push_str("</div></div><div class=\"db-diff\">");
    if let Some(gap) = gap(score) {
        let _ = write!(out, "<span>gap</span> {}", points(gap));
    }
    out.push_str("</div></div>");
}

/// Text minus picture: over the boards that both answered, if there are any.
fn gap(score: &PlanningScore) -> Option<f64> {
    let apart = || Some(score.text?.accuracy.value - score.image?.accuracy.value);
    score.gap.map(|gap| gap.value).or_else(apart)
}

fn spoken(stage: &Stage, score: &PlanningScore) -> String {
    let mut text = format!("{}, {}:", stage.label, task_name(&score.task));
    for (name, rates) in [("picture", score.image), ("text", score.text)] {
        if let Some(rates) = rates {
            let _ = write!(text, " {name} {} %,", percent(rates.accuracy.value));
        }
    }
    if let Some(gap) = gap(score) {
        let _ = write!(text, " gap {} points", points(gap));
    }
    text
}
