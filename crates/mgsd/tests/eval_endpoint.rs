//! `mgsd eval` against endpoints, as a user runs it: the server is a thread of the test.

#[path = "../../mgsd-eval/tests/server/mod.rs"]
mod server;

use server::{Play, Server, completion, error};
use std::path::Path;
use std::process::{Command, Output};

const SECRET: &str = "sk-do-not-print-me";

fn mgsd(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgsd"));
    command.args(arguments).current_dir(folder).env("TEST_KEY", SECRET).output().expect("the binary runs")
}

fn ok(folder: &Path, arguments: &[&str]) -> String {
    let output = mgsd(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn fails(folder: &Path, code: i32, arguments: &[&str]) -> String {
    let output = mgsd(folder, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).expect("UTF-8")
}

/// Six boards of each of two tasks.
fn boards() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for task in ["frozenlake", "maze"] {
        let generate = ["tasks", "generate", "--task", task, "--levels", "3", "--count", "6", "--out", "data"];
        ok(folder.path(), &[generate.as_slice(), &["--image-size", "64"]].concat());
    }
    folder
}

fn plan<'a>(url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["eval", "plan", "--endpoint", url, "--model", "vendor/some-model", "--data", "data"];
    arguments.extend(["--out", "runs", "--api-key-env", "TEST_KEY", "--prompts", "compact"]);
    arguments.extend(more);
    arguments
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).expect("rows");
    text.split_terminator('\n').map(|line| serde_json::from_str(line).expect("a row")).collect()
}

#[test]
fn a_run_writes_rows_summary_and_analysis_and_never_the_key() {
    let folder = boards();
    let server = Server::start(|_, _| completion("1. 3x3\n2. (0,0)\n3. (2,2)\n4. none\n<answer>RRDD</answer>"));
    let out = mgsd(folder.path(), &plan(&server.url(), &["--price-in", "2", "--price-out", "10"]));
    let (said, noted) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{noted}");
    assert!(said.contains("requests 12 (of these 0 repeats)   tokens in 1200, out 240"), "{said}");
    assert!(said.contains("cost of all rows 0.0048"), "{said}");

    let runs = folder.path().join("runs");
    let rows = lines(&runs.join("some-model_image.jsonl"));
    assert_eq!(rows.len(), 12);
    assert!(rows.iter().all(|row| row["prompt_tokens"] == 100 && row["board"].is_string() && row["error"].is_null()));
    let read = |name: &str| std::fs::read_to_string(runs.join(name)).expect(name);
    let summary: serde_json::Value = serde_json::from_str(&read("some-model_image.summary.json")).expect("JSON");
    assert_eq!(
        (&summary["total"]["num_cases"], &summary["experiment"]["model"]),
        (&12.into(), &"vendor/some-model".into())
    );
    let analysis: serde_json::Value = serde_json::from_str(&read("some-model_image.analysis.json")).expect("JSON");
    assert_eq!(analysis["tokens"]["prompt"], 1200);
    assert_eq!(analysis["by_task"]["maze"]["all"]["cases"], 6);
    let failures = analysis["failed_cases"].as_array().expect("failures").len() as u64;
    assert_eq!(analysis["total"]["solved"].as_u64().map(|solved| solved + failures), Some(12));

    for entry in std::fs::read_dir(&runs).expect("folder") {
        let path = entry.expect("entry").path();
        assert!(!std::fs::read_to_string(&path).expect("text").contains(SECRET), "{}", path.display());
    }
    assert!(!said.contains(SECRET) && !noted.contains(SECRET));
    assert_eq!(server.seen()[0].headers["authorization"], format!("Bearer {SECRET}"));
    let parts = &server.seen()[0].body["messages"][0]["content"];
    assert!(
        parts[0]["image_url"]["url"].as_str().is_some_and(|url| url.starts_with("data:image/png;base64,")),
        "{parts}"
    );
}

#[test]
fn resume_asks_only_what_failed_even_after_a_torn_line() {
    let folder = boards();
    let url = {
        let server = Server::start(|number, _| match number % 4 {
            3 => error(500, "down"),
            _ => completion("<answer>RD</answer>"),
        });
        let said = fails(folder.path(), 1, &plan(&server.url(), &["--attempts", "1", "--concurrency", "1"]));
        assert!(said.contains("3 of 12 boards got no answer") && said.contains("--resume"), "{said}");
        server.url()
    };
    assert!(!url.is_empty());
    let rows = folder.path().join("runs/some-model_image.jsonl");
    let mut bytes = std::fs::read(&rows).expect("rows");
    bytes.extend_from_slice(b"{\"case_id\": \"maze_le");
    std::fs::write(&rows, bytes).expect("rows");

    let server = Server::start(|_, _| completion("<answer>DR</answer>"));
    ok(folder.path(), &plan(&server.url(), &["--resume"]));
    assert_eq!(server.seen().len(), 3);
    let answered = lines(&rows).iter().filter(|row| row["error"].is_null()).count();
    assert_eq!((lines(&rows).len(), answered), (15, 12));
    ok(folder.path(), &plan(&server.url(), &["--resume"]));
    assert_eq!(server.seen().len(), 3, "nothing is left to ask");
}

#[test]
fn a_budget_of_requests_ends_the_run_and_resume_does_the_rest() {
    let folder = boards();
    let server = Server::start(|_, _| completion("<answer>DR</answer>"));
    let said = fails(folder.path(), 1, &plan(&server.url(), &["--max-requests", "5"]));
    assert!(said.contains("7 of 12 boards were not asked about"), "{said}");
    assert_eq!(server.seen().len(), 5);
    ok(folder.path(), &plan(&server.url(), &["--resume"]));
    assert_eq!((server.seen().len(), lines(&folder.path().join("runs/some-model_image.jsonl")).len()), (12, 12));
}

