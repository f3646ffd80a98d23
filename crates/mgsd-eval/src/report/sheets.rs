//! A sheet for each planning run: by level, by length of the plan, and how and why plans fail.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::data::ReportData;
use super::explorer::Evaluation;
use super::explorer_page::{cause_name, ending_name, run_name};
use super::html::{escape, percent, place, section, task_name, words};
use crate::analysis::Shares;
use crate::failures::{Cause, Ending};
use crate::stats::Estimate;

/// All sheets, closed; nothing without planning runs.
pub fn render(out: &mut String, data: &ReportData) {
    if data.explorer.evaluations.is_empty() {
        return;
    }
    section(
        out,
        "runs",
        "Run by run",
        "Boards solved by level and by the number of steps that the shortest plan needs, with 95 % intervals (Wilson), and how \
         and why the others failed. Where an answer states its board, a failure is one of the eye (the plan solves the stated \
         board, which is not the real one) or of the head (the board is stated right).",
    );
    for run in &data.explorer.evaluations {
        sheet(out, run);
    }
    out.push_str("</section>");
}

fn sheet(out: &mut String, run: &Evaluation) {
    let analysis = &run.analysis;
    let _ = write!(
        out,
        "<details class=\"sheet panel\"><summary><b>{}</b> <span>{} of {} boards solved{}{}</span></summary><div class=\"tables\">",
        run_name(&run.label, &run.modality),
        analysis.total.solved,
        analysis.total.cases,
        analysis.total.accuracy.map_or_else(String::new, |share| format!(", {}", with_interval(share))),
        if analysis.errors > 0 { format!(", {} without an answer", analysis.errors) } else { String::new() }
    );
    let tasks = || analysis.by_task.iter();
    shares(
        out,
        "By level",
        "Level",
        tasks().map(|(task, of)| (task, of.by_level.iter().map(|(level, of)| (level.to_string(), of)).collect())),
    );
    shares(
        out,
        "By length of the shortest plan",
        "Steps",
        tasks().map(|(task, of)| (task, of.by_plan_length.iter().map(|(steps, of)| (steps.to_string(), of)).collect())),
    );
    failures(out, &analysis.failures);
    readings(out, run);
    out.push_str("</div></details>");
}

fn with_interval(share: Estimate) -> String {
    format!(
        "{} % <small>{}\u{2013}{}</small>",
        escape(&percent(share.value)),
        escape(&percent(share.interval.low)),
        escape(&percent(share.interval.high))
    )
}

fn shares<'a>(
    out: &mut String,
    title: &str,
    of: &str,
    groups: impl Iterator<Item = (&'a String, Vec<(String, &'a Shares)>)>,
) {
    let _ = write!(
        out,
        "<table class=\"bars split\"><caption>{title}</caption><thead><tr><th scope=\"col\">{of}</th><th scope=\"col\">boards</th>\
         <th scope=\"col\">solved</th></tr></thead>"
    );
    for (task, lines) in groups {
        let _ = write!(
            out,
            "<tbody><tr class=\"task\"><th colspan=\"3\" scope=\"rowgroup\">{}</th></tr>",
            escape(task_name(task))
        );
        for (name, shares) in lines {
            let share = shares.accuracy.unwrap_or_else(|| crate::stats::rate(0, 0));
            let _ = write!(
                out,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td><span class=\"bar\" style=\"--w:{}\"></span><span class=\"n\">{}</span></td></tr>",
                escape(&name),
                shares.cases,
                place(share.value),
                with_interval(share)
            );
        }
        out.push_str("</tbody>");
    }
    out.push_str("</table>");
}

fn failures(out: &mut String, failures: &BTreeMap<Ending, BTreeMap<Cause, u64>>) {
    if failures.is_empty() {
        return;
    }
    let occurs = |cause: &Cause| failures.values().any(|causes| causes.contains_key(cause));
    let causes: Vec<Cause> = Cause::ALL.into_iter().filter(occurs).collect();
    out.push_str("<table class=\"counts\"><caption>Failures</caption><thead><tr><td></td>");
    for cause in &causes {
        let _ = write!(out, "<th scope=\"col\">{}</th>", cause_name(cause.name()));
    }
    out.push_str("<th scope=\"col\">all</th></tr></thead><tbody>");
    for (ending, counts) in failures {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", ending_name(ending.name()));
        for cause in &causes {
            let count = counts.get(cause).copied().unwrap_or(0);
            let _ = write!(out, "<td>{}</td>", if count > 0 { count.to_string() } else { "\u{b7}".to_string() });
        }
        let _ = write!(out, "<td>{}</td></tr>", counts.values().sum::<u64>());
    }
    out.push_str("</tbody></table>");
}

fn readings(out: &mut String, run: &Evaluation) {
    let readings = &run.analysis.readings;
    let Some(exact) = readings.exact_rate else { return };
    let line = |out: &mut String, name: &str, share: Option<Estimate>| {
        if let Some(share) = share {
            let _ = write!(out, "<tr><th scope=\"row\">{name}</th><td>{}</td></tr>", with_interval(share));
        }
    };
    let _ = write!(
        out,
        "<table class=\"counts\"><caption>What {} answers state of their board</caption><tbody>",
        readings.stated
    );
    line(out, "all of it right", Some(exact));
    line(out, "solved, when stated right", readings.solved_when_exact);
    line(out, "solved, when stated wrong", readings.solved_when_wrong);
    for (question, count) in &readings.wrong {
        let _ = write!(out, "<tr><th scope=\"row\">wrong: {}</th><td>{count}</td></tr>", escape(&words(question)));
    }
    out.push_str("</tbody></table>");
}
