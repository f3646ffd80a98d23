//! Recipes of a few steps on a tiny model, and what their runs leave.

use mgsd_compute::Device;
use mgsd_train::world::World;
use mgsd_train::{Control, Phase, Progress, Recipe, Result, Scalars, Summary, run};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../mgsd-model/tests/data/tiny-qwen3vl")
}

pub const BOARDS: &str = r#"
[data]
image_size = 64
[data.tasks.frozenlake]
levels = [3]
random_start_goal = true
[data.tasks.maze]
levels = [3]
[prompts]
set = "compact"
[images]
min_pixels = 1024
max_pixels = 4096
[batch]
samples_per_step = 3
max_tokens_per_micro_batch = 256
[metrics]
tensorboard = false
"#;

/// `MGSD_TEST_DEVICE`, the CPU without it.
pub fn device() -> Device {
    Device::of_tests()
}

/// A recipe for `kind`, six steps long, with `changes`.
pub fn recipe(kind: &str, out: &Path, changes: &[&str]) -> Recipe {
    let mut text = format!("kind = \"{kind}\"\nsteps = 6\n[model]\nbase = {:?}\nout = {:?}\n", tiny_model(), out);
    text.push_str(BOARDS);
    if kind == "opcd" {
        text.push_str("[opcd]\nmax_new_tokens = 8\nrollout_batch = 2\n");
    } else {
        text.push_str("[[data.mix]]\nkind = \"read_image\"\n[[data.mix]]\nkind = \"plan_text\"\n");
    }
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    Recipe::parse("test.toml", &text, &changes).unwrap()
}

/// Runs alone, raising the stop flag after step `stop_after`; returns the reports of the training steps too.
pub fn go(recipe: &Recipe, resume: bool, stop_after: u64) -> (Result<Summary>, Vec<Scalars>) {
    go_with(recipe, resume, stop_after, World::alone())
}

/// The same as one of several processes. Only the first gets reports.
pub fn go_with(recipe: &Recipe, resume: bool, stop_after: u64, world: World) -> (Result<Summary>, Vec<Scalars>) {
    let stop = AtomicBool::new(false);
    let reports = RefCell::new(Vec::new());
    let progress = |progress: &Progress| {
        if progress.phase == Phase::Train {
            reports.borrow_mut().push(progress.scalars.clone());
        }
        if progress.step == stop_after {
            stop.store(true, Ordering::SeqCst);
        }
    };
    let result = run(recipe, &Control { stop: &stop, resume, device: device(), world, progress: Some(&progress) });
    (result, reports.into_inner())
}

pub const NEVER: u64 = u64::MAX;

/// Every file below `folder` with its bytes.
pub fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

pub fn losses(reports: &[Scalars]) -> Vec<f64> {
    reports.iter().map(|scalars| scalars.get("loss").unwrap()).collect()
}
