//! `mgsd demo`: the whole method on the embedded model.

use crate::console::Console;
use crate::demo::{self, Scale, Settings};
use std::path::PathBuf;

/// The whole method on the embedded model, on the CPU unless told otherwise: boards, perception SFT, distillation, report.
///
/// Example: mgsd demo --out runs/demo --seed 1
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the run; demo.json and report.html are written there.
    #[arg(long, default_value = "runs/demo")]
    out: PathBuf,
    /// Seed of boards, training and sampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A few boards and steps only: shows that everything works, not what the method gains.
    #[arg(long)]
    quick: bool,
    /// Leave out stage 1: distil the base model directly.
    #[arg(long)]
    no_cold_start: bool,
    /// Change a key of the stage-1 recipe; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set_sft: Vec<String>,
    /// Change a key of the stage-2 recipe, such as opcd.loss=policy-gradient; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set_opcd: Vec<String>,
    /// Where the models run: cpu, cuda or cuda:N. The embedded model is so small that the CPU suits it.
    #[arg(long, default_value = "cpu", value_name = "cpu|cuda|cuda:N", value_parser = super::device_name)]
    device: String,
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    let settings = Settings {
        out: args.out.clone(),
        seed: args.seed,
        scale: if args.quick { Scale::Quick } else { Scale::Full },
        cold_start: !args.no_cold_start,
        device: mgsd_compute::Device::parse(&args.device).map_err(|why| anyhow::anyhow!("--device: {why}"))?,
        set_sft: args.set_sft.clone(),
        set_opcd: args.set_opcd.clone(),
    };
    let result = demo::run(&settings, console)?;
    console.say(demo::story(&result));
    console.say(format_args!("report: {}", args.out.join("report.html").display()));
    console.result(&result)
}
