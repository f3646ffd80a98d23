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
fn runs_of_one_name_in_two_folders_keep_their_own_pictures_and_perception_from_text_is_no_plan() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
    let write = |folder: &std::path::Path, modality: &str, accuracy: f64| {
        let mut summary = mgsd_eval::summary::Summary::default();
        summary.all_tasks_macro_avg.accuracy = accuracy;
        json::write(&folder.join(format!("model_{modality}.summary.json")), &summary).expect("written");
    };
    for (folder, text, image) in [(&first, 1.0, 0.25), (&second, 0.5, 0.25)] {
        std::fs::create_dir(folder).expect("made");
        write(folder, "text", text);
        write(folder, "image", image);
        std::fs::write(folder.join("model_perception_text.summary.json"), "{\"total\": 8}").expect("written");
    }
    let mut runs = [&first, &second].map(|folder| (folder.as_path(), gap::read_folder(folder).expect("read")));
    gap::tell_apart(&mut runs);
    let inputs: Vec<_> = runs.into_iter().flat_map(|(_, inputs)| inputs).collect();
    let rows = gap::table(&inputs);
    let gaps: Vec<f64> = rows
        .iter()
        .filter(|row| row.input_modality == "text_minus_image" && row.scope == "all_tasks_macro_avg")
        .map(|row| row.accuracy)
        .collect();
    assert_eq!(gaps, [0.75, 0.25], "{rows:?}");
}

#[test]
fn the_stored_perception_summary_comes_out_byte_for_byte() {
    let read = rows::read::<perception::PerceptionRow>(&data("perception_scores.jsonl")).expect("rows");
    let expected = std::fs::read_to_string(data("perception_summary_public.json")).expect("summary");
    assert!(json::to_string(&perception::summarise(&read)) == expected.trim_end());
}
