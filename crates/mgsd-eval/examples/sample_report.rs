//! Renders a report of invented numbers, to look at its design:
//! `cargo run --release -p mgsd-eval --example sample_report -- OUT.html`

use std::path::PathBuf;

fn main() -> mgsd_eval::Result<()> {
    let out = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("sample_report.html"), PathBuf::from);
    mgsd_eval::report::write(&out, &sample::report())
}

#[path = "../tests/sample/mod.rs"]
mod sample;
