//! `mgsd bench`: our own speed, one figure a line.

use crate::console::Console;
use clap::ValueEnum;

/// Measure speed; each line is NAME VALUE UNIT.
///
/// Example: mgsd bench tasks
#[derive(clap::Args)]
pub struct Args {
    /// What to measure.
    name: Name,
    /// Runs of which the median is taken.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Boards made, drawn and written, and responses scored, per core.
    Tasks,
    /// Matrix products and other operations.
    Compute,
    /// Training step and batched decoding of the peer's small decoder.
    Cpu,
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    anyhow::ensure!(args.repeats > 0, "--repeats is 0, expected at least 1");
    let figures: Vec<(String, f64, &str)> = match args.name {
        Name::Tasks => {
            let folder = std::env::temp_dir().join(format!("mgsd-bench-{}", std::process::id()));
            let mut figures = mgsd_tasks::bench::generation(&folder, 200, args.repeats)?;
            figures.extend(mgsd_tasks::bench::scoring(args.repeats)?);
            // Only what the bench itself wrote.
            let _ = std::fs::remove_dir_all(&folder);
            figures.into_iter().map(|figure| (figure.name, figure.value, figure.unit)).collect()
        }
        Name::Compute => {
            mgsd_compute::bench::all().into_iter().map(|figure| (figure.name, figure.value, figure.unit)).collect()
        }
        Name::Cpu => {
            let (mean, best) = mgsd_model::bench::train(4 * args.repeats)?;
            vec![
                ("train_mean".to_string(), mean, "tokens/s"),
                ("train_best".to_string(), best, "tokens/s"),
                ("decode_16".to_string(), mgsd_model::bench::decode(16)?, "tokens/s"),
            ]
        }
    };
    for (name, value, unit) in &figures {
        console.say(format_args!("{name} {value:.1} {unit}"));
    }
    let rows: Vec<_> = figures
        .iter()
        .map(|(name, value, unit)| serde_json::json!({"name": name, "value": value, "unit": unit}))
        .collect();
    console.result(&rows)
}
