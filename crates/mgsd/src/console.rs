//! What people and scripts see: results on standard output, progress on standard error.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// Where results and progress go.
pub struct Console {
    json: bool,
}

impl Console {
    /// `json`: results end in one JSON object.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line for people, on standard output; left out when a script reads.
    pub fn say(&self, text: impl std::fmt::Display) {
        if !self.json {
            out(&format_args!("{text}\n"));
        }
    }

    /// A piece of a line for people, seen at once.
    pub fn say_piece(&self, text: impl std::fmt::Display) {
        if !self.json {
            out(&text);
        }
    }

    /// The result as one JSON object, if asked for.
    pub fn result(&self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            out(&format_args!("{}\n", serde_json::to_string(value)?));
        }
        Ok(())
    }

    /// A line about what is going on, on standard error.
    pub fn note(&self, text: impl std::fmt::Display) {
        eprintln!("{text}");
    }

    /// A progress bar over `total` things; invisible where standard error is no terminal.
    pub fn bar(&self, total: u64, what: &str) -> ProgressBar {
        let target =
            if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{prefix:>12} [{bar:30}] {pos}/{len} {msg} ({elapsed}, {eta} left)")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        ProgressBar::with_draw_target(Some(total), target).with_style(style).with_prefix(what.to_string())
    }
}

/// Writes a text; a reader that has gone away (a closed pipe) ends the program quietly, a full disk does not.
fn out(text: &impl std::fmt::Display) {
    let mut stdout = std::io::stdout();
    if let Err(error) = write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        eprintln!("error: standard output cannot be written: {error}; free space where it goes, or write elsewhere");
        std::process::exit(1);
    }
}
