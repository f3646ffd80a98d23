//! The binary as a user runs it.

mod common;

use common::{RECIPE, boards, fails, ok, tiny_model};
use std::collections::BTreeSet;
use std::ffi::OsString;
#[cfg(unix)]
use std::process::Command;

#[test]
fn a_solved_board_scores_under_both_rules() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    boards(folder, "minibehaviour", "5");
    let instance = "data/MiniBehaviour/level5/text/0001.txt";
    let plan = ok(folder, &["tasks", "solve", instance]);
    let row = serde_json::json!({"id": 7, "task": "minibehaviour", "instance": "MiniBehaviour/level5/text/0001.txt",
                                 "response": format!("<answer>{}</answer>", plan.trim())});
    std::fs::write(folder.join("rows.jsonl"), format!("{row}\n")).expect("rows");
    for rules in ["training", "benchmark"] {
        let scores = ok(folder, &["tasks", "score", "--rows", "rows.jsonl", "--root", "data", "--rules", rules]);
        let score: serde_json::Value = serde_json::from_str(scores.trim()).expect("one JSON object");
        assert_eq!(score["id"], 7);
        assert!(score["success"] == 1.0 || score["success"] == true, "{score}");
        assert!(score["actions"].as_array().is_some_and(|actions| !actions.is_empty()), "{score}");
    }
    ok(folder, &["tasks", "render", instance, "--out", "board.png", "--plan", plan.trim()]);
    assert!(std::fs::read(folder.join("board.png")).expect("a picture").starts_with(b"\x89PNG"));
}

#[test]
fn the_same_seed_gives_the_same_bytes_whatever_the_number_of_jobs() {
    let folder = tempfile::tempdir().expect("a folder");
    for jobs in ["1", "2"] {
        let generate = ["tasks", "generate", "--task", "maze", "--levels", "4", "--count", "9", "--out", jobs];
        ok(folder.path(), &[generate.as_slice(), &["--jobs", jobs]].concat());
    }
    for file in ["text/0008.txt", "image/0008.png"] {
        let read = |jobs: &str| std::fs::read(folder.path().join(jobs).join("Maze/level4").join(file)).expect("a file");
        assert!(read("1") == read("2"), "{file}");
    }
}

#[test]
fn held_out_boards_and_training_boards_are_all_boards() {
    let folder = tempfile::tempdir().expect("a folder");
    let boards = |part: &str| -> BTreeSet<OsString> {
        let call =
            ["tasks", "generate", "--task", "maze", "--levels", "4", "--count", "60", "--no-images", "--out", part];
        ok(folder.path(), &[call.as_slice(), &["--part", part]].concat());
        let files = std::fs::read_dir(folder.path().join(part).join("Maze/level4/text")).expect("boards");
        files.map(|file| file.expect("an entry").file_name()).collect()
    };
    let (all, training, held_out) = (boards("all"), boards("training"), boards("held-out"));
    assert_eq!(all.len(), 60);
    assert!((1..20).contains(&held_out.len()), "{held_out:?}");
    assert!(training.is_disjoint(&held_out));
    assert_eq!(training.union(&held_out).cloned().collect::<BTreeSet<_>>(), all);
}

#[test]
fn two_devices_give_the_rows_of_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "m");
    ok(folder, &["tasks", "generate", "--task", "maze", "--levels", "3", "--count", "7", "--out", "data"]);
    let rows = |device: &str| {
        let ask = ["eval", "plan", "--model", "m", "--data", "data", "--modality", "text", "--prompts", "compact"];
        let rest = ["--max-new-tokens", "4", "--batch", "1", "--device", device, "--out", device];
        ok(folder, &[ask.as_slice(), &rest].concat());
        let rows = std::fs::read_to_string(folder.join(device).join("m_text.jsonl")).expect("rows");
        // They are in the order of their answers.
        rows.lines().map(str::to_string).collect::<BTreeSet<_>>()
    };
    let one = rows("cpu");
    assert_eq!(one.len(), 7);
    assert_eq!(rows("cpu,cpu"), one);
}

