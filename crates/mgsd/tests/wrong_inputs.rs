//! What the binary says to wrong files, boards, recipes and folders: exit code 1, one line that names the file, the
//! field or value and what to do, never a panic. Damaged models and disks are in `broken_files.rs`.

mod common;

use common::{RECIPE, boards, change, is_refused, ok, tear, tiny_model};
use std::path::Path;

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("a file");
}

#[test]
fn wrong_boards_name_the_file_and_the_field() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    boards(folder, "maze", "3");
    let board = folder.join("data/Maze/level3/text/0000.txt");
    let copy = |name: &str, from: &str, to: &str| {
        std::fs::copy(&board, folder.join(name)).expect("a copy");
        change(&folder.join(name), from, to);
    };
    copy("letters.txt", "level=3", "level=three");
    copy("outside.txt", "start_row=", "start_row=9");
    copy("task.txt", "task=maze", "task=chess");
    copy("layout.txt", "layout:", "map:");
    std::fs::copy(&board, folder.join("torn.txt")).expect("a copy");
    tear(&folder.join("torn.txt"), 0.4);
    is_refused(folder, &["tasks", "solve", "missing.txt"], &["missing.txt"]);
    is_refused(folder, &["tasks", "solve", "data"], &["data"]);
    is_refused(folder, &["tasks", "solve", "torn.txt"], &["torn.txt", "layout"]);
    is_refused(folder, &["tasks", "solve", "letters.txt"], &["letters.txt", "level", "three"]);
    is_refused(folder, &["tasks", "solve", "outside.txt"], &["outside.txt", "start", "9"]);
    is_refused(folder, &["tasks", "solve", "task.txt"], &["task.txt", "task", "chess", "frozenlake"]);
    is_refused(folder, &["tasks", "solve", "layout.txt"], &["layout.txt", "layout", "3 rows"]);
    std::fs::write(folder.join("nothing.txt"), "").expect("an empty file");
    is_refused(folder, &["tasks", "solve", "nothing.txt"], &["nothing.txt", "task"]);
    let render = |plan: &'static str| ["tasks", "render", "torn.txt", "--out", "a.png", "--plan", plan];
    std::fs::copy(&board, folder.join("torn.txt")).expect("a copy");
    is_refused(folder, &render("?"), &["--plan", "\"?\"", "RRD"]);
    is_refused(folder, &render("R,Q,R"), &["--plan", "R,Q,R", "\"Q\""]);
    let text = std::fs::read_to_string(&board).expect("a board");
    let plan = text.lines().find(|line| line.starts_with("solution_actions=")).expect("a plan");
    write(folder, "plan.txt", &text.replace(plan, "solution_actions=[]"));
    is_refused(folder, &["tasks", "solve", "plan.txt"], &["plan.txt", "solution_actions", "shortest"]);
}

/// A folder that holds boards already: nothing is mixed.
#[test]
fn boards_of_other_options_are_not_written_over_those_that_are_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let call = |more: &[&'static str]| {
        let call = ["tasks", "generate", "--task", "maze", "--levels", "3", "--count", "40", "--out", "data"];
        [&call, more].concat()
    };
    ok(folder, &call(&["--seed", "1", "--no-images"]));
    ok(folder, &call(&["--seed", "1", "--image-size", "64"]));
    is_refused(folder, &call(&["--seed", "77", "--no-images"]), &["0000.txt", "another folder"]);
    is_refused(folder, &call(&["--seed", "1", "--part", "training"]), &["level3", "another folder"]);
    is_refused(folder, &call(&["--slippery"]), &["--slippery", "maze"]);
    let lake = ["tasks", "generate", "--task", "frozenlake", "--levels", "4", "--count", "1", "--out", "lake"];
    is_refused(folder, &[&lake[..], &["--difficulty", "hard"]].concat(), &["--difficulty", "frozenlake"]);
    ok(folder, &[&lake[..], &["--slippery"]].concat());
    is_refused(folder, &["data", "perception", "--data", "lake", "--out", "a.json"], &["is_slippery", "0000.txt"]);
}

/// What an earlier run left is there until it is known that another can begin.
#[test]
fn a_wrong_change_costs_no_earlier_demo() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::fs::create_dir(folder.join("demo")).expect("a folder");
    for name in ["demo.log", "demo.json", "report.html"] {
        write(&folder.join("demo"), name, "earlier");
    }
    for flag in ["--set-sft", "--set-opcd"] {
        is_refused(folder, &["demo", "--quick", "--out", "demo", flag, "optimiser.rate=1"], &[flag, "optimiser.rate"]);
    }
    assert!(folder.join("demo/demo.json").exists() && folder.join("demo/report.html").exists());
}

