//! Whole runs on a tiny model: resuming, stopping, refusing, and what each loss and teacher does.

mod common;

use common::{BOARDS, NEVER, contents, device, go, losses, recipe, tiny_model};
use mgsd_compute::memory_taken;
use mgsd_data::prompts::{Prompts, ReferencePlan};
use mgsd_data::{opcd, perception_sft};
use mgsd_tasks::{GenerateOptions, RenderOptions, Task};
use mgsd_train::{Control, Progress, Recipe, Scalars, TrainError, World};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Six steps straight and three, a stop, and three more give the same bytes.
fn resumes_to_the_same_bytes(kind: &str, changes: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (straight, resumed) = (folder.path().join("straight"), folder.path().join("resumed"));
    let (summary, reports) = go(&recipe(kind, &straight, changes), false, NEVER);
    let summary = summary.unwrap();
    let (stopped, mut first) = go(&recipe(kind, &resumed, changes), false, 3);
    match stopped {
        Err(TrainError::Interrupted { step: 3, checkpoint }) => assert!(checkpoint.ends_with("checkpoint-3")),
        other => panic!("expected an interruption after step 3, got {other:?}"),
    }
    let (again, second) = go(&recipe(kind, &resumed, changes), true, NEVER);
    let again = again.unwrap();
    first.extend(second);
    assert_eq!(losses(&reports), losses(&first));
    let (one, other) = (contents(&summary.result), contents(&again.result));
    assert!(one.iter().any(|(name, _)| name.ends_with(".safetensors")));
    assert!(one == other, "the results differ");
    let lines = std::fs::read_to_string(resumed.join("metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains("\"train\"")).count(), 6);
}

#[test]
fn sft_of_all_weights_resumes_to_the_same_bytes() {
    resumes_to_the_same_bytes("sft", &["optimiser.lr=1e-3", "eval.every=2", "eval.samples=4"]);
}

#[test]
fn sft_of_an_adapter_resumes_to_the_same_bytes() {
    resumes_to_the_same_bytes("sft", &["model.adapter={rank=4, alpha=8}", "optimiser.lr=1e-2"]);
}

#[test]
fn opcd_of_all_weights_resumes_to_the_same_bytes() {
    resumes_to_the_same_bytes("opcd", &["optimiser.lr=1e-4"]);
}

#[test]
fn opcd_of_an_adapter_with_an_averaging_teacher_resumes_to_the_same_bytes() {
    let changes = ["model.adapter={rank=4, alpha=8}", "optimiser.lr=1e-2", "opcd.teacher=ema", "opcd.ema_decay=0.5"];
    resumes_to_the_same_bytes("opcd", &changes);
}

/// The tiny model to be computed in bfloat16, which the CPU does not do.
#[test]
fn an_averaging_teacher_of_a_bfloat16_model_follows_and_resumes_to_the_same_bytes() {
    if device().is_cpu() {
        eprintln!("skipped: needs MGSD_TEST_DEVICE=cuda");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(tiny_model()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("\"float32\""), "{text}");
    std::fs::write(&config, text.replace("\"float32\"", "\"bfloat16\"")).unwrap();
    let base = format!("model.base={:?}", folder.path());
    let changes = [base.as_str(), "optimiser.lr=1e-4", "opcd.teacher=ema", "opcd.ema_decay=0.9"];
    resumes_to_the_same_bytes("opcd", &changes);
    // One step of such a teacher is too small for bfloat16: what stands in the checkpoint has more digits than that.
    let out = folder.path().join("out");
    let (stopped, _) = go(&recipe("opcd", &out, &changes), false, 3);
    assert!(matches!(stopped, Err(TrainError::Interrupted { .. })));
    let arrays = mgsd_model::weights::read_arrays(&out.join("checkpoint-3/optimizer.safetensors")).unwrap();
    let averages = arrays.iter().filter(|(name, _)| name.starts_with("average.") && name.ends_with("q_proj.weight"));
    let finer = averages.flat_map(|(_, array)| array.as_f32().unwrap()).any(|x| x.to_bits() & 0xffff != 0);
    assert!(finer, "the averages are bfloat16 numbers");
}

/// What tensors took before the first step is known, and in all, in MiB.
fn taken(kind: &str, changes: &[&str]) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let changes =
        [changes, &["steps=12", "batch.samples_per_step=24", "batch.max_tokens_per_micro_batch=512"]].concat();
    let (begin, first) = (memory_taken(), std::cell::Cell::new(None));
    let progress = |_: &Progress| first.set(first.get().or(Some(memory_taken())));
    let stop = AtomicBool::new(false);
    let control =
        Control { stop: &stop, resume: false, device: device(), world: World::alone(), progress: Some(&progress) };
    mgsd_train::run(&recipe(kind, folder.path(), &changes), &control).unwrap();
    let mib = |bytes: u64| (bytes - begin) as f64 / f64::from(1 << 20);
    (mib(first.get().unwrap()), mib(memory_taken()))
}