#[test]
fn processes_that_share_a_run_train_what_one_trains() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "model");
    std::fs::write(folder.join("r.toml"), RECIPE).expect("a recipe");
    let train = |start: &[&str], out: &str| {
        // A step of AdamW that follows the gradient's size: what sums differ by is not made larger.
        let out = format!("model.out={out}");
        let smooth = ["--set", "optimiser.eps=1", "--set", out.as_str()];
        let said = ok(folder, &[start, &["--json", "train", "sft", "r.toml"], &smooth].concat());
        let objects: Vec<serde_json::Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(objects.len(), 1, "one process reports: {said}");
        objects[0]["metrics"]["loss"].as_f64().expect("a loss")
    };
    let (alone, shared) = (train(&[], "a"), train(&["launch", "--processes", "3"], "b"));
    assert!((alone - shared).abs() < 1e-4, "{alone} {shared}");
    assert!(folder.join("b/model/model.safetensors").is_file());
}

#[cfg(unix)]
#[test]
fn a_launcher_passes_signals_on_and_nobody_outlives_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "model");
    std::fs::write(folder.join("r.toml"), RECIPE).expect("a recipe");
    let metrics = folder.join("run/metrics.jsonl");
    let lines = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    let signal = |name: &str, process: u32| {
        let sent =
            std::process::Command::new("sh").args(["-c", &format!("kill {name} {process}")]).status().expect("sh");
        assert!(sent.success());
    };
    // Asked to stop, they write a checkpoint; killed itself, the launcher takes them along and they do so too.
    for (name, said) in [("-INT", true), ("-KILL", false)] {
        let mut launcher = std::process::Command::new(env!("CARGO_BIN_EXE_mgsd"))
            .args(["launch", "--processes", "2", "train", "sft", "r.toml", "--resume", "--set", "steps=100000"])
            .current_dir(folder)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let before = lines();
        while lines() < before + 2 {
            assert!(launcher.try_wait().expect("a process").is_none(), "ended before its second step");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        signal(name, launcher.id());
        // The pipe is open until the last of them has ended.
        let left = launcher.wait_with_output().expect("ended");
        let error = String::from_utf8(left.stderr).expect("UTF-8");
        assert!(error.contains("stopped after step"), "{name}: {error}");
        assert!(!left.status.success());
        assert_eq!(error.contains("and with it the run"), said, "{name}: {error}");
    }
    let steps = |name: std::ffi::OsString| name.to_string_lossy().strip_prefix("checkpoint-")?.parse::<usize>().ok();
    let newest =
        std::fs::read_dir(folder.join("run")).expect("the run").filter_map(|entry| steps(entry.ok()?.file_name()));
    assert_eq!(newest.max(), Some(lines()), "the newest checkpoint is of the last step");
}

#[test]
fn when_one_process_dies_the_run_ends_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "model");
    std::fs::write(folder.join("r.toml"), RECIPE).expect("a recipe");
    let port = mgsd_compute::free_port().expect("a port");
    let mut both = [0, 1].map(|rank: usize| {
        std::process::Command::new(env!("CARGO_BIN_EXE_mgsd"))
            .args(["train", "sft", "r.toml", "--device", "cpu", "--set", "steps=100000"])
            .envs([("RANK", rank.to_string()), ("WORLD_SIZE", "2".into()), ("MASTER_PORT", (port - 17).to_string())])
            .current_dir(folder)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("the binary runs")
    });
    let metrics = folder.join("run/metrics.jsonl");
    while std::fs::metadata(&metrics).map_or(0, |file| file.len()) == 0 {
        for process in &mut both {
            assert!(process.try_wait().expect("a process").is_none(), "ended before its first step");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let [first, mut second] = both;
    second.kill().expect("killed");
    second.wait().expect("ended");
    let left = first.wait_with_output().expect("ended");
    let error = String::from_utf8(left.stderr).expect("UTF-8");
    assert_eq!(left.status.code(), Some(1), "{error}");
    let line = error.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{error}"));
    assert!(line.contains("process of rank 1 is gone") && line.contains("--resume"), "{line}");
}

#[test]
fn an_evaluation_by_several_processes_is_refused_before_it_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "m");
    boards(folder, "maze", "3");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mgsd"))
        .args(["eval", "plan", "--model", "m", "--data", "data", "--device", "cpu", "--out", "out"])
        .envs([("RANK", "1"), ("WORLD_SIZE", "4")])
        .current_dir(folder)
        .output()
        .expect("the binary runs");
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("process 1 of 4") && error.contains("--endpoint"), "{error}");
    assert!(!folder.join("out").exists());
}

