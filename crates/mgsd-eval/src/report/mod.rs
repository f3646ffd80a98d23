//! The report: one HTML file that holds everything it shows and asks nothing of the network. Its figures and tables need
//! no script; the boards with filters are drawn by one, from a few dozen bytes a board.

mod card;
mod curves;
mod data;
mod explorer;
mod explorer_page;
mod gallery;
mod gap_chart;
mod html;
mod runs;
mod sheets;
mod tables;

use std::fmt::Write as _;
use std::path::Path;

pub use data::{
    BoardCard, Curve, Fact, Headline, Outcome, PerceptionScore, PlanningScore, Rates, ReportData, Series, Stage,
    png_data_url, verdict,
};

pub use explorer::{Evaluation, Explorer, LastStep, ShownAnswer, ShownBoard};
pub use runs::read_runs;

use crate::error::Result;
use crate::json;
use html::escape;

const STYLE: &str = include_str!("../../assets/report.css");
const BOARDS: &str = include_str!("../../assets/boards.js");
const SCRIPT: &str = include_str!("../../assets/report.js");

/// The page as text.
///
/// # Errors
/// When the page's own tiles cannot be drawn.
pub fn render(data: &ReportData) -> Result<String> {
    let mut out =
        String::with_capacity(64 * 1024 + data.gallery.iter().map(|card| card.picture.len() * 2).sum::<usize>());
    let title = escape(&data.title);
    // The policy makes the promise of a self-contained page one that the browser keeps.
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'\"><title>{title}</title><style>{STYLE}</style></head><body><main><header><h1>{title}</h1>"
    );
    if !data.lead.is_empty() {
        let _ = write!(out, "<p class=\"lead\">{}</p>", escape(&data.lead));
    }
    if !data.facts.is_empty() {
        out.push_str("<dl class=\"facts\">");
        for fact in &data.facts {
            let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(&fact.label), escape(&fact.value));
        }
        out.push_str("</dl>");
    }
    out.push_str("</header>");
    if !data.headlines.is_empty() {
        out.push_str("<section class=\"headlines\" aria-label=\"The numbers to remember\">");
        for headline in &data.headlines {
            let _ = write!(
                out,
                "<div class=\"headline\"><p class=\"label\">{}</p><p class=\"value\">{}</p><p class=\"note\">{}</p></div>",
                escape(&headline.label),
                escape(&headline.value),
                escape(&headline.note)
            );
        }
        out.push_str("</section>");
    }
    gap_chart::render(&mut out, data);
    stage_notes(&mut out, data);
    tables::perception(&mut out, data);
    curves::render(&mut out, data);
    gallery::render(&mut out, data);
    tables::planning(&mut out, data);
    sheets::render(&mut out, data);
    explorer_page::render(&mut out, data)?;
    if !data.footer.is_empty() {
        out.push_str("<footer>");
        for line in &data.footer {
            let _ = write!(out, "<p>{}</p>", escape(line));
        }
        out.push_str("</footer>");
    }
    let _ = write!(out, "</main><script>{BOARDS}{SCRIPT}</script></body></html>");
    Ok(out)
}

/// What happened in each stage, under the figure that names them.
fn stage_notes(out: &mut String, data: &ReportData) {
    if data.stages.iter().all(|stage| stage.note.is_empty()) {
        return;
    }
    out.push_str("<dl class=\"stages\">");
    for stage in data.stages.iter().filter(|stage| !stage.note.is_empty()) {
        let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(&stage.label), escape(&stage.note));
    }
    out.push_str("</dl>");
}

/// Writes the page, whole or not at all.
pub fn write(path: &Path, data: &ReportData) -> Result<()> {
    json::write_whole(path, render(data)?.as_bytes())
}
