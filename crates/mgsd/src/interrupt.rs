//! Ctrl-C and SIGTERM as a flag: the work in hand is finished and saved, then the program stops.

use anyhow::Context;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

static STOP: AtomicBool = AtomicBool::new(false);
static FIRST: OnceLock<Instant> = OnceLock::new();

/// Signals within this time are one: a terminal tells all processes of a run, and so does whoever started them.
const ECHO: Duration = Duration::from_millis(500);

/// Installs the handler, which says what happens now; a later signal ends the program at once.
pub fn install(told: &'static str) -> anyhow::Result<&'static AtomicBool> {
    ctrlc::set_handler(move || {
        let first = FIRST.get_or_init(Instant::now);
        if !STOP.swap(true, Ordering::SeqCst) {
            eprintln!("\n{told}");
        } else if first.elapsed() > ECHO {
            std::process::exit(130);
        }
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(&STOP)
}

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Counts the signals instead, for a program that passes them on.
pub fn count() -> anyhow::Result<&'static AtomicUsize> {
    let add = || {
        COUNT.fetch_add(1, Ordering::SeqCst);
    };
    ctrlc::set_handler(add).context("cannot listen for Ctrl-C")?;
    Ok(&COUNT)
}