#[test]
fn memory_is_taken_before_the_first_step() {
    let replay = ["data.mix=[{kind=\"plan_text\"}]", "opcd.replay_samples=6"];
    for (kind, changes) in [("sft", &[][..]), ("opcd", &[]), ("opcd", &replay)] {
        let (first, all) = taken(kind, changes);
        // What is left to take: lists of rows, and batches of a mixture that the first step did not have.
        assert!(all < 1.02 * first, "{kind} {changes:?}: {first:.2} MiB in the first step, {all:.2} MiB in all");
    }
}

#[test]
fn pretraining_starts_from_the_seed_and_learns() {
    let folder = tempfile::tempdir().unwrap();
    let changes = ["steps=40", "optimiser.lr=5e-3", "batch.samples_per_step=4", "eval.every=40", "eval.samples=4"];
    let (summary, reports) = go(&recipe("pretrain", &folder.path().join("a"), &changes), false, NEVER);
    let losses = losses(&reports);
    assert!(losses[0] > 5.0, "random weights guess among 600 tokens: {}", losses[0]);
    assert!(losses[39] < 0.6 * losses[0], "{losses:?}");
    let summary = summary.unwrap();
    let eval = summary.eval.unwrap();
    assert!(eval.get("loss").unwrap() < 0.7 * losses[0]);
    assert!(eval.get("exact").unwrap() <= eval.get("accuracy").unwrap(), "{eval:?}");
    assert!(summary.best.unwrap().1.join("model.safetensors").is_file());
}

#[test]
fn checkpoints_beyond_keep_go_away_and_torn_ones_are_not_seen() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(
        "sft",
        folder.path(),
        &["checkpoint.every=1", "checkpoint.keep=2", "steps=4", "schedule.shape=constant"],
    );
    go(&recipe, false, NEVER).0.unwrap();
    let mut names: Vec<String> = contents_names(folder.path(), "checkpoint-");
    names.sort();
    assert_eq!(names, ["checkpoint-3", "checkpoint-4"]);
    // What a killed process leaves: a folder under its temporary name, and one without its state file.
    std::fs::create_dir(folder.path().join("checkpoint-9.tmp")).unwrap();
    std::fs::create_dir(folder.path().join("checkpoint-8")).unwrap();
    let longer = Recipe { steps: Some(5), ..recipe };
    let (summary, reports) = go(&longer, true, NEVER);
    assert_eq!((summary.unwrap().steps, reports.len()), (5, 1));
}

fn contents_names(folder: &Path, prefix: &str) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(prefix)).collect()
}

#[test]
fn an_old_run_is_neither_overwritten_nor_continued_with_another_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let changes = ["checkpoint.every=2", "steps=2"];
    go(&recipe("sft", folder.path(), &changes), false, NEVER).0.unwrap();
    let text = go(&recipe("sft", folder.path(), &changes), false, NEVER).0.unwrap_err().to_string();
    assert!(text.contains("checkpoint-2") && text.contains("--resume"), "{text}");
    let other = recipe("sft", folder.path(), &["checkpoint.every=2", "steps=2", "optimiser.lr=0.5"]);
    let text = go(&other, true, NEVER).0.unwrap_err().to_string();
    assert!(text.contains("optimiser.lr"), "{text}");
    let kept = std::fs::read_to_string(folder.path().join("recipe.toml")).unwrap();
    assert!(!kept.contains("lr = 0.5"), "a refusal writes nothing: {kept}");
    // Nor is one that kept no checkpoint.
    let folder = tempfile::tempdir().unwrap();
    let bare = recipe("sft", folder.path(), &["checkpoint.every=0", "steps=2"]);
    go(&bare, false, NEVER).0.unwrap();
    let before = std::fs::read(folder.path().join("metrics.jsonl")).unwrap();
    for resume in [false, true] {
        let text = go(&bare, resume, NEVER).0.unwrap_err().to_string();
        assert!(text.contains("(model)") && text.contains("model.out"), "{text}");
    }
    assert_eq!(std::fs::read(folder.path().join("metrics.jsonl")).unwrap(), before);
}

