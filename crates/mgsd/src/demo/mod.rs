//! The whole method in one call: generate, measure, teach to read, measure, distil, measure, report.
//!
//! Every phase is the one behind a command of its own: what happens here can be done step by step by hand.

mod boards;
pub mod embedded;
mod measure;

use crate::console::Console;
use crate::interrupt;
use anyhow::Context;
use indexmap::IndexMap;
use measure::Bench;
use mgsd_data::opcd;
use mgsd_data::perception_sft;
use mgsd_data::prompts::{Prompts, ReferencePlan};
use mgsd_eval::demo::{Demo, StageScores};
use mgsd_train::{Control, Device, Phase, Progress, Recipe, World};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What a run is told.
pub struct Settings {
    /// Folder of the run.
    pub out: PathBuf,
    /// Seed of everything.
    pub seed: u64,
    /// How much of it.
    pub scale: Scale,
    /// Whether stage 1 comes before stage 2.
    pub cold_start: bool,
    /// Where the models run.
    pub device: Device,
    /// Changes of the stage-1 recipe.
    pub set_sft: Vec<String>,
    /// Changes of the stage-2 recipe.
    pub set_opcd: Vec<String>,
}

/// How much of everything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// What the results are measured with.
    Full,
    /// Seconds instead of minutes.
    Quick,
}

/// Runs the demo and writes `demo.json` and `report.html`.
pub fn run(settings: &Settings, console: &Console) -> anyhow::Result<Demo> {
    let out = &settings.out;
    let stop = interrupt::install("stopping after this step, or after this measurement; once more to stop at once")?;
    // Before anything is taken away.
    for (flag, recipe, changes) in [
        ("--set-sft", embedded::SFT_RECIPE, &settings.set_sft),
        ("--set-opcd", embedded::OPCD_RECIPE, &settings.set_opcd),
    ] {
        Recipe::parse(flag, recipe, changes)?;
    }
    fresh_folder(out)?;
    let mut clock = Clock { seconds: IndexMap::new(), started: Instant::now() };
    let base = embedded::write_model(&out.join("base"))?;
    let prompts = Prompts::compact()?;

    console.note("making boards");
    let boards = boards::make(&out.join("data"), settings.seed, settings.scale)?;
    perception_sft::write(&out.join("sft.json"), &perception_sft::records(&boards.train, &prompts, out)?)?;
    let rows = opcd::rows(&boards.train, &prompts, ReferencePlan::Given, out)?;
    opcd::write_json(&out.join("opcd.json"), &rows)?;
    clock.lap("generate");

    let bench = Bench::new(&boards.test, prompts, out.join("eval"), settings.device);
    let base_scores = measured(&bench, "base", &base, stop, console)?;
    clock.lap("measure_base");

    // Without stage 1 the student is the base, which is measured already; its rows are not written a second time.
    let (student, sft_scores) = if settings.cold_start {
        let model = train("sft", embedded::SFT_RECIPE, &sft_changes(settings, &base), settings, stop, console)?;
        clock.lap("sft");
        let scores = measured(&bench, "sft", &model, stop, console)?;
        clock.lap("measure_sft");
        (model, scores)
    } else {
        (base.clone(), base_scores.clone())
    };

    let changes = opcd_changes(settings, &student, &base);
    let taught = train("opcd", embedded::OPCD_RECIPE, &changes, settings, stop, console)?;
    clock.lap("opcd");
    let mgsd_scores = measured(&bench, "mgsd", &taught, stop, console)?;
    clock.lap("measure_mgsd");

    let scores = [base_scores, sft_scores, mgsd_scores];
    let mut demo = Demo::new(settings.seed, clock.seconds.clone(), peak_memory(), scores.clone());
    mgsd_eval::json::write(&out.join("demo.json"), &demo)?;
    let data = mgsd_eval::report::read_runs(std::slice::from_ref(out))?;
    mgsd_eval::report::write(&out.join("report.html"), &data)?;
    clock.lap("report");
    demo = Demo::new(settings.seed, clock.seconds, peak_memory(), scores);
    mgsd_eval::json::write(&out.join("demo.json"), &demo)?;
    Ok(demo)
}

/// The result in a few lines for people.
pub fn story(demo: &Demo) -> String {
    let mut text = String::from("\n              picture    text    reads the board exactly\n");
    for (name, stage) in [("base", &demo.base), ("+ SFT", &demo.sft), ("+ OPCD", &demo.mgsd)] {
        let exact = stage.perception_exact_match.get(mgsd_eval::demo::MACRO).copied().unwrap_or(0.0);
        text.push_str(&format!(
            "{name:12} {:6.1} % {:6.1} %    {:6.1} %\n",
            100.0 * stage.picture.macro_accuracy(),
            100.0 * stage.text.macro_accuracy(),
            100.0 * exact
        ));
    }
    if let Some(closed) = demo.gap_closed {
        text.push_str(&format!("gap closed   {:6.1} %\n", 100.0 * closed));
    }
    let total = demo.seconds.get("total").copied().unwrap_or(0.0);
    text.push_str(&format!("{total:.0} s"));
    if let Some(bytes) = demo.peak_memory_bytes {
        text.push_str(&format!(", {:.2} GiB at most", bytes as f64 / f64::from(1 << 30)));
    }
    text
}