#[test]
fn a_name_of_the_hub_is_found_in_the_cache() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "hub/models--org--tiny/snapshots/abc");
    std::fs::create_dir_all(folder.join("hub/models--org--tiny/refs")).expect("a folder");
    std::fs::write(folder.join("hub/models--org--tiny/refs/main"), "abc").expect("a reference");
    let chat = |name: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_mgsd"))
            .args(["model", "chat", "--model", name, "--max-new-tokens", "2", "hello"])
            .envs([("HF_HUB_CACHE", folder.join("hub")), ("HF_HUB_OFFLINE", "1".into())])
            .output()
            .expect("the binary runs")
    };
    for name in ["org/tiny", "org/tiny@abc"] {
        let output = chat(name);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::write(folder.join("r.toml"), RECIPE).expect("a recipe");
    let trained = std::process::Command::new(env!("CARGO_BIN_EXE_mgsd"))
        .args(["train", "sft", "r.toml", "--set", "model.base=org/tiny", "--set", "model.adapter={rank=2, alpha=4}"])
        .envs([("HF_HUB_CACHE", folder.join("hub")), ("HF_HUB_OFFLINE", "1".into())])
        .current_dir(folder)
        .output()
        .expect("the binary runs");
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let adapter = std::fs::read_to_string(folder.join("run/adapter/adapter_config.json")).expect("an adapter");
    assert!(adapter.contains(r#""base_model_name_or_path": "org/tiny""#), "{adapter}");
    let error = String::from_utf8(chat("org/other").stderr).expect("UTF-8");
    assert!(error.starts_with("error: org/other is neither a folder") && error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn json_puts_one_object_on_the_last_line() {
    let folder = tempfile::tempdir().expect("a folder");
    boards(folder.path(), "frozenlake", "4");
    let text = ok(folder.path(), &["--json", "tasks", "solve", "data/FrozenLake/level4/text/0000.txt"]);
    let result: serde_json::Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert!(result["steps"].as_u64().is_some_and(|steps| steps >= 2), "{result}");
}

#[test]
fn everything_that_a_cpu_can_measure_is_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, last) in
        [("tasks", "score training"), ("compute", "loss.distill Jsd { beta: 0.5 }"), ("cpu", "decode_16")]
    {
        let text = ok(folder.path(), &["bench", name, "--repeats", "1"]);
        let line = text.lines().last().expect("a line");
        assert!(line.starts_with(last), "bench {name}: {text}");
    }
}

#[test]
fn records_and_rows_are_made_from_boards() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    boards(folder, "maze", "3");
    ok(folder, &["data", "perception", "--data", "data", "--out", "sft.json"]);
    assert!(folder.join("dataset_info.json").exists());
    ok(folder, &["data", "opcd", "--train", "data", "--val", "data", "--out", "opcd"]);
    for file in ["train.json", "train.parquet", "val.json", "val.parquet"] {
        assert!(folder.join("opcd").join(file).exists(), "{file}");
    }
    let records: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("sft.json")).expect("records")).expect("JSON");
    let row = serde_json::json!({"id": "a", "task": "maze", "instance": "Maze/level3/text/0000.txt",
                                 "answer": records[0]["messages"][1]["content"]});
    std::fs::write(folder.join("answers.jsonl"), format!("{row}\n")).expect("rows");
    let scores = ok(folder, &["data", "score-perception", "--rows", "answers.jsonl", "--root", "data"]);
    assert!(scores.contains("\"all_exact_match\":true"), "{scores}");
    let both = ok(folder, &["--json", "data", "score-perception", "--rows", "answers.jsonl", "--root", "data"]);
    assert!(both.starts_with(&scores) && both.lines().count() == scores.lines().count() + 1, "{both}");
}