#[test]
fn a_run_cannot_be_continued_to_an_end_that_it_has_passed() {
    let folder = tempfile::tempdir().unwrap();
    let constant = recipe("sft", folder.path(), &["checkpoint.every=2", "steps=4", "schedule.shape=constant"]);
    go(&constant, false, NEVER).0.unwrap();
    let before = std::fs::read(folder.path().join("recipe.toml")).unwrap();
    let shorter = Recipe { steps: Some(3), ..constant.clone() };
    let text = go(&shorter, true, NEVER).0.unwrap_err().to_string();
    assert!(text.contains("checkpoint-4: 4 steps") && text.contains("ends after 3 (`steps`"), "{text}");
    assert_eq!(std::fs::read(folder.path().join("recipe.toml")).unwrap(), before);
    assert_eq!(go(&constant, true, NEVER).0.unwrap().steps, 4, "its own end it may have");
}

/// The step that `best/` is of.
fn best_step(folder: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(folder.join("best/best.json")).ok()?;
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["step"].as_u64()
}

#[test]
fn the_best_is_forgotten_when_it_was_measured_otherwise_or_after_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let changes = ["checkpoint.every=1", "eval.every=1", "eval.samples=4", "steps=2", "schedule.shape=constant"];
    let two = recipe("sft", folder.path(), &changes);
    let first = go(&two, false, NEVER).0.unwrap().best.unwrap().0;
    // As if it had been better than anything to come.
    let file = folder.path().join("checkpoint-2/state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    state["best"]["merit"] = 1.0.into();
    std::fs::write(&file, state.to_string()).unwrap();
    let back = || std::fs::remove_dir_all(folder.path().join("checkpoint-3")).unwrap();
    let three = Recipe { steps: Some(3), ..two.clone() };
    assert_eq!(go(&three, true, NEVER).0.unwrap().best.unwrap().0, first);
    assert_eq!(best_step(folder.path()), Some(first));
    back();
    let mut other = three.clone();
    other.eval.samples = 3;
    assert_eq!(go(&other, true, NEVER).0.unwrap().best.unwrap().0, 3, "the first measurement of its kind");
    assert_eq!(best_step(folder.path()), Some(3));
    // Back to the checkpoint before: the weights of step 3 are none of that run.
    back();
    let mut blind = three;
    blind.eval.every = 0;
    assert!(go(&blind, true, NEVER).0.unwrap().best.is_none());
    assert_eq!(best_step(folder.path()), None);
}

#[test]
fn a_trained_model_says_how_large_its_pictures_were() {
    let folder = tempfile::tempdir().unwrap();
    let result = go(&recipe("sft", folder.path(), &["steps=1"]), false, NEVER).0.unwrap().result;
    let limits = mgsd_model::image::PixelLimits::default();
    let pictures = mgsd_model::image::ImageProcessor::open(&result, limits).unwrap();
    assert_eq!(pictures.pixel_limits(), (1024, 4096));
    let text = std::fs::read_to_string(result.join("preprocessor_config.json")).unwrap();
    let settings: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(settings["size"], serde_json::json!({"longest_edge": 4096, "shortest_edge": 1024}));
}

