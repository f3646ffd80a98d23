//! The numbers behind the figures, and perception by question as a table with bars.

use std::fmt::Write as _;

use super::data::{Rates, ReportData};
use super::gap_chart;
use super::html::{escape, percent, place, points, section, task_name, words};
use crate::demo::MACRO;
use crate::stats::{Estimate, Interval};

fn interval(of: Interval, write: fn(f64) -> String) -> String {
    format!("<small>{}\u{2013}{}</small>", write(of.low), write(of.high))
}

fn share(estimate: Option<Estimate>) -> String {
    estimate.map_or_else(
        || "<td class=\"none\">\u{2013}</td>".to_string(),
        |estimate| {
            let value = format!("{:.1}", estimate.value * 100.0);
            format!("<td>{value} {}</td>", interval(estimate.interval, |end| escape(&percent(end))))
        },
    )
}

/// All planning numbers with their intervals.
pub fn planning(out: &mut String, data: &ReportData) {
    let tasks = gap_chart::tasks(data);
    if tasks.is_empty() {
        return;
    }
    section(
        out,
        "numbers",
        "The same in numbers",
        "Per cent of boards solved, and solved in as few steps as possible, with 95 % intervals: Wilson's for a task, \
         bootstrap over boards within tasks for the mean and for the gap (text minus picture on the same boards).",
    );
    out.push_str(
        "<div class=\"scroll\"><table class=\"numbers\"><thead><tr><th rowspan=\"2\" scope=\"col\">Task</th>\
         <th rowspan=\"2\" scope=\"col\">Stage</th><th colspan=\"2\" scope=\"colgroup\" class=\"image\">From the picture</th>\
         <th colspan=\"2\" scope=\"colgroup\" class=\"text\">From the text</th><th rowspan=\"2\" scope=\"col\">Gap, points</th></tr><tr>\
         <th scope=\"col\">solved</th><th scope=\"col\">shortest</th><th scope=\"col\">solved</th><th scope=\"col\">shortest</th></tr></thead>",
    );
    for task in tasks {
        let class = if task == MACRO { " class=\"macro\"" } else { "" };
        let _ = write!(out, "<tbody{class}>");
        let scored: Vec<_> = data.stages.iter().filter_map(|stage| Some((stage, stage.planning_of(task)?))).collect();
        for (index, (stage, score)) in scored.iter().enumerate() {
            out.push_str("<tr>");
            if index == 0 {
                let name = escape(task_name(task));
                let _ = write!(out, "<th scope=\"rowgroup\" rowspan=\"{}\">{name}</th>", scored.len());
            }
            let _ = write!(out, "<th scope=\"row\">{}</th>", escape(&stage.label));
            for rates in [score.image, score.text] {
                out.push_str(&share(rates.map(|rates: Rates| rates.accuracy)));
                out.push_str(&share(rates.map(|rates: Rates| rates.optimal)));
            }
            match score.gap {
                Some(gap) => {
                    let _ = write!(out, "<td>{} {}</td>", points(gap.value), interval(gap.interval, points));
                }
                None => out.push_str("<td class=\"none\">\u{2013}</td>"),
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody>");
    }
    out.push_str("</table></div></section>");
}

/// Perception by task and question, a column a stage.
pub fn perception(out: &mut String, data: &ReportData) {
    let stages: Vec<_> = data.stages.iter().filter(|stage| !stage.perception.is_empty()).collect();
    let mut tasks: Vec<&str> = Vec::new();
    for score in stages.iter().flat_map(|stage| &stage.perception) {
        if !tasks.contains(&score.task.as_str()) {
            tasks.push(&score.task);
        }
    }
    if tasks.is_empty() {
        return;
    }
    section(
        out,
        "perception",
        "Does it read the board?",
        "Per cent of pictures for which the model states each fact exactly. \u{201c}Whole answer\u{201d} needs all of them at once.",
    );
    out.push_str("<div class=\"panel\"><table class=\"bars\"><thead><tr><td></td>");
    for stage in &stages {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(&stage.label));
    }
    out.push_str("</tr></thead>");
    for task in tasks {
        let scores: Vec<_> =
            stages.iter().map(|stage| stage.perception.iter().find(|score| score.task == task)).collect();
        let cases = scores.iter().flatten().map(|score| score.cases).max().unwrap_or(0);
        let _ = write!(
            out,
            "<tbody><tr class=\"task\"><th colspan=\"{}\" scope=\"rowgroup\">{} <small>{cases} pictures</small></th></tr>",
            stages.len() + 1,
            escape(task_name(task))
        );
        let mut line = |name: &str, class: &str, values: Vec<Option<f64>>| {
            let _ = write!(out, "<tr{class}><th scope=\"row\">{}</th>", escape(name));
            for value in values {
                match value {
                    Some(value) => {
                        let _ = write!(
                            out,
                            "<td><span class=\"bar\" style=\"--w:{}\"></span><span class=\"n\">{}</span></td>",
                            place(value),
                            escape(&percent(value))
                        );
                    }
                    None => out.push_str("<td class=\"none\">\u{2013}</td>"),
                }
            }
            out.push_str("</tr>");
        };
        let whole = scores.iter().map(|score| score.map(|score| score.all_exact.value)).collect();
        line("Whole answer", " class=\"macro\"", whole);
        // Of the stage that answered most of them: one without an answer has none.
        let questions = scores.iter().flatten().map(|score| &score.questions).max_by_key(|questions| questions.len());
        for (question, _) in questions.into_iter().flatten() {
            let values = scores.iter().map(|score| {
                let found = score.as_ref()?.questions.iter().find(|(name, _)| name == question)?;
                Some(found.1)
            });
            line(&words(question), "", values.collect());
        }
        out.push_str("</tbody>");
    }
    out.push_str("</table></div></section>");
}
