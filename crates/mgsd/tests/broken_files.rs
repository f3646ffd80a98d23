//! Broken models, pictures and runs, and places that cannot be written: exit code 1 and one line that says which file.

mod common;

use common::{RECIPE, boards, change, is_refused, mgsd, ok, tear, tiny_model};
use std::path::Path;

/// Asks the tiny model in `model`.
fn ask<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["model", "chat", "--model", model, "--max-new-tokens", "2"], more, &["hello"]].concat()
}

#[test]
fn broken_models_name_the_file_and_the_tensor_or_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "whole");
    ok(folder, &ask("whole", &[]));
    let broken = |spoil: &dyn Fn(&Path), parts: &[&str]| {
        let model = tiny_model(folder, "broken");
        spoil(&model);
        is_refused(folder, &ask("broken", &[]), parts);
        std::fs::remove_dir_all(model).expect("removed");
    };
    let weights = "model.safetensors";
    broken(&|m| tear(&m.join(weights), 0.5), &[weights]);
    broken(&|m| std::fs::write(m.join(weights), u64::MAX.to_le_bytes()).expect("a file"), &[weights, "header"]);
    broken(&|m| std::fs::write(m.join(weights), b"abc").expect("a file"), &[weights]);
    broken(&|m| std::fs::remove_file(m.join(weights)).expect("a file"), &[weights]);
    broken(&|m| change(&m.join("config.json"), "\"hidden_size\": 64", "\"hidden_size\": 96"), &["64", "96"]);
    broken(&|m| change(&m.join("config.json"), "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5"), &["layers.4"]);
    broken(&|m| change(&m.join("config.json"), "\"qwen3_vl\"", "\"llama\""), &["config.json", "model_type", "llama"]);
    broken(
        &|m| change(&m.join("config.json"), "\"vocab_size\": 600", "\"vocab_size\": \"big\""),
        &["config.json", "vocab_size"],
    );
    broken(&|m| tear(&m.join("config.json"), 0.5), &["config.json"]);
    broken(&|m| tear(&m.join("tokenizer.json"), 0.5), &["tokenizer.json"]);
    broken(&|m| std::fs::remove_file(m.join("tokenizer.json")).expect("a file"), &["tokenizer.json"]);
    // A tokenizer of the right size whose marks have other ids, as when it comes from another model.
    let swap = |m: &Path, one: &str, other: &str| {
        let path = m.join("tokenizer.json");
        let text = std::fs::read_to_string(&path).expect("the tokenizer");
        let swapped = text.replace(one, "<|swap|>").replace(other, one).replace("<|swap|>", other);
        assert_ne!(swapped, text);
        std::fs::write(&path, swapped).expect("a tokenizer");
    };
    let both = ["tokenizer.json", "config.json"];
    broken(&|m| swap(m, "<|image_pad|>", "<|video_pad|>"), &[&both[..], &["image_token_id 552", "553"]].concat());
    broken(&|m| swap(m, "<|vision_start|>", "<|box_end|>"), &[&both[..], &["vision_start_token_id 549"]].concat());
    broken(&|m| swap(m, "<|vision_end|>", "<|box_end|>"), &[&both[..], &["vision_end_token_id 550"]].concat());
    broken(&|m| swap(m, "<|vision_end|>", "<|gone|>"), &[&both[..], &["has no token <|vision_end|>"]].concat());
    broken(
        &|m| swap(m, "<|im_end|>", "<|box_end|>"),
        &[&both[..], &["tokenizer_config.json", "eos_token_id"]].concat(),
    );
    broken(&|m| std::fs::write(m.join("chat_template.jinja"), "{% for").expect("a file"), &["chat_template"]);
    broken(
        &|m| {
            std::fs::remove_file(m.join(weights)).expect("a file");
            let index = "{\"weight_map\": {\"lm_head.weight\": \"model-00001-of-00002.safetensors\"}}";
            std::fs::write(m.join("model.safetensors.index.json"), index).expect("a file");
        },
        &["model-00001-of-00002.safetensors"],
    );
    std::fs::create_dir(folder.join("empty")).expect("a folder");
    is_refused(folder, &ask("empty", &[]), &["empty"]);
    is_refused(folder, &["model", "init", "--config", "empty", "--out", "m"], &["empty"]);
}

#[test]
fn broken_pictures_and_conversations_name_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "m");
    boards(folder, "maze", "3");
    let picture = folder.join("data/Maze/level3/image/0000.png");
    std::fs::copy(&picture, folder.join("torn.png")).expect("a copy");
    tear(&folder.join("torn.png"), 0.5);
    std::fs::write(folder.join("text.png"), "not a picture").expect("a file");
    for name in ["torn.png", "text.png", "missing.png"] {
        is_refused(folder, &ask("m", &["--image", name]), &[name]);
    }
    let trace = ["model", "trace", "--model", "m", "--chat", "chat.json", "--out", "t.safetensors"];
    let refused = |chat: &str, parts: &[&str]| {
        std::fs::write(folder.join("chat.json"), chat).expect("a file");
        is_refused(folder, &trace, parts);
    };
    is_refused(folder, &trace, &["chat.json"]);
    refused("{}", &["chat.json", "list"]);
    refused("[{\"role\": \"user\"}]", &["chat.json", "content"]);
    refused("[{\"role\": \"user\", \"con", &["chat.json"]);
    let shown =
        "[{\"role\": \"user\", \"content\": [{\"type\": \"image_url\", \"image_url\": {\"url\": \"none.png\"}}]}]";
    refused(shown, &["none.png"]);
}