/// Seconds by phase.
struct Clock {
    seconds: IndexMap<String, f64>,
    started: Instant,
}

impl Clock {
    fn lap(&mut self, phase: &str) {
        self.seconds.insert(phase.to_string(), self.started.elapsed().as_secs_f64());
        self.started = Instant::now();
    }
}

/// An earlier demo in the folder makes room; anything else there is the user's and stays.
fn fresh_folder(out: &Path) -> anyhow::Result<()> {
    let taken = std::fs::read_dir(out).map(|mut items| items.next().is_some()).unwrap_or(false);
    let marker = out.join("demo.log");
    if taken && !marker.exists() {
        anyhow::bail!("{}: is not empty and holds no earlier demo: name another folder with --out", out.display());
    }
    if taken {
        // What was measured first: it must not stand beside another run's parts.
        for part in ["report.html", "demo.json", "eval", "opcd", "sft", "base", "data"] {
            clear(&out.join(part))?;
        }
        for part in ["sft.json", "opcd.json", "dataset_info.json"] {
            clear(&out.join(part))?;
        }
    }
    std::fs::create_dir_all(out).with_context(|| format!("{}: cannot be made", out.display()))?;
    std::fs::write(&marker, "A folder of `mgsd demo`; the next demo may replace what is in it.\n")
        .with_context(|| format!("{}: cannot be written", marker.display()))
}

/// Removes a file or a folder, if it is there.
fn clear(part: &Path) -> anyhow::Result<()> {
    let removed = if part.is_dir() { std::fs::remove_dir_all(part) } else { std::fs::remove_file(part) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot be cleared for the new run", part.display()))
        }
        _ => Ok(()),
    }
}

fn sft_changes(settings: &Settings, base: &Path) -> Vec<String> {
    let out = &settings.out;
    let mut changes = vec![
        set_path("model.base", base),
        set_path("model.out", &out.join("sft")),
        "data.mix.0.kind=\"sharegpt\"".to_string(),
        set_path("data.mix.0.file", &out.join("sft.json")),
        format!("seed={}", settings.seed),
    ];
    if settings.scale == Scale::Quick {
        changes.extend(["steps=4", "batch.samples_per_step=16", "eval.samples=16"].map(String::from));
    }
    changes.extend(settings.set_sft.iter().cloned());
    changes
}

fn opcd_changes(settings: &Settings, student: &Path, base: &Path) -> Vec<String> {
    let out = &settings.out;
    let mut changes = vec![
        set_path("model.base", student),
        set_path("model.out", &out.join("opcd")),
        set_path("opcd.teacher_model", base),
        set_path("data.train", &out.join("opcd.json")),
        format!("seed={}", settings.seed),
    ];
    if settings.scale == Scale::Quick {
        changes.extend(["steps=2", "batch.samples_per_step=12", "eval.samples=12"].map(String::from));
    }
    changes.extend(settings.set_opcd.iter().cloned());
    changes
}

/// `key="path"` as TOML, whatever characters the path holds.
fn set_path(key: &str, path: &Path) -> String {
    format!("{key}={}", serde_json::Value::from(path.display().to_string()))
}

fn train(
    name: &str,
    recipe: &str,
    changes: &[String],
    settings: &Settings,
    stop: &AtomicBool,
    console: &Console,
) -> anyhow::Result<PathBuf> {
    let recipe = Recipe::parse(&format!("recipes/nano-{name}.toml"), recipe, changes)?;
    console.note(format_args!("training: {name}"));
    let every = if settings.scale == Scale::Quick { 1 } else { 25 };
    let show = |progress: &Progress| {
        if progress.phase == Phase::Train && progress.step.is_multiple_of(every) {
            let loss = progress.scalars.get("loss").unwrap_or(f64::NAN);
            console.note(format_args!(
                "  {name} step {}/{} loss {loss:.4} ({:.0} s)",
                progress.step, progress.steps, progress.seconds
            ));
        }
    };
    let control =
        Control { stop, resume: false, device: settings.device, world: World::alone(), progress: Some(&show) };
    match mgsd_train::run(&recipe, &control) {
        Err(error) if stop.load(Ordering::SeqCst) => {
            let recipe = settings.out.join(name).join("recipe.toml");
            let recipe = recipe.display();
            anyhow::bail!("{ANEW} (this stage alone: `mgsd train {name} {recipe} --resume`; {error})")
        }
        done => Ok(done?.result),
    }
}

/// What a demo that was stopped says.
const ANEW: &str = "stopped; `mgsd demo` begins anew when it is started again";

fn measured(
    bench: &Bench,
    stage: &str,
    model: &Path,
    stop: &AtomicBool,
    console: &Console,
) -> anyhow::Result<StageScores> {
    console.note(format_args!("measuring: {stage}"));
    let scores = bench.measure(stage, model)?;
    anyhow::ensure!(!stop.load(Ordering::SeqCst), "{ANEW}");
    let exact = scores.perception_exact_match.get(mgsd_eval::demo::MACRO).copied().unwrap_or(0.0);
    console.note(format_args!(
        "  {stage}: plans from the picture {:.3}, from text {:.3}; reads the board exactly {exact:.3}",
        scores.picture.macro_accuracy(),
        scores.text.macro_accuracy()
    ));
    Ok(scores)
}

/// The most memory this process has held, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
