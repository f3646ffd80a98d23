//! The benchmark readers against what the published loader makes of the same files.

mod common;

use std::collections::HashMap;
use std::path::Path;

use common::{data, reference};
use mgsd_data::benchmarks::{self, Case, Options};
use mgsd_tasks::{RenderOptions, score};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn golden() -> Value {
    let text = std::fs::read_to_string(data("bench_samples/golden_loaded.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The samples, with empty files in place of DiffThinker's pictures, which are other people's art.
fn samples() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&data("bench_samples"), folder.path());
    for level in [3, 4, 8] {
        let image = folder.path().join(format!("frozenlake_maps/level{level}/img"));
        std::fs::create_dir_all(&image).unwrap();
        for stem in [0, 2, 10] {
            std::fs::write(image.join(format!("{stem}.png")), b"").unwrap();
        }
    }
    folder
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// The fields of a golden record that do not come from a response.
fn fields(case: &Case, root: &Path) -> Value {
    let mut fields = serde_json::json!({
        "case_id": case.case_id,
        "task": case.task,
        "split": case.split,
        "level": case.level,
        "dataset_line_index": case.dataset_line_index,
        "image": case.image,
        "prompt_path": null,
        "start_pos": case.start_pos,
        "target_pos": case.target_pos,
        "expected_action_count": case.expected_action_count,
    });
    if let Some(source) = &case.source {
        let below = |path: &Path| Value::from(path.strip_prefix(root).unwrap().to_str().unwrap());
        fields["source_bench"] = source.bench.into();
        fields["source_image"] = below(&source.image);
        fields["source_table"] = below(&source.table);
        if let Some(pure_text) = &source.pure_text {
            fields["source_pure_text"] = below(pure_text);
        }
    }
    fields
}

#[test]
fn all_cases_are_loaded_as_published() {
    let folder = samples();
    let cases = benchmarks::read(folder.path(), &Options::default()).unwrap();
    let golden = golden();
    let golden = golden["all"].as_array().unwrap();
    assert_eq!(cases.len(), golden.len());
    for (case, golden) in cases.iter().zip(golden) {
        let mut golden = golden.clone();
        let record = golden.as_object_mut().unwrap();
        for other in ["rgb_sha256", "image_size", "image_mode", "probe_response", "actions", "eval_result"] {
            record.remove(other).unwrap();
        }
        assert_eq!(fields(case, folder.path()), golden);
    }
}

#[test]
fn probe_responses_are_scored_as_published() {
    let folder = samples();
    let cases = benchmarks::read(folder.path(), &Options::default()).unwrap();
    for (case, golden) in cases.iter().zip(golden()["all"].as_array().unwrap()) {
        let result = score::benchmark::score(&case.scoring, golden["probe_response"].as_str());
        let result = serde_json::to_value(&result).unwrap();
        for (field, expected) in golden["eval_result"].as_object().unwrap() {
            assert_eq!(&result[field], expected, "{} {field}", case.case_id);
        }
    }
}

#[test]
fn pictures_are_the_published_ones_pixel_for_pixel() {
    // DiffThinker's own pictures are only compared where they are.
    let folder = samples();
    let root = reference("bench_samples").unwrap_or_else(|| folder.path().to_path_buf());
    let cases = benchmarks::read(&root, &Options::default()).unwrap();
    let has_pictures = root != folder.path();
    for (case, golden) in cases.iter().zip(golden()["all"].as_array().unwrap()) {
        if case.source.is_some() && !has_pictures {
            continue;
        }
        let picture = case.picture(&RenderOptions::default()).unwrap();
        assert_eq!((picture.width, picture.height), (256, 256));
        let hash: String = Sha256::digest(&picture.pixels).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(Value::from(hash), golden["rgb_sha256"], "{}", case.case_id);
    }
}

#[test]
fn selections_are_counted_as_published() {
    let folder = samples();
    let selections: HashMap<String, Vec<String>> = serde_json::from_value(golden()["selection"].clone()).unwrap();
    for (name, options) in [
        ("samples_per_task=2", Options { samples_per_task: Some(2), ..Options::default() }),
        ("start_index=2,samples=2", Options { start_index: 2, samples_per_task: Some(2), ..Options::default() }),
        ("levels={4,5}", Options { levels: vec![4, 5], ..Options::default() }),
    ] {
        let cases = benchmarks::read(folder.path(), &options).unwrap();
        let ids: Vec<String> = cases.into_iter().map(|case| case.case_id).collect();
        assert_eq!(ids, selections[name], "{name}");
    }
}

#[test]
fn a_broken_line_is_named() {
    let folder = samples();
    let path = folder.path().join("visualplanning_dataset/maze/tokenized_dataset/SFT/test_dataset.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let broken: Vec<String> = text
        .lines()
        .enumerate()
        .map(|(index, line)| if index == 2 { line.replace("start_pos", "begin") } else { line.to_string() })
        .collect();
    std::fs::write(&path, broken.join("\n")).unwrap();
    let error = benchmarks::read(folder.path(), &Options::default()).unwrap_err().to_string();
    for word in ["test_dataset.jsonl", "line 3", "start_pos"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn splits_and_levels_that_are_not_there_are_named() {
    let folder = samples();
    let read = |options: Options| benchmarks::read(folder.path(), &options).map_err(|error| error.to_string());
    let split = |split: &str| Options { split: split.to_string(), ..Options::default() };
    let error = read(split("trian")).unwrap_err();
    assert!(error.contains("trian") && error.contains("test or train"), "{error}");
    // A task that is there has no such file; DiffThinker's maps are for testing alone.
    let error = read(split("train")).unwrap_err();
    assert!(error.contains("maze") && error.contains("train_dataset.jsonl"), "{error}");
    let error = read(Options { tasks: vec![mgsd_tasks::Task::FrozenLake], ..split("train") }).unwrap_err();
    assert!(error.contains("frozenlake, split train"), "{error}");
    let error = read(Options { levels: vec![3, 99], ..Options::default() }).unwrap_err();
    assert!(error.contains("level 99"), "{error}");
    let images = folder.path().join("frozenlake_maps/level3/img");
    std::fs::write(images.join("00.png"), b"").unwrap();
    std::fs::copy(
        folder.path().join("frozenlake_maps/level3/table/0.txt"),
        folder.path().join("frozenlake_maps/level3/table/00.txt"),
    )
    .unwrap();
    let error = read(Options::default()).unwrap_err();
    assert!(error.contains("0.png beside 00.png"), "{error}");
}
