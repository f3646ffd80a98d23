//! `mgsd merge`: an adapter folded into its base model.

use super::model_folder;
use crate::console::Console;
use std::path::PathBuf;

/// Fold a PEFT adapter into its base model, and prove that both compute the same.
///
/// Example: mgsd merge --base Qwen3-VL-4B-Instruct --adapter runs/sft/adapter --out merged
#[derive(clap::Args)]
pub struct Args {
    /// Model folder, or name on the Hugging Face Hub, that the adapter was trained on.
    #[arg(long)]
    base: PathBuf,
    /// Adapter folder in PEFT's layout.
    #[arg(long)]
    adapter: PathBuf,
    /// New model folder.
    #[arg(long)]
    out: PathBuf,
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    let (base, adapter) = (model_folder(&args.base, console)?, model_folder(&args.adapter, console)?);
    let report = mgsd_model::merge::merge(&base, &adapter, &args.out)?;
    console.say(format_args!(
        "{}: {} layers merged; over {} tokens the logits differ from base plus adapter by at most {:.2e} (allowed \
         {:.2e}), where the adapter changes them by up to {:.2e}",
        args.out.display(),
        report.layers,
        report.tokens,
        report.max_difference,
        report.allowed,
        report.adapter_effect
    ));
    console.result(&serde_json::json!({
        "out": args.out, "layers": report.layers, "tokens": report.tokens, "max_difference": report.max_difference,
        "allowed": report.allowed, "adapter_effect": report.adapter_effect,
    }))
}
