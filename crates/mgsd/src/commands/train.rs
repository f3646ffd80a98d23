//! `mgsd train`: a recipe run to its end.

use crate::console::Console;
use crate::interrupt;
use anyhow::bail;
use clap::ValueEnum;
use mgsd_train::{Control, Kind, Phase, Progress, Recipe, Scalars};
use std::io::IsTerminal;
use std::path::PathBuf;

/// Train from a recipe: from scratch, on perception questions, or by on-policy context distillation.
///
/// Example: mgsd train sft recipes/nano-sft.toml --set steps=50 --set model.out=runs/sft
#[derive(clap::Args)]
pub struct Args {
    /// Which training the recipe must be.
    kind: KindName,
    /// Recipe in TOML; the files in recipes/ explain each key.
    recipe: PathBuf,
    /// Change a key of the recipe, such as optimiser.lr=1e-4; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue from the newest checkpoint of the run, to the same bytes as an unbroken run.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    device: super::Device,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindName {
    Pretrain,
    Sft,
    Opcd,
}

impl KindName {
    fn kind(self) -> Kind {
        match self {
            Self::Pretrain => Kind::Pretrain,
            Self::Sft => Kind::Sft,
            Self::Opcd => Kind::Opcd,
        }
    }
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    let (device, world) = args.device.join()?;
    let mut recipe = Recipe::load(&args.recipe, &args.set)?;
    if recipe.kind != args.kind.kind() {
        bail!(
            "{}: kind is {:?}, but the command asks for {:?}: call the training that the recipe is written for",
            args.recipe.display(),
            recipe.kind,
            args.kind.kind()
        );
    }
    if let Some(name) = mgsd_hub::named(&recipe.model.base) {
        recipe.model.base_name.get_or_insert(name.repo);
    }
    recipe.model.base = super::model_folder(&recipe.model.base, console)?;
    recipe.opcd.teacher_model = super::model_folder_of(recipe.opcd.teacher_model.as_ref(), console)?;
    // On a terminal the run draws its own bar; elsewhere a line now and then says how far it is.
    let quiet = std::io::stderr().is_terminal();
    let show = |progress: &Progress| {
        if progress.phase == Phase::Train {
            if !quiet && (progress.step.is_multiple_of(50) || progress.step == progress.steps) {
                console.note(format_args!("step {}/{} {}", progress.step, progress.steps, summary_line(progress)));
            }
        } else {
            console.note(format_args!("step {} measured: {}", progress.step, summary_line(progress)));
        }
    };
    let control = Control {
        stop: interrupt::install("stopping after this step; once more to stop at once")?,
        resume: args.resume,
        device,
        world,
        progress: Some(&show),
    };
    let summary = mgsd_train::run(&recipe, &control)?;
    if !control.world.writes() {
        return Ok(());
    }
    console.say(format_args!("{} steps in {:.0} s: {}", summary.steps, summary.seconds, summary.result.display()));
    console.result(&serde_json::json!({
        "steps": summary.steps, "seconds": summary.seconds, "metrics": object(&summary.metrics),
        "eval": summary.eval.as_ref().map(object),
        "best": summary.best.as_ref().map(|(step, folder)| serde_json::json!({"step": step, "folder": folder})),
        "out": summary.out, "result": summary.result,
    }))
}

/// The numbers that fit a line, in their order.
fn summary_line(progress: &Progress) -> String {
    progress.scalars.0.iter().map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join("  ")
}

/// Named numbers as a JSON object.
fn object(scalars: &Scalars) -> serde_json::Map<String, serde_json::Value> {
    scalars.0.iter().map(|(name, value)| ((*name).to_string(), (*value).into())).collect()
}