#[cfg(unix)]
#[test]
fn records_behind_a_link_find_their_pictures_and_a_pipe_stays_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    boards(folder, "maze", "3");
    std::fs::create_dir_all(folder.join("far/away")).expect("a folder");
    std::os::unix::fs::symlink(folder.join("far/away"), folder.join("link")).expect("a link");
    ok(folder, &["data", "perception", "--data", "data", "--out", "link/new/sft.json"]);
    let records: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("link/new/sft.json")).expect("records")).expect("JSON");
    let picture = records[0]["images"][0].as_str().expect("a picture");
    assert!(folder.join("link/new").join(picture).is_file(), "{picture}");
    ok(folder, &["data", "opcd", "--train", "data", "--val", "data", "--out", "link/rows"]);

    std::os::unix::fs::symlink(folder.join("far/here.png"), folder.join("there.png")).expect("a link");
    std::fs::write(folder.join("far/here.png"), "").expect("a file");
    let draw = |to| ["tasks", "render", "data/Maze/level3/text/0000.txt", "--out", to];
    ok(folder, &draw("there.png"));
    assert!(
        folder.join("there.png").is_symlink()
            && std::fs::metadata(folder.join("far/here.png")).is_ok_and(|m| m.len() > 0)
    );
    let pipe = folder.join("pipe.png");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).expect("what comes out of the pipe")
    });
    ok(folder, &draw("pipe.png"));
    assert!(!std::fs::metadata(&pipe).expect("the pipe").is_file());
    assert_eq!(reader.join().expect("a reader"), std::fs::read(folder.join("there.png")).expect("the picture"));
}

#[test]
fn wrong_usage_ends_with_2_and_names_the_flag() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases: [(&[&str], &str); 17] = [
        (&["tasks", "generate", "--task", "chess", "--levels", "3", "--count", "1", "--out", "x"], "--task"),
        (&["tasks", "generate", "--task", "maze", "--levels", "three", "--count", "1", "--out", "x"], "--levels"),
        (&["tasks", "generate", "--task", "maze", "--levels", "3", "--out", "x"], "--count"),
        (
            &["tasks", "generate", "--task", "maze", "--levels", "3", "--count", "1", "--out", "x", "--shard", "4/4"],
            "--shard",
        ),
        (&["train", "dpo", "recipe.toml"], "dpo"),
        (&["eval", "plan", "--model", "m", "--out", "x"], "--data"),
        (&["tasks", "generate", "--task", "maze", "--levels", "3-5", "--count", "1", "--out", "x"], "3,4"),
        (&["tasks", "generate", "--task", "maze", "--levels", "3", "--count", "0", "--out", "x"], "--count"),
        (&["--jobs", "0", "bench", "tasks"], "--jobs"),
        (&["bench", "tasks", "--repeats", "0"], "--repeats"),
        (&["launch", "--processes", "0", "train"], "--processes"),
        (&["serve", "--model", "m", "--slots", "0"], "--slots"),
        (&["model", "chat", "--model", "m", "--device", "gpu"], "cuda:N"),
        (&["eval", "plan", "--model", "m", "--data", "d", "--out", "x", "--device", "cuda:x"], "cuda:N"),
        (&["eval", "plan", "--model", "m", "--data", "d", "--out", "x", "--batch", "0"], "--batch"),
        (&["demo", "--device", "tpu"], "cuda:N"),
        (
            &[
                "eval",
                "plan",
                "--endpoint",
                "http://a",
                "--model",
                "m",
                "--data",
                "d",
                "--out",
                "x",
                "--concurrency",
                "0",
            ],
            "--concurrency",
        ),
    ];
    for (arguments, part) in cases {
        let error = fails(folder.path(), 2, arguments);
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
}
