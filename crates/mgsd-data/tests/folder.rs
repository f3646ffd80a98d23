//! Task folders: written, read back, filtered, and errors that name the file.

mod common;

use common::{golden_folder, instances, reference};
use mgsd_data::folder::{self, Filter};
use mgsd_data::perception_sft;
use mgsd_data::prompts::Prompts;
use mgsd_data::split::held_out;
use mgsd_tasks::Task;

#[test]
fn written_instances_are_read_back_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let root = golden_folder(folder.path());
    let examples = folder::read(&root, &Filter::default()).unwrap();
    let instances = instances(6);
    assert_eq!(examples.len(), 72);
    for (example, instance) in examples.iter().zip(&instances) {
        assert_eq!(example.text, instance.to_text());
        assert_eq!(example.instance.board, instance.board);
        assert!(example.existing_image().is_ok());
    }
    assert_eq!(examples[7].id, "frozenlake_level4_0001");
    assert!(examples[7].text_path.ends_with("FrozenLake/level4/text/0001.txt"));
    assert!(examples[7].image_path.ends_with("FrozenLake/level4/image/0001.png"));
}

#[test]
fn written_files_equal_the_reference_folder() {
    let Some(golden) = reference("golden_public") else { return };
    let folder = tempfile::tempdir().unwrap();
    let ours = folder::read(&golden_folder(folder.path()), &Filter::default()).unwrap();
    let golden = folder::read(&golden, &Filter::default()).unwrap();
    assert_eq!(ours.len(), golden.len());
    for (ours, golden) in ours.iter().zip(&golden) {
        assert_eq!((&ours.id, &ours.text), (&golden.id, &golden.text));
    }
}

#[test]
fn a_filter_takes_tasks_and_levels_in_the_order_given() {
    let folder = tempfile::tempdir().unwrap();
    let root = golden_folder(folder.path());
    let filter = Filter { tasks: vec![Task::Maze], levels: vec![5, 3] };
    let levels: Vec<usize> = folder::read(&root, &filter).unwrap().iter().map(|example| example.level).collect();
    assert_eq!(levels, [[5; 6], [3; 6]].concat());
}

#[test]
fn errors_name_what_is_missing_or_broken() {
    let folder = tempfile::tempdir().unwrap();
    let root = golden_folder(folder.path());
    let no_level = Filter { levels: vec![42], ..Filter::default() };
    let error = folder::read(&root, &no_level).unwrap_err().to_string();
    assert!(error.contains("[42]"), "{error}");
    let error = folder::read(folder.path(), &Filter::default()).unwrap_err().to_string();
    assert!(error.contains("FrozenLake"), "{error}");
    let broken = root.join("Maze/level3/text/0002.txt");
    let text = std::fs::read_to_string(&broken).unwrap();
    std::fs::write(&broken, text.replace("start_row=", "begin_row=")).unwrap();
    let error = folder::read(&root, &Filter::default()).unwrap_err().to_string();
    assert!(error.contains("0002.txt") && error.contains("start_row"), "{error}");
}

#[test]
fn perception_records_are_written_with_their_dataset_info_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let root = golden_folder(folder.path());
    let examples = folder::read(&root, &Filter::default()).unwrap();
    let prompts = Prompts::standard().unwrap();
    let records = perception_sft::records(&examples, &prompts, folder.path()).unwrap();
    std::fs::write(folder.path().join("dataset_info.json"), r#"{"other": {"file_name": "x"}}"#).unwrap();
    let path = folder.path().join("sft.json");
    perception_sft::write(&path, &records).unwrap();
    let info: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("dataset_info.json")).unwrap()).unwrap();
    assert_eq!(info["other"]["file_name"], "x");
    assert_eq!(info["sft"]["formatting"], "sharegpt");
    assert_eq!(info["sft"]["file_name"], "sft.json");
    let conversations = perception_sft::read(&path).unwrap();
    assert_eq!(conversations.len(), 72);
    for ((conversation, record), example) in conversations.iter().zip(&records).zip(&examples) {
        assert_eq!(conversation.messages, record.messages);
        assert_eq!(
            record.source_text,
            format!("golden_public/{}", example.text_path.strip_prefix(&root).unwrap().display())
        );
        let picture = conversation.images[0].load(folder.path()).unwrap();
        assert_eq!(picture, std::fs::read(&example.image_path).unwrap());
    }
}

#[test]
fn reference_records_are_read() {
    let Some(path) = reference("perception_gold_public.json") else { return };
    let conversations = perception_sft::read(&path).unwrap();
    assert_eq!(conversations.len(), 108);
    assert_eq!(conversations[0].task.as_deref(), Some("frozenlake_perception_all"));
}

#[test]
fn other_sharegpt_forms_are_read_and_errors_name_record_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        perception_sft::read(&path).map_err(|error| error.to_string())
    };
    std::fs::write(folder.path().join("a.png"), b"picture").unwrap();
    let good = r#"[{"conversations": [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "this"}],
                    "system": "be short", "images": "a.png"}]"#;
    let conversation = read(good).unwrap().remove(0);
    assert_eq!(conversation.messages.len(), 3);
    assert_eq!(conversation.messages[2].content, "this");
    for (text, words) in [
        (good.replace("a.png", "b.png"), ["record 0", "images", "b.png"]),
        (good.replace("<image>", ""), ["record 0", "images", "0 <image> marks"]),
        (good.replace("gpt", "robot"), ["record 0", "conversations", "robot"]),
        (good.replace("conversations", "chat"), ["record 0", "messages", "missing"]),
        ("{}".to_string(), ["data.json", "top level", "array"]),
        ("[{]".to_string(), ["data.json", "line 1", "not JSON"]),
    ] {
        let error = read(&text).unwrap_err();
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }
}

#[test]
fn about_a_tenth_of_the_boards_of_each_task_is_held_out() {
    use mgsd_tasks::{GenerateOptions, generate};
    for (task, level) in [(Task::FrozenLake, 6), (Task::Maze, 4), (Task::MiniBehaviour, 5)] {
        let boards = generate(task, level, &GenerateOptions::default(), 0..1000).unwrap();
        let held = boards.iter().filter(|instance| held_out(&instance.board.key())).count();
        assert!((60..=140).contains(&held), "{task}: {held} of 1000");
    }
}
