//! The published generator's samples, its scores and its perception scores, reproduced.

use mgsd_tasks::score::{BenchmarkCase, TrainingCase, benchmark, training};
use mgsd_tasks::{Board, GenerateOptions, Instance, RenderOptions, Task, TileSet, files, generate, perception};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(data(path)).unwrap()
}

fn instance(path: &str) -> Instance {
    files::read_instance(&data("golden").join(path)).unwrap()
}

fn rows(path: &str) -> Vec<Value> {
    // Only "\n" ends a row: responses hold other line separators.
    let text = read(path);
    text.split('\n').filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn samples() -> Vec<Value> {
    let manifest: Value = serde_json::from_str(&read("golden/manifest.json")).unwrap();
    manifest["samples"].as_array().unwrap().clone()
}

fn task(sample: &Value) -> Task {
    sample["task"].as_str().unwrap().parse().unwrap()
}

/// Generates what the sample's set was generated from, up to the sample.
fn generated(sample: &Value) -> Instance {
    let args = &sample["args"];
    let mut options = GenerateOptions { seed: args["base_seed"].as_u64().unwrap(), ..Default::default() };
    if let Some(probability) = args["frozen_probability"].as_f64() {
        options.frozen_lake.frozen_probability = probability;
    }
    options.frozen_lake.random_start_goal = args["randomize_start_goal"].as_bool().unwrap_or(false);
    let level = sample["level"].as_u64().unwrap() as usize;
    let index = sample["index"].as_u64().unwrap() as usize;
    generate(task(sample), level, &options, 0..index + 1).unwrap().pop().unwrap()
}

#[test]
fn every_published_sample_is_generated_with_the_same_text() {
    for sample in samples() {
        let path = sample["text"].as_str().unwrap();
        let made = generated(&sample);
        assert_eq!(made.to_text(), read(&format!("golden/{path}")), "{path}");
        assert_eq!(made.seed, sample["seed"].as_u64().unwrap(), "{path}");
    }
}

#[test]
fn every_published_text_is_read_and_written_byte_for_byte() {
    for sample in samples() {
        let path = sample["text"].as_str().unwrap();
        let text = read(&format!("golden/{path}"));
        let read_back = Instance::parse(&text).unwrap();
        assert_eq!(read_back.to_text(), text, "{path}");
        let shortest = read_back.board.solve().unwrap();
        assert_eq!(shortest.len(), read_back.plan.len(), "{path}");
    }
}

fn assert_same_pixels(tasks: &[Task], options: &RenderOptions) {
    let mut wrong = Vec::new();
    for sample in samples().iter().filter(|sample| tasks.contains(&task(sample))) {
        let path = sample["text"].as_str().unwrap();
        let image = instance(path).board.render(options).unwrap();
        let hash: String = Sha256::digest(&image.pixels).iter().map(|b| format!("{b:02x}")).collect();
        if hash != sample["rgb_sha256"].as_str().unwrap() {
            wrong.push(path.to_owned());
        }
    }
    assert!(wrong.is_empty(), "{} pictures differ: {wrong:?}", wrong.len());
}

#[test]
fn maze_and_minibehaviour_pictures_have_the_published_pixels() {
    assert_same_pixels(&[Task::Maze, Task::MiniBehaviour], &RenderOptions::default());
}

#[test]
fn frozenlake_pictures_have_the_published_pixels_when_gymnasiums_tiles_are_at_hand() {
    // MGSD_TILES names the folder envs/toy_text/img of gymnasium 1.3.0.
    let Some(folder) = std::env::var_os("MGSD_TILES") else {
        eprintln!("not compared: set MGSD_TILES to the folder of gymnasium 1.3.0's tiles");
        return;
    };
    let tiles = TileSet::load(Path::new(&folder)).unwrap();
    assert_same_pixels(&[Task::FrozenLake], &RenderOptions { tiles, ..Default::default() });
}

fn is_trap(row: &Value) -> bool {
    row["kind"].as_str().unwrap().starts_with("trap:")
}

#[test]
fn the_training_rule_scores_every_recorded_response_as_recorded() {
    for row in rows("scoring_public.jsonl") {
        let instance = instance(row["instance"].as_str().unwrap());
        let mut case = TrainingCase::from_instance(&instance);
        match row["reward_variant"].as_str().unwrap() {
            "unknown_task" => case.task = None,
            "no_text" | "broken_block" => case.board = None,
            _ => {}
        }
        let score = training::score(&case, row["response"].as_str());
        assert_eq!(json!(score), row["reward"], "{row}");
    }
}

#[test]
fn the_benchmark_rule_scores_every_recorded_response_as_recorded() {
    for row in rows("scoring_public.jsonl") {
        let instance = instance(row["instance"].as_str().unwrap());
        let mut case = BenchmarkCase::from_instance(&instance);
        if row["bench_variant"] == "none" {
            case.expected_action_count = None;
        }
        let response = row["response"].as_str();
        let parsed = mgsd_tasks::plan::parse_benchmark(instance.task(), response.unwrap_or(""));
        assert_eq!(json!(parsed.actions), row["bench"]["actions"], "{row}");
        assert_eq!(json!(parsed.answer), row["bench"]["answer_text"], "{row}");
        let score = benchmark::score(&case, response);
        assert_eq!(json!(score), row["bench"]["eval_result"], "{row}");
    }
}

#[test]
fn the_recorded_responses_hold_traps_and_all_three_tasks() {
    let rows = rows("scoring_public.jsonl");
    assert_eq!(rows.len(), 900);
    assert!(rows.iter().filter(|row| is_trap(row)).count() > 100);
    for task in Task::ALL {
        assert_eq!(rows.iter().filter(|row| row["task"] == task.name()).count(), 300);
    }
}

#[test]
fn perception_answers_score_as_recorded() {
    for row in rows("perception_public.jsonl") {
        let board = instance(row["instance"].as_str().unwrap()).board;
        assert_eq!(json!(perception::gold(&board)), row["expected"]);
        let score = perception::score(&board, row["answer"].as_str().unwrap());
        for (name, right) in row["expected_scores"].as_object().unwrap() {
            assert_eq!(score.get(name), right.as_bool(), "{name}: {row}");
        }
        assert_eq!(score.questions.len(), row["expected_scores"].as_object().unwrap().len());
    }
}

#[test]
fn gold_answers_are_the_recorded_ones_and_score_full() {
    let records: Value = serde_json::from_str(&read("perception_gold_public.json")).unwrap();
    for record in records.as_array().unwrap() {
        let path = record["source_text"].as_str().unwrap().strip_prefix("golden_public/").unwrap();
        let board: Board = instance(path).board;
        let gold = record["messages"][1]["content"].as_str().unwrap();
        assert_eq!(perception::gold(&board), gold, "{path}");
        assert!(perception::score(&board, gold).all_exact_match(), "{path}");
    }
}