/// What a filter names must be there, once.
#[test]
fn levels_and_splits_that_are_not_there_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    boards(folder, "maze", "3");
    let records =
        |levels: &'static str| ["data", "perception", "--data", "data", "--levels", levels, "--out", "a.json"];
    is_refused(folder, &records("3,9"), &["data", "[9]"]);
    let count =
        |path: &str| std::fs::read_to_string(folder.join(path)).expect("records").matches("\"messages\"").count();
    ok(folder, &records("3"));
    let once = count("a.json");
    ok(folder, &records("3,3"));
    assert_eq!(count("a.json"), once);
    let table = |split: &'static str| ["data", "vlmevalkit", "--data", "data", "--split", split, "--out", "a.tsv"];
    ok(folder, &table("train"));
    is_refused(folder, &table("val"), &["data", "split=val"]);
    let picture = folder.join("data/Maze/level3/image/0000.png");
    tear(&picture, 0.5);
    is_refused(folder, &table("train"), &["0000.png", "PNG"]);
    is_refused(folder, &["data", "opcd", "--train", "data", "--val", "data", "--out", "o"], &["0000.png", "PNG"]);
    let text = folder.join("data/Maze/level3");
    std::fs::rename(&text, folder.join("data/Maze/level4")).expect("a rename");
    is_refused(
        folder,
        &["data", "perception", "--data", "data", "--out", "a.json"],
        &["0000.txt", "level 3", "level 4"],
    );
    std::fs::rename(folder.join("data/Maze/level4"), folder.join("data/Maze/level03")).expect("a rename");
    is_refused(folder, &["data", "perception", "--data", "data", "--out", "a.json"], &["level03", "level3"]);
}

#[test]
fn boards_that_cannot_be_made_name_the_value_and_the_range() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::fs::create_dir(folder.join("empty")).expect("a folder");
    let refused = |task: &str, level: &str, more: &[&str], parts: &[&str]| {
        let call = ["tasks", "generate", "--task", task, "--levels", level, "--count", "1", "--out", "x"];
        is_refused(folder, &[&call, more].concat(), parts);
    };
    refused("minibehaviour", "2", &[], &["2"]);
    refused("minibehaviour", "101", &[], &["101"]);
    refused("frozenlake", "4", &["--frozen-probability", "1.5"], &["1.5", "frozen"]);
    refused("frozenlake", "4", &["--frozen-probability", "nan"], &["NaN", "frozen"]);
    refused("frozenlake", "3", &["--min-path-length", "50"], &["50", "path"]);
    refused("maze", "3", &["--image-size", "0"], &["0", "image"]);
    refused("frozenlake", "4", &["--tiles", "empty"], &["empty", ".png"]);
}

#[test]
fn wrong_rows_name_the_line_and_the_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    boards(folder, "maze", "3");
    let refused = |rows: &str, parts: &[&str]| {
        write(folder, "rows.jsonl", rows);
        is_refused(folder, &["tasks", "score", "--rows", "rows.jsonl", "--root", "data", "--rules", "training"], parts);
    };
    let board = "Maze/level3/text/0000.txt";
    refused("{\"id\": 1}\n", &["rows.jsonl", "line 1", "instance"]);
    refused(
        &format!("{{\"id\": 1, \"instance\": {board:?}, \"response\": null}}\n{{\"id\": 2, \"ins"),
        &["rows.jsonl", "line 2"],
    );
    refused(&format!("{{\"id\": 1, \"instance\": {board:?}, \"response\": 5}}"), &["line 1", "string"]);
    refused(&format!("{{\"id\": 1, \"instance\": {board:?}, \"respons\": \"R\"}}"), &["line 1", "response"]);
    refused("\n", &["rows.jsonl", "no rows"]);
    let row = format!("{{\"id\": 1, \"instance\": {board:?}, \"response\": \"R\"}}");
    write(folder, "own.jsonl", &row);
    let own =
        ["tasks", "score", "--rows", "own.jsonl", "--root", "data", "--rules", "training", "--out", "./own.jsonl"];
    is_refused(folder, &own, &["--out", "own.jsonl", "lost"]);
    assert_eq!(std::fs::read_to_string(folder.join("own.jsonl")).expect("rows"), row);
    refused("{\"id\": 1, \"instance\": \"Maze/none.txt\", \"response\": null}", &["Maze/none.txt"]);
    refused(
        &format!("{{\"id\": \"a\", \"task\": \"frozenlake\", \"instance\": {board:?}, \"answer\": \"R\"}}"),
        &["\"a\"", "maze", board],
    );
    refused(
        &format!("{{\"id\": \"a\", \"task\": \"chess\", \"instance\": {board:?}, \"answer\": \"R\"}}"),
        &["\"a\"", "chess"],
    );
    write(folder, "rows.jsonl", "\u{0}\u{1}");
    is_refused(
        folder,
        &["data", "score-perception", "--rows", "rows.jsonl", "--root", "data"],
        &["rows.jsonl", "line 1"],
    );
}