#[test]
fn broken_adapters_and_results_name_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "m");
    std::fs::create_dir(folder.join("a")).expect("a folder");
    let merge = ["merge", "--base", "m", "--adapter", "a", "--out", "merged"];
    is_refused(folder, &merge, &["adapter_config.json"]);
    std::fs::write(folder.join("a/adapter_config.json"), "{\"r\": 0}").expect("a file");
    is_refused(folder, &merge, &["adapter_config.json"]);
    std::fs::create_dir(folder.join("run")).expect("a folder");
    is_refused(folder, &["report", "run", "--out", "r.html"], &["run"]);
    is_refused(folder, &["report", "nowhere", "--out", "r.html"], &["nowhere"]);
    is_refused(folder, &["eval", "gap", "--runs", "nowhere"], &["nowhere"]);
    is_refused(folder, &["eval", "gap", "--runs", "run"], &["run holds none", "summary.json", "mgsd eval plan"]);
    assert_eq!(std::fs::read_dir(folder.join("run")).expect("the folder").count(), 0, "nothing is written");
    std::fs::write(folder.join("run/x_image.summary.json"), "{\"a\": ").expect("a file");
    is_refused(folder, &["eval", "gap", "--runs", "run"], &["x_image.summary.json"]);
    std::fs::write(folder.join("run/mine.txt"), "mine").expect("a file");
    is_refused(folder, &["demo", "--out", "run"], &["run", "--out"]);
    assert!(folder.join("run/mine.txt").exists());
}

#[test]
fn runs_are_neither_overwritten_nor_continued_wrongly() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "model");
    let recipe = format!("{RECIPE}[batch]\nsamples_per_step = 2\n[checkpoint]\nevery = 1\n");
    std::fs::write(folder.join("r.toml"), recipe).expect("a recipe");
    let train = ["train", "sft", "r.toml"];
    ok(folder, &train);
    is_refused(folder, &train, &["run", "checkpoint-2", "--resume"]);
    let again = ["train", "sft", "r.toml", "--resume"];
    let other = ["optimiser.lr", "checkpoint-2/state.json", "run/recipe.toml", "model.out"];
    is_refused(folder, &[&again[..], &["--set", "optimiser.lr=0.5"]].concat(), &other);
    is_refused(folder, &[&again[..], &["--set", "seed=1"]].concat(), &["seed", "run/recipe.toml"]);
    let checkpoint = folder.join("run/checkpoint-2");
    for entry in std::fs::read_dir(&checkpoint).expect("a checkpoint") {
        let path = entry.expect("an entry").path();
        if path.is_file() && path.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = std::fs::read(&path).expect("a file");
            tear(&path, 0.5);
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name != "model.safetensors" {
                is_refused(folder, &again, &["checkpoint-2", &name]);
            }
            std::fs::write(&path, bytes).expect("mended");
        }
    }
    std::fs::write(checkpoint.join("state.json"), "{}").expect("a file");
    is_refused(folder, &again, &["checkpoint-2", "state.json"]);
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    boards(folder, "maze", "3");
    std::fs::write(folder.join("file"), "in the way").expect("a file");
    let generate = ["tasks", "generate", "--task", "maze", "--levels", "3", "--count", "1", "--out"];
    is_refused(folder, &[&generate[..], &["file/x"]].concat(), &["file/x"]);
    is_refused(
        folder,
        &["data", "perception", "--data", "data", "--out", "file/sft.json"],
        &["file: cannot create the folder"],
    );
    is_refused(folder, &["demo", "--out", "file"], &["file"]);
    tiny_model(folder, "model");
    std::fs::write(folder.join("r.toml"), RECIPE).expect("a recipe");
    is_refused(folder, &["train", "sft", "r.toml", "--set", "model.out=\"file/run\""], &["file/run"]);
    is_refused(
        folder,
        &["merge", "--base", "model", "--adapter", "model", "--out", "file/merged"],
        &["adapter_config.json"],
    );
}

/// A folder that refuses files, for users who are not the superuser.
#[cfg(unix)]
#[test]
fn a_folder_without_the_right_to_write_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    boards(folder, "maze", "3");
    let closed = folder.join("closed");
    std::fs::create_dir(&closed).expect("a folder");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o555)).expect("closed");
    if std::fs::write(closed.join("try"), "").is_ok() {
        // The superuser may write everywhere: the kernel's own folders refuse even that.
        if !Path::new("/proc/self").exists() {
            return;
        }
        is_refused(folder, &["data", "perception", "--data", "data", "--out", "/proc/sft.json"], &["/proc/sft.json"]);
        return;
    }
    is_refused(folder, &["data", "perception", "--data", "data", "--out", "closed/a.json"], &["closed/a.json"]);
}

/// A file system that takes no more bytes: every file is limited to four blocks, and standard output goes to the
/// device that is always full.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_and_leaves_no_half_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    tiny_model(folder, "m");
    let program = env!("CARGO_BIN_EXE_mgsd");
    let shell = |line: &str| {
        let output = std::process::Command::new("sh").args(["-c", line]).current_dir(folder).output().expect("a shell");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let line = format!("trap '' XFSZ; ulimit -f 4; exec {program} model init --config m --out made");
    let (code, error) = shell(&line);
    assert!(code == Some(1) && error.contains("cannot write made/") && error.contains("too large"), "{code:?} {error}");
    assert!(!folder.join("made/model.safetensors").exists());
    boards(folder, "maze", "3");
    let line = format!("{program} tasks solve data/Maze/level3/text/0000.txt > /dev/full");
    let (code, error) = shell(&line);
    assert!(code == Some(1) && error.contains("standard output"), "{code:?} {error}");
    let line = format!("{program} --json tasks solve data/Maze/level3/text/0000.txt > /dev/full");
    assert_eq!(shell(&line).0, Some(1));
    // A reader that has enough is no error.
    assert!(mgsd(folder, &["tasks", "solve", "data/Maze/level3/text/0000.txt"]).status.success());
}
