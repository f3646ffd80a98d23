//! The binary as a user runs it.

mod common;

use common::{boards, fails, ok, tiny_model};
use std::collections::BTreeSet;
use std::ffi::OsString;

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
fn json_puts_one_object_on_the_last_line() {
    let folder = tempfile::tempdir().expect("a folder");
    boards(folder.path(), "frozenlake", "4");
    let text = ok(folder.path(), &["--json", "tasks", "solve", "data/FrozenLake/level4/text/0000.txt"]);
    let result: serde_json::Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert!(result["steps"].as_u64().is_some_and(|steps| steps >= 2), "{result}");
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
}

#[test]
fn wrong_usage_ends_with_2_and_names_the_flag() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases: [(&[&str], &str); 6] = [
        (&["tasks", "generate", "--task", "chess", "--levels", "3", "--count", "1", "--out", "x"], "--task"),
        (&["tasks", "generate", "--task", "maze", "--levels", "three", "--count", "1", "--out", "x"], "--levels"),
        (&["tasks", "generate", "--task", "maze", "--levels", "3", "--out", "x"], "--count"),
        (
            &["tasks", "generate", "--task", "maze", "--levels", "3", "--count", "1", "--out", "x", "--shard", "4/4"],
            "--shard",
        ),
        (&["train", "dpo", "recipe.toml"], "dpo"),
        (&["eval", "plan", "--model", "m", "--out", "x"], "--data"),
    ];
    for (arguments, part) in cases {
        let error = fails(folder.path(), 2, arguments);
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
}