#[test]
fn wrong_task_folders_name_the_folder_and_what_belongs_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    boards(folder, "maze", "3");
    std::fs::create_dir(folder.join("empty")).expect("a folder");
    let perception = |data: &'static str| ["data", "perception", "--data", data, "--out", "a.json"];
    is_refused(folder, &perception("nowhere"), &["nowhere"]);
    is_refused(folder, &perception("empty"), &["empty", "level"]);
    let opcd = ["data", "opcd", "--train", "data", "--val", "data", "--out", "o"];
    is_refused(folder, &[&opcd[..], &["--levels", "7"]].concat(), &["data", "7"]);
    is_refused(folder, &[&opcd[..], &["--prompts", "empty"]].concat(), &["empty", ".txt"]);
    std::fs::remove_file(folder.join("data/Maze/level3/image/0001.png")).expect("a picture");
    is_refused(folder, &perception("data"), &["image/0001.png"]);
    std::fs::create_dir_all(folder.join("mixed/FrozenLake/level3")).expect("a folder");
    std::fs::rename(folder.join("data/Maze/level3/text"), folder.join("mixed/FrozenLake/level3/text")).expect("moved");
    is_refused(folder, &perception("mixed"), &["FrozenLake/level3/text", "task", "maze"]);
}

#[test]
fn wrong_recipes_name_the_key_the_value_and_what_is_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    write(folder, "r.toml", RECIPE);
    std::fs::create_dir(folder.join("empty")).expect("a folder");
    let refused = |change: &str, parts: &[&str]| {
        is_refused(folder, &["train", "sft", "r.toml", "--set", change], &[&["r.toml"], parts].concat());
    };
    refused("optimiser.lr=nan", &["`optimiser.lr`", "NaN", "above 0"]);
    refused("optimiser.lr=inf", &["`optimiser.lr`", "inf", "above 0"]);
    refused("optimiser.betas=[0.9]", &["optimiser.betas"]);
    refused("optimiser.betas=[0.9, 1.0]", &["optimiser.betas.1", "below 1"]);
    refused("optimiser.clip=-1", &["`optimiser.clip`", "-1", "0 (off)"]);
    refused("optimiser.weight_decay=nan", &["`optimiser.weight_decay`", "NaN"]);
    refused("steps=\"many\"", &["`steps`", "many", "u64"]);
    refused("steps=-4", &["`steps`", "-4"]);
    refused("stepz=4", &["`stepz`", "unknown field"]);
    refused("model.adapter={rank=0, alpha=8}", &["`model.adapter.rank`", "at least 1"]);
    refused("data.mix.0.kind=read_mind", &["read_mind", "read_image"]);
    refused("data.mix.0.weight=0", &["`data.mix.0.weight`", "above 0"]);
    refused("data.mix.0.weight=nan", &["`data.mix.0.weight`", "NaN"]);
    refused("data.mix.0.tasks=[\"frozenlake\"]", &["data.mix.0.tasks", "frozenlake"]);
    refused("data.mix.0.sides=[3, 8]", &["`data.mix.0.sides`", "[3, 8]", "`shapes`"]);
    refused("data.mix=[{kind=\"shapes\", sides=[6, 3]}]", &["`data.mix.0.sides`", "[6, 3]", "2 to 100"]);
    refused("model.recompute=\"some\"", &["`model.recompute`", "some", "layers"]);
    refused("data.tasks.chess={levels=[3]}", &["data.tasks.chess", "frozenlake, maze"]);
    refused("data.image_size=8", &["`data.image_size`", "8", "32"]);
    refused("data.tasks.maze.weight=nan", &["data.tasks.maze.weight", "NaN"]);
    refused("schedule.warmup_ratio=2", &["`schedule.warmup_ratio`", "2"]);
    refused("batch.samples_per_step=0", &["`batch.samples_per_step`", "at least 1"]);
    refused("opcd.replay_weight=nan", &["`opcd.replay_weight`", "NaN"]);
    refused("no equals sign", &["key=value"]);
    is_refused(folder, &["train", "opcd", "r.toml"], &["r.toml", "Sft", "Opcd"]);
    is_refused(folder, &["train", "sft", "none.toml"], &["none.toml"]);
    is_refused(folder, &["train", "sft", "empty"], &["empty"]);
    write(folder, "torn.toml", &RECIPE[..RECIPE.len() / 2 - 4]);
    is_refused(folder, &["train", "sft", "torn.toml"], &["torn.toml"]);
}

