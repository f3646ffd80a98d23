//! The distillation rows against the published preparation: order, answers, columns, schema.

mod common;

use std::path::Path;

use common::{data, golden_folder};
use mgsd_data::Example;
use mgsd_data::folder::{self, Filter};
use mgsd_data::opcd::{self, Row, RowOrder, SelectOptions};
use mgsd_data::prompts::{Prompts, ReferencePlan};

fn examples(folder: &Path) -> Vec<Example> {
    folder::read(folder, &Filter::default()).unwrap()
}

fn ids(examples: &[Example]) -> Vec<&str> {
    examples.iter().map(|example| example.id.as_str()).collect()
}

fn selected(options: SelectOptions) -> Vec<Example> {
    let folder = tempfile::tempdir().unwrap();
    let root = golden_folder(folder.path());
    opcd::select(examples(&root), &options).unwrap()
}

#[test]
fn selection_and_shuffle_give_the_published_order() {
    let orders = std::fs::read_to_string(data("opcd/shuffle_order.json")).unwrap();
    let orders: std::collections::HashMap<String, Vec<String>> = serde_json::from_str(&orders).unwrap();
    let shuffled = SelectOptions { order: RowOrder::Shuffled, ..SelectOptions::default() };
    let two = SelectOptions { sample_per_level: Some(2), ..shuffled };
    let one = SelectOptions { limit_per_level: Some(1), ..SelectOptions::default() };
    for (name, options) in [
        ("full_6_per_level_shuffled_seed42", shuffled),
        ("sample2_per_level_shuffled_seed42", two),
        ("val_sample1_per_level_seed43_unshuffled", two.for_validation(Some(1))),
        ("limit1_noshuffle_nogt", one),
    ] {
        assert_eq!(ids(&selected(options)), orders[name], "{name}");
    }
}

/// A golden row with its blanked prompts put in place of ours.
fn with_prompts_of(row: &Row, golden: &Row) -> Row {
    let mut row = row.clone();
    row.messages[0] = golden.messages[0].clone();
    row.teacher_system_prompt = golden.teacher_system_prompt.clone();
    row.teacher_text_context = golden.teacher_text_context.clone();
    row
}

#[test]
fn rows_equal_the_golden_ones_but_for_the_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let root = golden_folder(folder.path());
    let prompts = Prompts::standard().unwrap();
    let train = SelectOptions { sample_per_level: Some(2), order: RowOrder::Shuffled, ..SelectOptions::default() };
    let limited = SelectOptions { limit_per_level: Some(1), ..SelectOptions::default() };
    for (file, options, plan) in [
        ("train_normalized.json", train, ReferencePlan::Given),
        ("val_normalized.json", train.for_validation(Some(1)), ReferencePlan::Given),
        ("train_nogt.json", limited, ReferencePlan::Withheld),
    ] {
        let path = data(&format!("opcd/{file}"));
        let golden = opcd::read_json(&path).unwrap();
        let examples = opcd::select(examples(&root), &options).unwrap();
        let rows = opcd::rows(&examples, &prompts, plan, folder.path()).unwrap();
        assert_eq!(rows.len(), golden.len());
        let ours: Vec<Row> = rows.iter().zip(&golden).map(|(row, golden)| with_prompts_of(row, golden)).collect();
        // Byte for byte: the order of keys, the indent, the end of the file.
        let written = folder.path().join(file);
        opcd::write_json(&written, &ours).unwrap();
        assert!(std::fs::read(&written).unwrap() == std::fs::read(&path).unwrap(), "{file}");
        for (row, example) in rows.iter().zip(&examples) {
            let context = row.teacher_text_context.as_deref().unwrap();
            let plan_text = example.instance.plan.answer(example.task);
            let shown = context.contains(&format!("for your own use: {plan_text}\n"));
            assert_eq!(shown, plan == ReferencePlan::Given, "{}", row.sample_id);
        }
    }
}

