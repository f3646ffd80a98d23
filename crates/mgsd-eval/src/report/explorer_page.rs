//! The filtered part of the page: its controls, and its data as JSON that the page's script draws.

use std::fmt::Write as _;

use mgsd_tasks::{Board, RenderOptions, TileSet, frozen_lake};
use serde_json::{Value, json};

use super::data::{Outcome, ReportData, png_data_url};
use super::explorer::Explorer;
use super::html::{escape, section, task_name, words};
use crate::error::{Error, Result};
use crate::failures::{Cause, Ending};

/// How many boards are shown before "show more".
const FIRST_SHOWN: usize = 48;
/// Side of a tile in the picture that all lakes are drawn from, in pixels.
const TILE: usize = 64;

/// The section; nothing without answers.
///
/// # Errors
/// When the tiles cannot be drawn.
pub fn render(out: &mut String, data: &ReportData) -> Result<()> {
    let explorer = &data.explorer;
    if explorer.answers.is_empty() {
        return Ok(());
    }
    section(
        out,
        "boards",
        "Boards",
        "Every board with the plan as it was walked: a line from the start, a ring where the printer changes hands, a cross \
         where it failed. Dashed marks show what the answer states to be there and is not. Choose a second run to see both on \
         the same board.",
    );
    out.push_str(
        "<noscript><p>The boards are drawn by a script, which is switched off here.</p></noscript><div id=\"explorer\" hidden>\
         <div class=\"choices\"><label>Run <select id=\"first\"></select></label><label>beside <select id=\"second\"></select></label>\
         <label>Name <input id=\"name\" type=\"search\" placeholder=\"part of a board's name\"></label>\
         <label class=\"tick\"><input id=\"stated\" type=\"checkbox\" checked> show what is misread</label></div>\
         <div id=\"filters\" class=\"filters\"></div><p id=\"count\" role=\"status\"></p><div id=\"cards\" class=\"cards\"></div>",
    );
    let _ = write!(
        out,
        "<button id=\"more\" class=\"more\" data-first=\"{FIRST_SHOWN}\" hidden>Show more</button></div></section>"
    );
    // A script element of a type that no browser runs; "<" is escaped, so nothing within can end it.
    let text = content(explorer)?.to_string().replace('<', "\\u003c");
    let _ = write!(out, "<script type=\"application/json\" id=\"explorer-data\">{text}</script>");
    Ok(())
}

/// The data: lists in a fixed order instead of objects, since there may be thousands.
fn content(explorer: &Explorer) -> Result<Value> {
    let named = |list: Vec<(&str, String)>| -> Value {
        list.into_iter().map(|(key, name)| json!([key, name])).collect::<Vec<_>>().into()
    };
    let place = |list: &[&str], name: &str| list.iter().position(|other| *other == name);
    let endings = Ending::ALL.map(Ending::name);
    let causes = Cause::ALL.map(Cause::name);
    let boards =
        explorer.boards.iter().map(|board| json!([board.case_id, board.task, board.level, board.key, board.shortest]));
    let answers = explorer.answers.iter().map(|answer| {
        json!([
            answer.evaluation,
            answer.board,
            OUTCOMES.iter().position(|(outcome, _, _)| *outcome == answer.outcome),
            answer.ending.and_then(|ending| place(&endings, ending.name())),
            answer.cause.and_then(|cause| place(&causes, cause.name())),
            answer.verdict,
            answer.steps,
            answer.last as u8,
            answer.planned,
            answer.text,
            answer.stated,
            answer
                .misread
                .iter()
                .map(|[question, stated, there]| json!([words(question), stated, there]))
                .collect::<Vec<_>>(),
        ])
    });
    let tasks: std::collections::BTreeSet<&str> = explorer.boards.iter().map(|board| board.task.as_str()).collect();
    Ok(json!({
        "tiles": tiles()?,
        "evaluations": explorer.evaluations.iter().map(|run| json!([run.label, run.modality])).collect::<Vec<_>>(),
        "tasks": named(tasks.into_iter().map(|task| (task, task_name(task).to_string())).collect()),
        "outcomes": named(OUTCOMES.iter().map(|(_, key, name)| (*key, (*name).to_string())).collect()),
        "endings": named(endings.iter().map(|key| (*key, ending_name(key))).collect()),
        "causes": named(causes.iter().map(|key| (*key, cause_name(key).to_string())).collect()),
        "boards": boards.collect::<Vec<_>>(),
        "answers": answers.collect::<Vec<_>>(),
    }))
}

const OUTCOMES: [(Outcome, &str, &str); 4] = [
    (Outcome::Optimal, "good", "shortest plan"),
    (Outcome::Solved, "fair", "solved, longer"),
    (Outcome::Failed, "bad", "failed"),
    (Outcome::Unparsed, "none", "no plan"),
];

/// An ending as the page calls it.
pub fn ending_name(key: &str) -> String {
    words(key).to_lowercase()
}

/// A cause as the page calls it.
pub fn cause_name(key: &str) -> &str {
    match key {
        "perception" => "misread, planned right",
        "reasoning" => "read right, planned wrong",
        "both" => "misread, planned wrong",
        "incoherent" => "misread beyond use",
        _ => "board not stated",
    }
}

/// Start, goal, hole and ice as one picture of two by two tiles.
fn tiles() -> Result<String> {
    let failed =
        |error: mgsd_tasks::Error| Error::Case { case_id: "the page's tiles".into(), message: error.to_string() };
    let lake = Board::from(frozen_lake::Board::from_rows(&["SG", "HF"]).map_err(failed)?);
    let options = RenderOptions { image_size: 2 * TILE, tiles: TileSet::drawn() };
    let picture = lake.render(&options).and_then(|image| image.to_png()).map_err(failed)?;
    Ok(png_data_url(&picture))
}

/// A heading for a run.
pub fn run_name(label: &str, modality: &str) -> String {
    format!("{}, from {}", escape(label), if modality == "image" { "the picture" } else { "text" })
}
