//! `mgsd report`: run folders as one HTML page.

use crate::console::Console;
use std::path::PathBuf;

/// Write one self-contained HTML page about run folders.
///
/// Example: mgsd report runs/demo --out report.html
#[derive(clap::Args)]
pub struct Args {
    /// Folders that `mgsd demo` or `mgsd eval` wrote.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Page to write.
    #[arg(long)]
    out: PathBuf,
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    let data = mgsd_eval::report::read_runs(&args.runs)?;
    mgsd_eval::report::write(&args.out, &data)?;
    console.say(args.out.display());
    console.result(&serde_json::json!({"out": args.out}))
}
