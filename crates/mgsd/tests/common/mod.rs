//! What the tests of the binary share.
#![allow(dead_code)] // Not every test file needs all of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Two steps of stage 1 on generated boards, for a tiny model in `model`.
pub const RECIPE: &str = r#"
kind = "sft"
steps = 2
[model]
base = "model"
out = "run"
[[data.mix]]
kind = "read_image"
[data.tasks.maze]
levels = [3]
[prompts]
set = "compact"
[images]
min_pixels = 1024
max_pixels = 4096
"#;

/// A call in `folder`.
pub fn mgsd(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mgsd")).args(arguments).current_dir(folder).output().expect("the binary runs")
}

/// Standard output of a call that must succeed.
pub fn ok(folder: &Path, arguments: &[&str]) -> String {
    let output = mgsd(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The error of a call that must fail with `code`.
pub fn fails(folder: &Path, code: i32, arguments: &[&str]) -> String {
    let output = mgsd(folder, arguments);
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    error
}

/// A call that must fail with 1, in one line that holds each of `parts`.
pub fn is_refused(folder: &Path, arguments: &[&str], parts: &[&str]) {
    let error = fails(folder, 1, arguments);
    let line = error.lines().find(|line| line.starts_with("error: "));
    let line = line.unwrap_or_else(|| panic!("{arguments:?}: no line with an error in {error:?}"));
    for part in parts {
        assert!(line.contains(part), "{arguments:?}: {part:?} is not in {line:?}");
    }
    for word in ["panicked", "backtrace", "RUST_BACKTRACE"] {
        assert!(!error.contains(word), "{arguments:?}: {error}");
    }
}

/// Two boards of a task and level below `data`.
pub fn boards(folder: &Path, task: &str, level: &str) {
    ok(folder, &["tasks", "generate", "--task", task, "--levels", level, "--count", "2", "--out", "data"]);
}

/// A copy of a tiny model of the real architecture in `name` below `folder`.
pub fn tiny_model(folder: &Path, name: &str) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mgsd-model/tests/data/tiny-qwen3vl");
    let to = folder.join(name);
    std::fs::create_dir_all(&to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("the tiny model") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
    to
}

/// Cuts a file to a share of its length.
pub fn tear(path: &Path, share: f64) {
    let bytes = std::fs::read(path).expect("a file");
    std::fs::write(path, &bytes[..(bytes.len() as f64 * share) as usize]).expect("a torn file");
}

/// Replaces `from` by `to` in a text file that holds it.
pub fn change(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).expect("a text");
    assert!(text.contains(from), "{}: {from:?} is not there", path.display());
    std::fs::write(path, text.replace(from, to)).expect("a changed text");
}
