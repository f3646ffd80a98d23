//! `mgsd bench`: our own speed, one figure a line.

use crate::console::Console;
use clap::ValueEnum;
use mgsd_model::{bench_gpu, model};

/// Measure speed; each line is NAME VALUE UNIT.
///
/// Example: mgsd bench tasks
#[derive(clap::Args)]
pub struct Args {
    /// What to measure.
    name: Name,
    /// Runs of which the median is taken.
    #[arg(long, default_value_t = 5, value_parser = super::at_least_one)]
    repeats: usize,
    #[command(flatten)]
    device: super::Device,
    /// With several processes (`mgsd launch`), share out the optimiser's state, for `gpu`.
    #[arg(long)]
    shard: bool,
    /// With several processes, add up gradients after the pass back instead of during it, for `gpu`.
    #[arg(long)]
    no_overlap: bool,
    /// What training makes again instead of keeping it (default: cheap), for `gpu`.
    #[arg(long, value_enum)]
    recompute: Option<Recompute>,
    /// The published size, for `gpu`.
    #[arg(long, value_enum, default_value = "4b")]
    size: Size,
    /// Parts of `gpu`.
    #[arg(long, value_delimiter = ',', default_value = "matmul,stack,logp,sft,full,gen,opcd")]
    what: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Size {
    #[value(name = "4b")]
    B4,
    #[value(name = "8b")]
    B8,
}

#[derive(Clone, Copy, ValueEnum)]
enum Recompute {
    Nothing,
    Cheap,
    Layers,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Boards made, drawn and written, and responses scored, per core.
    Tasks,
    /// Matrix products and other operations.
    Compute,
    /// Training step and batched decoding of the peer's small decoder.
    Cpu,
    /// Training, scoring and generation at the published sizes on a GPU, random weights.
    Gpu,
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    // A long measurement tells each figure as it comes.
    let say = |(name, value, unit): &(String, f64, &str)| {
        let digits = if *value < 100.0 { 2 } else { 1 };
        console.say(format_args!("{name} {value:.digits$} {unit}"));
    };
    let figures: Vec<(String, f64, &str)> = match args.name {
        Name::Gpu => {
            let (device, world) = args.device.join()?;
            let size = match args.size {
                Size::B4 => bench_gpu::Size::B4,
                Size::B8 => bench_gpu::Size::B8,
            };
            let mut figures = Vec::new();
            let (runs, shard, overlap) = (args.repeats, args.shard, !args.no_overlap);
            let recompute = args.recompute.map(|recompute| match recompute {
                Recompute::Nothing => model::Recompute::Nothing,
                Recompute::Cheap => model::Recompute::Cheap,
                Recompute::Layers => model::Recompute::Layers,
            });
            let setting = bench_gpu::Setting { device, size, runs, group: world.group(), shard, overlap, recompute };
            bench_gpu::run(&setting, &args.what, &mut |figure| {
                if world.writes() {
                    say(&figure);
                    figures.push(figure);
                }
            })?;
            figures
        }
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
    if !matches!(args.name, Name::Gpu) {
        figures.iter().for_each(say);
    }
    let rows: Vec<_> = figures
        .iter()
        .map(|(name, value, unit)| serde_json::json!({"name": name, "value": value, "unit": unit}))
        .collect();
    console.result(&serde_json::json!({"figures": rows}))
}
