//! `mgsd eval`: what a model can do.

mod ask;
mod endpoint;
mod tables;

use crate::console::Console;

/// Measure planning, perception and the modality gap.
///
/// Example: mgsd eval plan --model runs/demo/opcd/model --data data --prompts compact --out runs/eval
#[derive(clap::Subcommand)]
pub enum Command {
    Plan(Box<ask::Plan>),
    Perception(Box<ask::Perception>),
    Gap(tables::Gap),
    Compare(tables::Compare),
}

pub fn run(command: Command, console: &Console) -> anyhow::Result<()> {
    match command {
        Command::Plan(args) => ask::plan_run(&args.common, console),
        Command::Perception(args) => ask::perception_run(&args.common, console),
        Command::Gap(args) => tables::gap_table(&args, console),
        Command::Compare(args) => tables::compare_runs(&args, console),
    }
}