#[test]
fn parquet_rows_come_back_with_their_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let root = golden_folder(folder.path());
    let prompts = Prompts::compact().unwrap();
    let examples = examples(&root);
    let rows = opcd::rows(&examples, &prompts, ReferencePlan::Given, folder.path()).unwrap();
    let json = folder.path().join("rows.json");
    opcd::write_json(&json, &rows).unwrap();
    let samples = opcd::read(&json).unwrap();
    let parquet = folder.path().join("rows.parquet");
    opcd::write_parquet(&parquet, &samples, folder.path()).unwrap();
    let back = opcd::read(&parquet).unwrap();
    assert_eq!(back.len(), 72);
    for ((sample, back), example) in samples.iter().zip(&back).zip(&examples) {
        let picture = std::fs::read(&example.image_path).unwrap();
        assert_eq!(back.images[0].bytes.as_deref(), Some(picture.as_slice()));
        assert_eq!(back.images[0].path.as_deref(), example.image_path.file_name().and_then(|name| name.to_str()));
        assert_eq!(back.instance().unwrap().unwrap().board, example.instance.board);
        assert_eq!(opcd::task_of(back), Some(example.task));
        let without_pictures = |sample: &opcd::Sample| opcd::Sample { images: Vec::new(), ..sample.clone() };
        assert_eq!(without_pictures(back), without_pictures(sample));
    }
}

#[test]
fn the_published_parquet_with_paths_only_is_read() {
    let rows = opcd::read(&data("opcd/train/train.parquet")).unwrap();
    let golden = opcd::read_json(&data("opcd/train_normalized.json")).unwrap();
    assert_eq!(rows.len(), golden.len());
    for (row, golden) in rows.iter().zip(&golden) {
        assert_eq!(row.problem, golden.messages[0].content);
        assert_eq!(format!("<answer>{}</answer>", row.answer), golden.messages[1].content);
        assert_eq!(row.images[0].bytes, None);
        assert_eq!(row.images[0].path.as_ref(), Some(&golden.images[0]));
        assert_eq!(row.vsp_task_text, golden.vsp_task_text);
        assert_eq!(row.task, golden.task);
    }
}

#[test]
fn embedded_pictures_and_repeated_rows_equal_the_published_parquet() {
    let mut ours = opcd::read(&data("opcd/base64/input.json")).unwrap();
    opcd::duplicate_to(&mut ours, 5);
    let golden = opcd::read(&data("opcd/base64/train_dup5.parquet")).unwrap();
    assert_eq!(ours, golden);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dup.parquet");
    opcd::write_parquet(&path, &ours, folder.path()).unwrap();
    assert_eq!(opcd::read(&path).unwrap(), golden);
}

#[test]
fn our_parquet_has_the_published_schema() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let open = |path: &Path| SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    let samples = opcd::read(&data("opcd/base64/input.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    opcd::write_parquet(&path, &samples, folder.path()).unwrap();
    let (ours, golden) = (open(&path), open(&data("opcd/train/train.parquet")));
    let columns = |reader: &SerializedFileReader<std::fs::File>| {
        let schema = reader.metadata().file_metadata().schema_descr_ptr();
        let columns = schema.columns().iter();
        columns
            .map(|column| {
                format!(
                    "{} {:?} {:?} {} {}",
                    column.path(),
                    column.physical_type(),
                    column.logical_type_ref(),
                    column.max_def_level(),
                    column.max_rep_level()
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(columns(&ours), columns(&golden));
    let features = |reader: &SerializedFileReader<std::fs::File>| {
        let pairs = reader.metadata().file_metadata().key_value_metadata().unwrap();
        let value = pairs.iter().find(|pair| pair.key == "huggingface").unwrap();
        serde_json::from_str::<serde_json::Value>(value.value.as_deref().unwrap()).unwrap()
    };
    assert_eq!(features(&ours), features(&golden));
    for row_group in ours.metadata().row_groups() {
        for column in row_group.columns() {
            assert_eq!(column.compression(), parquet::basic::Compression::SNAPPY);
        }
    }
}

#[test]
fn errors_name_the_file_the_row_and_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.json");
    std::fs::write(&path, r#"[{"messages": [], "images": []}]"#).unwrap();
    let error = opcd::read(&path).unwrap_err().to_string();
    assert!(error.contains("bad.json") && error.contains("row 0") && error.contains("\"user\""), "{error}");
    let asked = r#"[{"messages": [{"role": "user", "content": "<image>plan"}], "images": ["gone.png"]}]"#;
    std::fs::write(&path, asked).unwrap();
    let error = opcd::read(&path).unwrap_err().to_string();
    assert!(error.contains("bad.json") && error.contains("row 0") && error.contains("gone.png"), "{error}");
    std::fs::write(&path, r#"[{"images": []}]"#).unwrap();
    let error = opcd::read(&path).unwrap_err().to_string();
    assert!(error.contains("row 0") && error.contains("messages"), "{error}");
    let none = SelectOptions { sample_per_level: Some(0), ..SelectOptions::default() };
    let error = opcd::select(Vec::new(), &none).unwrap_err().to_string();
    assert!(error.contains("sample_per_level = 0"), "{error}");
}