#[test]
fn a_dry_run_asks_and_writes_nothing() {
    let folder = boards();
    let server = Server::start(|_, _| completion(""));
    let more = ["--dry-run", "--json", "--price-in", "1000000", "--tasks", "maze", "--no-seed", "--no-sampling"];
    let more =
        [more.as_slice(), &["--length-field", "max_completion_tokens", "--extra-body", "{\"top_k\": 1}"]].concat();
    let said = ok(folder.path(), &plan(&server.url(), &more));
    let told: serde_json::Value = serde_json::from_str(said.trim()).expect("one JSON object");
    assert_eq!(
        (&told["boards"], &told["requests"], &told["most_answer_tokens"]),
        (&6.into(), &6.into(), &24576.into())
    );
    assert!(told["prompt_tokens"].as_u64().is_some_and(|tokens| (60..600).contains(&tokens)), "{told}");
    assert_eq!(told["most_cost"].as_f64(), told["prompt_tokens"].as_f64());
    let first = &told["first_request"];
    assert_eq!((&first["max_completion_tokens"], &first["top_k"]), (&4096.into(), &1.into()));
    assert!(["seed", "temperature", "max_tokens"].iter().all(|name| first.get(*name).is_none()), "{first}");
    assert!(first.to_string().len() < 1000 && !said.contains(SECRET));
    assert!(server.seen().is_empty() && !folder.path().join("runs").exists());
}

#[test]
fn a_refused_key_ends_the_run_with_what_to_do() {
    let folder = boards();
    let server = Server::start(|_, seen| error(401, &format!("no such key: {}", seen.headers["authorization"])));
    let said = fails(folder.path(), 1, &plan(&server.url(), &[]));
    assert!(said.contains("HTTP 401") && said.contains("--resume") && !said.contains(SECRET), "{said}");
}

#[test]
fn wrong_flags_say_what_was_expected() {
    let folder = boards();
    for (more, expected) in [
        (vec!["--extra-body", "[1]"], "--extra-body"),
        (vec!["--timeout", "0"], "--timeout is 0"),
        (vec!["--ca-file", "nowhere.pem"], "nowhere.pem"),
        (vec!["--api-key-header", "a b"], "--api-key-header"),
    ] {
        let said = fails(folder.path(), 1, &plan("http://127.0.0.1:9", &more));
        assert!(said.contains(expected), "{more:?}: {said}");
    }
    let said = fails(folder.path(), 1, &plan("127.0.0.1:9", &[]));
    assert!(said.contains("http://127.0.0.1:8000/v1"), "{said}");
}

#[test]
fn text_and_picture_runs_make_a_gap_table_and_a_comparison() {
    let folder = boards();
    // From text the server sends everybody two steps right and two down; from pictures nowhere.
    let server = Server::start(|_, seen| match &seen.body["messages"][0]["content"] {
        serde_json::Value::String(_) => completion("<answer>RRDD</answer>"),
        _ => completion("I cannot see it."),
    });
    for modality in ["text", "image"] {
        ok(folder.path(), &plan(&server.url(), &["--modality", modality]));
    }
    ok(folder.path(), &["eval", "gap", "--runs", "runs"]);
    let read = |name: &str| std::fs::read_to_string(folder.path().join("runs").join(name)).expect(name);
    assert!(read("modality_gap.md").contains("| some-model | mean of tasks |"), "{}", read("modality_gap.md"));
    assert!(read("modality_gap.tex").contains("\\toprule"));
    let intervals: serde_json::Value = serde_json::from_str(&read("modality_gap_intervals.json")).expect("JSON");
    assert_eq!(
        (&intervals[0]["task"], &intervals[0]["cases"], &intervals[0]["second"]),
        (&"macro".into(), &12.into(), &0.0.into())
    );
    let files = ["runs/some-model_text.jsonl", "runs/some-model_image.jsonl"];
    let said = ok(folder.path(), &["eval", "compare", files[0], files[1], "--json"]);
    let compared: serde_json::Value = serde_json::from_str(said.trim()).expect("one JSON object");
    assert_eq!((&compared["macro"]["cases"], &compared["macro"]["only_second"]), (&12.into(), &0.into()));
    assert_eq!(compared["macro"]["difference"]["value"], intervals[0]["difference"]["value"]);
}

#[test]
fn boards_go_out_as_a_vlmevalkit_table() {
    let folder = boards();
    ok(folder.path(), &["data", "vlmevalkit", "--data", "data", "--out", "boards.tsv", "--tasks", "maze"]);
    let text = std::fs::read_to_string(folder.path().join("boards.tsv")).expect("table");
    assert!(text.starts_with("index\timage\tquestion\tanswer\tcategory\tl2-category\tsplit\t"));
    assert_eq!(text.matches("\tmaze\tlevel3\t").count(), 6);
}

#[test]
fn a_slow_server_that_never_answers_ends_as_a_failed_row() {
    let folder = boards();
    let wait = std::time::Duration::from_secs(20);
    let server = Server::start(move |_, _| Play::After(wait, Box::new(completion(""))));
    let more = ["--timeout", "0.3", "--attempts", "1", "--tasks", "maze", "--samples-per-task", "2"];
    let said = fails(folder.path(), 1, &plan(&server.url(), &more));
    assert!(said.contains("2 of 2 boards got no answer"), "{said}");
    let rows = lines(&folder.path().join("runs/some-model_image.jsonl"));
    assert!(rows[0]["error"].as_str().is_some_and(|error| error.contains("no answer within 0.3 s")), "{}", rows[0]);
}