#[test]
fn a_damaged_checkpoint_names_the_one_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe("sft", folder.path(), &["checkpoint.every=2", "steps=4"]);
    go(&recipe, false, NEVER).0.unwrap();
    let file = folder.path().join("checkpoint-4/optimizer.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let text = go(&recipe, true, NEVER).0.unwrap_err().to_string();
    assert!(text.contains("optimizer.safetensors") && text.contains("go on from checkpoint-2"), "{text}");
    std::fs::remove_dir_all(folder.path().join("checkpoint-4")).unwrap();
    go(&recipe, true, NEVER).0.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[test]
fn an_adapter_to_go_on_from_keeps_its_rank_and_scale() {
    let folder = tempfile::tempdir().unwrap();
    let first =
        recipe("sft", &folder.path().join("first"), &["model.adapter.rank=4", "model.adapter.alpha=8", "steps=2"]);
    go(&first, false, NEVER).0.unwrap();
    let from = folder.path().join("first/adapter");
    let given = format!("model.adapter.from={}", from.display());
    let second = |name: &str, change: &str| {
        go(
            &recipe(
                "sft",
                &folder.path().join(name),
                &["model.adapter.rank=4", "model.adapter.alpha=8", &given, "steps=1", change],
            ),
            false,
            NEVER,
        )
        .0
    };
    second("second", "seed=3").unwrap();
    let text = second("third", "model.adapter.rank=8").unwrap_err().to_string();
    assert!(text.contains("has rank 4") && text.contains("rank 8"), "{text}");
    // A layer of another rank, as PEFT's rank_pattern makes them.
    let mut arrays = mgsd_model::weights::read_arrays(&from.join("adapter_model.safetensors")).unwrap();
    for (end, halved) in [("layers.0.mlp.down_proj.lora_A.weight", 0), ("layers.0.mlp.down_proj.lora_B.weight", 1)] {
        let name = arrays.keys().find(|name| name.ends_with(end)).unwrap().clone();
        let mut shape = arrays[&name].shape.clone();
        shape[halved] /= 2;
        let numbers = shape.iter().product();
        arrays.insert(name, mgsd_model::weights::Array::f32(&shape, vec![0.1; numbers]));
    }
    mgsd_model::weights::write_arrays(&from.join("adapter_model.safetensors"), &arrays).unwrap();
    let settings = from.join("adapter_config.json");
    let mut said: serde_json::Value = serde_json::from_slice(&std::fs::read(&settings).unwrap()).unwrap();
    said["rank_pattern"] = serde_json::json!({"layers.0.mlp.down_proj": 2});
    std::fs::write(&settings, said.to_string()).unwrap();
    let text = second("fourth", "seed=3").unwrap_err().to_string();
    assert!(text.contains("different ranks") && text.contains("mgsd merge"), "{text}");
}

#[test]
fn a_loss_that_is_not_finite_names_step_samples_and_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let changes = ["optimiser.lr=1e30", "checkpoint.every=1", "schedule.shape=constant"];
    let error = go(&recipe("sft", folder.path(), &changes), false, NEVER).0.unwrap_err();
    let text = error.to_string();
    let TrainError::NonFinite { step, samples, checkpoint, .. } = error else { panic!("{text}") };
    assert!(step > 1 && samples.len() == 3, "{text}");
    let checkpoint = checkpoint.unwrap();
    assert!(checkpoint.ends_with(format!("checkpoint-{}", step - 1)) && checkpoint.join("state.json").is_file());
    assert!(text.contains("frozenlake") || text.contains("maze"), "{text}");
}

#[test]
fn a_base_shared_under_an_adapter_teaches_like_a_copy_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = ["model.adapter={rank=4, alpha=8}", "optimiser.lr=1e-2", "steps=3"];
    let base = format!("opcd.teacher_model={}", tiny_model().display());
    let shared = go(&recipe("opcd", &folder.path().join("shared"), &adapter), false, NEVER).1;
    let mut changes = adapter.to_vec();
    changes.extend(["opcd.teacher=folder", base.as_str()]);
    let copied = go(&recipe("opcd", &folder.path().join("copied"), &changes), false, NEVER).1;
    assert_eq!(losses(&shared), losses(&copied));
    assert_eq!(shared.len(), 3);
}

#[test]
fn the_sampler_and_the_trainer_agree_on_every_token() {
    let folder = tempfile::tempdir().unwrap();
    let (summary, reports) = go(&recipe("opcd", folder.path(), &["steps=2", "optimiser.lr=1e-4"]), false, NEVER);
    summary.unwrap();
    for scalars in &reports {
        assert!(scalars.get("sampler_gap").unwrap() < 1e-3, "{scalars:?}");
    }
}

#[test]
fn every_loss_and_teacher_takes_steps() {
    let folder = tempfile::tempdir().unwrap();
    for loss in ["reverse-kl", "forward-kl", "jsd", "policy-gradient"] {
        for teacher in ["base", "self", "ema"] {
            let out = folder.path().join(format!("{loss}-{teacher}"));
            let changes = [format!("opcd.loss={loss}"), format!("opcd.teacher={teacher}"), "steps=1".to_string()];
            let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
            let (summary, _) = go(&recipe("opcd", &out, &changes), false, NEVER);
            let summary = summary.unwrap_or_else(|error| panic!("{loss} {teacher}: {error}"));
            assert!(summary.metrics.get("grad_norm").unwrap() > 0.0, "{loss} {teacher}");
        }
    }
    let top_k = ["steps=1", "opcd.top_k=5"];
    go(&recipe("opcd", &folder.path().join("top"), &top_k), false, NEVER).0.unwrap();
}

