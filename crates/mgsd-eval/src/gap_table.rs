//! The modality gap as a table for people: Markdown and LaTeX.

use std::fmt::Write as _;

use crate::demo::MACRO;
use crate::gap::{GapInterval, GapRow};
use crate::stats::Estimate;

/// A line of the table.
struct Line<'a> {
    label: &'a str,
    task: &'a str,
    text: Option<f64>,
    image: Option<f64>,
    /// Over the boards that were answered in both modalities.
    paired: Option<Estimate>,
}

/// One line a model and task, the mean over tasks first; rates are the summaries', gaps and intervals, where rows are there,
/// those of the boards that were answered in both modalities.
fn lines<'a>(rows: &'a [GapRow], intervals: &[GapInterval]) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for row in rows.iter().filter(|row| row.scope != "total") {
        let task = if row.task.is_empty() { MACRO } else { &row.task };
        let known = lines.iter().position(|line| (line.label, line.task) == (row.model_label.as_str(), task));
        let at = known.unwrap_or_else(|| {
            let interval = intervals
                .iter()
                .find(|other| (other.model_label.as_str(), other.task.as_str()) == (&row.model_label, task));
            let paired = interval.map(|found| found.pairing.difference);
            lines.push(Line { label: &row.model_label, task, text: None, image: None, paired });
            lines.len() - 1
        });
        match row.input_modality.as_str() {
            "text" => lines[at].text = Some(row.accuracy),
            "image" => lines[at].image = Some(row.accuracy),
            _ => {}
        }
    }
    // Models in the order of their first appearance, the mean first, then tasks by name.
    let models: Vec<&str> = lines.iter().map(|line| line.label).collect();
    let place = |line: &Line<'_>| models.iter().position(|label| *label == line.label);
    lines.sort_by(|a, b| (place(a), a.task != MACRO, a.task).cmp(&(place(b), b.task != MACRO, b.task)));
    lines
}

fn share(value: Option<f64>, dash: &str) -> String {
    value.map_or_else(|| dash.to_string(), |value| format!("{:.1}", 100.0 * value))
}

fn gap(line: &Line<'_>) -> Option<f64> {
    let apart = || Some(line.text? - line.image?);
    line.paired.map(|paired| paired.value).or_else(apart).map(|gap| 100.0 * gap)
}

fn name(task: &str) -> &str {
    match task {
        MACRO => "mean of tasks",
        "frozenlake" => "FrozenLake",
        "maze" => "Maze",
        "minibehaviour" => "MiniBehaviour",
        other => other,
    }
}

/// The table as Markdown.
pub(crate) fn markdown(rows: &[GapRow], intervals: &[GapInterval]) -> String {
    let mut out = String::from(
        "| Model | Task | Text, % | Picture, % | Gap, points | 95 % interval |\n|:--|:--|--:|--:|--:|:-:|\n",
    );
    for line in lines(rows, intervals) {
        let gap = gap(&line).map_or_else(|| "-".to_string(), |gap| format!("{gap:+.1}"));
        let interval = line.paired.map(|paired| paired.interval).map_or_else(
            || "-".to_string(),
            |interval| format!("{:+.1} to {:+.1}", 100.0 * interval.low, 100.0 * interval.high),
        );
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {gap} | {interval} |",
            line.label.replace('|', "\\|").replace(['\n', '\r'], " "),
            name(line.task),
            share(line.text, "-"),
            share(line.image, "-")
        );
    }
    out
}

/// The table as LaTeX, for `booktabs`.
pub(crate) fn latex(rows: &[GapRow], intervals: &[GapInterval]) -> String {
    let mut out = String::from(
        "% needs \\usepackage{booktabs}\n\\begin{tabular}{llrrrc}\n\\toprule\nModel & Task & Text, \\% & Picture, \\% & Gap & 95\\,\\% interval \\\\\n",
    );
    let mut last = "";
    for line in lines(rows, intervals) {
        if line.label != last {
            out.push_str("\\midrule\n");
        }
        let label = if line.label == last { String::new() } else { tex(line.label) };
        last = line.label;
        let gap = gap(&line).map_or_else(|| "--".to_string(), |gap| format!("${gap:+.1}$"));
        let interval = line.paired.map(|paired| paired.interval).map_or_else(
            || "--".to_string(),
            |interval| format!("$[{:+.1}, {:+.1}]$", 100.0 * interval.low, 100.0 * interval.high),
        );
        let _ = writeln!(
            out,
            "{label} & {} & {} & {} & {gap} & {interval} \\\\",
            tex(name(line.task)),
            share(line.text, "--"),
            share(line.image, "--")
        );
    }
    out + "\\bottomrule\n\\end{tabular}\n"
}

/// Text as LaTeX prints it.
fn tex(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                out.push('\\');
                out.push(character);
            }
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '\\' => out.push_str("\\textbackslash{}"),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gap::{GapInput, table};
    use crate::summary::Summary;

    fn input(label: &str, modality: &str, accuracy: f64) -> GapInput {
        let mut summary = Summary::default();
        summary.all_tasks_macro_avg.accuracy = accuracy;
        summary.by_task.entry("maze".into()).or_default().accuracy = accuracy;
        GapInput { file: String::new(), label: label.into(), modality: modality.into(), summary, rows: None }
    }

    #[test]
    fn a_line_a_model_and_task_with_what_is_missing_left_open() {
        let inputs = [input("a_1", "text", 0.9), input("a_1", "image", 0.25), input("b|2", "image", 0.5)];
        let rows = table(&inputs);
        let markdown = markdown(&rows, &[]);
        assert!(markdown.contains("| a_1 | mean of tasks | 90.0 | 25.0 | +65.0 | - |"), "{markdown}");
        assert!(markdown.contains("| b\\|2 | Maze | - | 50.0 | - | - |"), "{markdown}");
        let latex = latex(&rows, &[]);
        assert!(latex.contains("a\\_1 & mean of tasks & 90.0 & 25.0 & $+65.0$ & -- \\\\\n & Maze & 90.0"), "{latex}");
        assert_eq!(latex.matches("\\midrule").count(), 2);

        // Where boards were answered in both modalities, the gap is theirs.
        let row = |solved: bool| crate::rows::PlanRow {
            case_id: "maze_0".into(),
            task: "maze".into(),
            eval_result: Some(serde_json::json!({"success": solved})),
            ..Default::default()
        };
        let compared =
            crate::compare::compare(["text", "image"], [&[row(true)], &[row(false)]], 10, 0).expect("a board");
        let paired = GapInterval { model_label: "a_1".into(), task: MACRO.into(), pairing: compared.mean };
        let markdown = super::markdown(&rows, &[paired]);
        assert!(markdown.contains("| a_1 | mean of tasks | 90.0 | 25.0 | +100.0 | +100.0 to +100.0 |"), "{markdown}");
    }
}
