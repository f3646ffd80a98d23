//! Summaries and gap tables against stored ones, byte for byte.

use std::path::{Path, PathBuf};

use mgsd_eval::{gap, json, perception, rows, summary};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

#[test]
fn every_stored_planning_summary_comes_out_to_the_last_digit() {
    for name in [
        "empty",
        "one_task",
        "only_errors",
        "rows",
        "modality/results/base_image",
        "modality/results/base_text",
        "modality/results/opcd_image",
        "modality/results/opcd_text",
        "modality/results/opcd_v2_image",
    ] {
        let read = rows::read::<rows::PlanRow>(&data(&format!("{name}.jsonl"))).expect(name);
        let expected = std::fs::read_to_string(data(&format!("{name}.summary.json"))).expect(name);
        let mut summary = summary::summarise(&read);
        summary.experiment =
            json::read::<summary::Summary>(&data(&format!("{name}.summary.json"))).expect(name).experiment;
        assert!(json::to_string(&summary) == expected, "{name}");
    }
}

#[test]
fn the_stored_gap_table_comes_out_byte_for_byte_as_json_and_csv() {
    let inputs = gap::read_folder(&data("modality/results")).expect("summaries");
    let table = gap::table(&inputs);
    let read = |name: &str| std::fs::read_to_string(data(name)).expect(name);
    assert!(json::to_string(&table) == read("modality/golden_modality_gap.json"));
    assert!(gap::to_csv(&table) == read("modality/golden_modality_gap.csv"));
}

#[test]
fn a_run_without_its_twin_has_rows_but_no_gap() {
    let inputs = gap::read_folder(&data("modality/results")).expect("summaries");
    let table = gap::table(&inputs);
    assert!(table.iter().any(|row| row.model_label == "OPCD_V2"));
    assert!(!table.iter().any(|row| row.model_label == "OPCD_V2" && row.input_modality == "text_minus_image"));
}

#[test]
fn the_stored_perception_summary_comes_out_byte_for_byte() {
    let read = rows::read::<perception::PerceptionRow>(&data("perception_scores.jsonl")).expect("rows");
    let expected = std::fs::read_to_string(data("perception_summary_public.json")).expect("summary");
    assert!(json::to_string(&perception::summarise(&read)) == expected.trim_end());
}