#[test]
fn distillation_brings_the_student_towards_the_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let changes = ["steps=25", "optimiser.lr=2e-3", "batch.samples_per_step=6", "schedule.shape=constant"];
    let (summary, reports) = go(&recipe("opcd", folder.path(), &changes), false, NEVER);
    assert_eq!(summary.unwrap().steps, 25);
    let mean = |part: &[Scalars]| losses(part).iter().sum::<f64>() / part.len() as f64;
    let (before, after) = (mean(&reports[..3]), mean(&reports[22..]));
    assert!(after < 0.7 * before, "reverse KL {before} -> {after}");
}

#[test]
fn what_is_replayed_is_measured_and_counts_for_the_best() {
    let folder = tempfile::tempdir().unwrap();
    let mix = "data.mix=[{kind=\"plan_text\"}]";
    let changes = [mix, "opcd.replay_samples=2", "steps=2", "eval.every=1", "eval.samples=4", "optimiser.lr=1e-4"];
    let summary = go(&recipe("opcd", folder.path(), &changes), false, NEVER).0.unwrap();
    let eval = summary.eval.unwrap();
    assert!(eval.get("replay_loss").unwrap() > 1.0, "an untrained model cannot plan: {eval:?}");
    assert_eq!(eval.get("replay_exact"), Some(0.0), "{eval:?}");
    assert!(summary.best.is_some());
    let without =
        go(&recipe("opcd", &folder.path().join("b"), &["steps=1", "eval.every=1", "eval.samples=4"]), false, NEVER);
    assert_eq!(without.0.unwrap().eval.unwrap().get("replay_exact"), None);
}

#[test]
fn the_replay_loss_of_a_step_is_without_its_factor() {
    let folder = tempfile::tempdir().unwrap();
    let first = |weight: &str| {
        let (mix, given) = ("data.mix=[{kind=\"plan_text\"}]", format!("opcd.replay_weight={weight}"));
        let changes = [mix, "opcd.replay_samples=2", "steps=1", &given];
        let reports = go(&recipe("opcd", &folder.path().join(weight), &changes), false, NEVER).1;
        ["loss", "replay_loss"].map(|name| reports[0].get(name).unwrap())
    };
    let ([loss, replayed], [more, same]) = (first("1"), first("4"));
    assert!((replayed - same).abs() < 1e-5 * replayed, "{replayed} {same}");
    assert!((more - loss - 3.0 * replayed).abs() < 1e-4 * more, "{loss} {more}");
}

/// What the child process of the next test runs; alone it does nothing.
#[test]
#[ignore = "run by the next test in a process of its own"]
fn a_run_to_be_killed() {
    let Some(out) = std::env::var_os("MGSD_TEST_OUT") else { return };
    go(&killed_recipe(Path::new(&out)), true, NEVER).0.unwrap();
}

fn killed_recipe(out: &Path) -> Recipe {
    recipe("sft", out, &["steps=40", "checkpoint.every=1", "checkpoint.keep=2", "optimiser.lr=1e-3"])
}

#[test]
fn a_run_killed_twice_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (straight, killed) = (folder.path().join("straight"), folder.path().join("killed"));
    let expected = go(&killed_recipe(&straight), false, NEVER).0.unwrap();
    for reach in [3, 11] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "a_run_to_be_killed"])
            .env("MGSD_TEST_OUT", &killed)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let seen = || {
            contents_names(&killed, "checkpoint-")
                .iter()
                .any(|name| name[11..].parse().is_ok_and(|step: u64| step >= reach))
        };
        while !killed.is_dir() || !seen() {
            assert!(child.try_wait().unwrap().is_none(), "the run ended before it was killed");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (summary, reports) = go(&killed_recipe(&killed), true, NEVER);
    let summary = summary.unwrap();
    assert!(reports.len() < 30, "{} steps were taken again", reports.len());
    assert!(contents(&expected.result) == contents(&summary.result), "the results differ");
}