#[test]
fn recipes_that_meet_wrong_data_name_the_file_and_the_record() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "model");
    write(folder, "r.toml", RECIPE);
    boards(folder, "maze", "3");
    let refused = |changes: &[&str], parts: &[&str]| {
        let mut call = vec!["train", "sft", "r.toml"];
        changes.iter().for_each(|change| call.extend(["--set", change]));
        is_refused(folder, &call, parts);
    };
    refused(&["model.base=\"nowhere\""], &["model.base", "nowhere"]);
    refused(&["data.tasks.maze.levels=[1]"], &["data.tasks.maze", "level 1"]);
    refused(&["prompts.set=\"nowhere\""], &["prompts.set", "nowhere"]);
    refused(&["batch.max_tokens_per_sample=10"], &["10", "batch.max_tokens_per_sample"]);
    let shared = ["data.mix.0.kind=sharegpt", "data.mix.0.file=\"sft.json\""];
    refused(&shared, &["data.mix.0.file", "sft.json"]);
    ok(folder, &["data", "perception", "--data", "data", "--out", "sft.json", "--prompts", "compact"]);
    let whole = std::fs::read_to_string(folder.join("sft.json")).expect("records");
    tear(&folder.join("sft.json"), 0.5);
    refused(&shared, &["sft.json"]);
    write(folder, "sft.json", "[]");
    refused(&shared, &["sft.json", "expected a list of conversations"]);
    write(folder, "sft.json", &whole.replacen("<image>", "", 1));
    refused(&shared, &["sft.json", "record 0", "<image>"]);
    write(folder, "sft.json", &whole.replace("0000.png", "none.png").replace("0001.png", "none.png"));
    refused(&shared, &["none.png"]);
}

#[test]
fn wrong_distillation_rows_name_the_file_and_the_field() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "model");
    boards(folder, "maze", "3");
    ok(folder, &["data", "opcd", "--train", "data", "--val", "data", "--out", "rows", "--prompts", "compact"]);
    let recipe = RECIPE
        .replace("\"sft\"", "\"opcd\"")
        .replace("[data.tasks", "[data]\ntrain = \"rows/train.json\"\n[data.tasks");
    write(folder, "r.toml", &recipe.replace("[[data.mix]]\nkind = \"read_image\"\n", ""));
    let refused = |changes: &[&str], parts: &[&str]| {
        let mut call = vec!["train", "opcd", "r.toml", "--set", "opcd.max_new_tokens=4"];
        changes.iter().for_each(|change| call.extend(["--set", change]));
        is_refused(folder, &call, parts);
    };
    refused(&["data.train=\"rows/none.parquet\""], &["rows/none.parquet"]);
    refused(&["opcd.teacher=folder"], &["opcd.teacher_model"]);
    refused(&["opcd.teacher=folder", "opcd.teacher_model=\"nowhere\""], &["nowhere"]);
    refused(&["opcd.top_k=4", "opcd.loss=policy-gradient"], &["opcd.top_k", "policy-gradient"]);
    refused(&["opcd.top_k=0"], &["opcd.top_k", "at least 2"]);
    refused(&["epochs=1", "steps=1"], &["epochs", "steps"]);
    tear(&folder.join("rows/train.parquet"), 0.7);
    refused(&["data.train=\"rows/train.parquet\""], &["rows/train.parquet"]);
    let whole = std::fs::read_to_string(folder.join("rows/train.json")).expect("rows");
    write(folder, "rows/train.json", &whole.replace("\"role\": \"user\"", "\"role\": \"assistant\""));
    refused(&[], &["rows/train.json", "row 0", "messages", "user"]);
    write(folder, "rows/train.json", &whole[..whole.len() / 2]);
    refused(&[], &["rows/train.json"]);
    write(folder, "rows/train.json", "[]");
    refused(&[], &["rows/train.json", "no rows"]);
}

/// Readings are no plans.
#[test]
fn rows_of_perception_are_not_compared_as_plans() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let rows = "{\"case_id\": \"maze_level3_0000\", \"task\": \"maze_perception_all\", \"all_exact_match\": true}\n";
    write(folder, "a.jsonl", rows);
    write(folder, "b.jsonl", rows);
    is_refused(folder, &["eval", "compare", "a.jsonl", "b.jsonl"], &["a.jsonl", "maze_level3_0000", "mgsd eval plan"]);
}