/// A task folder of eight small boards, and the same boards as perception records and as OPCD rows.
fn write_data(folder: &Path) {
    let tasks = folder.join("boards");
    let drawn = RenderOptions { image_size: 64, ..RenderOptions::default() };
    for task in [Task::FrozenLake, Task::Maze] {
        let boards = mgsd_tasks::generate(task, 3, &GenerateOptions::default(), 0..4).unwrap();
        mgsd_data::folder::write_instances(&tasks, &boards, Some(&drawn)).unwrap();
    }
    let examples = mgsd_data::folder::read(&tasks, &mgsd_data::folder::Filter::default()).unwrap();
    let prompts = Prompts::compact().unwrap();
    let records = perception_sft::records(&examples, &prompts, folder).unwrap();
    perception_sft::write(&folder.join("sft.json"), &records).unwrap();
    let rows = opcd::rows(&examples, &prompts, ReferencePlan::Given, folder).unwrap();
    opcd::write_json(&folder.join("rows.json"), &rows).unwrap();
    let samples = opcd::read(&folder.join("rows.json")).unwrap();
    opcd::write_parquet(&folder.join("rows.parquet"), &samples, folder).unwrap();
}

#[test]
fn a_task_folder_json_rows_and_parquet_rows_train_alike() {
    let folder = tempfile::tempdir().unwrap();
    write_data(folder.path());
    let run = |data: &str| {
        let path = folder.path().join(data);
        let train = format!("data.train={}", path.display());
        let validation = format!("data.validation={}", path.display());
        let changes =
            [train.as_str(), validation.as_str(), "optimiser.lr=1e-4", "eval.every=3", "batch.samples_per_step=4"];
        let mut recipe = recipe("opcd", &folder.path().join(format!("out-{data}")), &changes);
        (recipe.steps, recipe.epochs) = (None, Some(1.5));
        let (summary, reports) = go(&recipe, false, NEVER);
        let summary = summary.unwrap_or_else(|error| panic!("{data}: {error}"));
        let eval = summary.eval.unwrap();
        assert_eq!(eval.get("samples"), Some(8.0));
        assert_eq!(eval.get("samples_trained_on"), Some(8.0), "{data} is both");
        losses(&reports)
    };
    let from_folder = run("boards");
    assert_eq!(from_folder.len(), 3, "twelve boards, four a step");
    assert_eq!(from_folder, run("rows.json"));
    assert_eq!(from_folder, run("rows.parquet"));
    // Part of the validation boards: not those of one task alone, which lie one after another.
    let path = folder.path().join("rows.json");
    let train = format!("data.train={}", path.display());
    let validation = format!("data.validation={}", path.display());
    let some = ["eval.samples=4", "eval.every=1", "steps=1", &train, &validation];
    let (summary, _) = go(&recipe("opcd", &folder.path().join("some"), &some), false, NEVER);
    let eval = summary.unwrap().eval.unwrap();
    assert!(["success_frozenlake", "success_maze"].iter().all(|name| eval.get(name).is_some()), "{eval:?}");
    assert_eq!(eval.get("samples_trained_on"), Some(4.0));
    let generated = go(&recipe("opcd", &folder.path().join("generated"), &some[..4]), false, NEVER).0;
    assert_eq!(generated.unwrap().eval.unwrap().get("samples_trained_on"), None, "held out by their keys");
    // The rows tell the teacher the plan, whatever the recipe says.
    let blind = [&train, &validation, "opcd.reference_plan=false"];
    let text = go(&recipe("opcd", &folder.path().join("blind"), &blind), false, NEVER).0.unwrap_err().to_string();
    assert!(text.contains("rows.json") && text.contains("--no-reference-plan"), "{text}");
}

#[test]
fn a_sharegpt_file_is_trained_on_for_its_epochs_beside_generated_samples() {
    let folder = tempfile::tempdir().unwrap();
    write_data(folder.path());
    let text = format!(
        "kind = \"sft\"\nepochs = 2\n[model]\nbase = {:?}\nout = {:?}\n{BOARDS}\n[[data.mix]]\nkind = \"sharegpt\"\nfile = {:?}\n\
         [[data.mix]]\nkind = \"plan_text\"\n[eval]\nevery = 2\nheld_out = 0.25\n",
        tiny_model(),
        folder.path().join("out"),
        folder.path().join("sft.json")
    );
    let (summary, reports) = go(&Recipe::parse("test.toml", &text, &[]).unwrap(), false, NEVER);
    // Six of eight records, twice, half of the mix: 24 samples of three a step; two records and as many others held out.
    assert_eq!(reports.len(), 8);
    assert_eq!(summary.unwrap().eval.unwrap().get("samples"), Some(4.0));
    let text = Recipe::parse("test.toml", &text, &["eval.held_out=0".to_string(), "model.out=x".to_string()]);
    let text = go(&text.unwrap(), false, NEVER).0.unwrap_err().to_string();
    assert!(text.contains("sft.json") && text.contains("eval.held_out"), "{text}");
}
