//! `mgsd serve` as a user starts and stops it.

mod common;

use mgsd_compute::Tensor;
use mgsd_model::lora::LoraConfig;
use mgsd_model::model::{Purpose, Qwen3Vl};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

struct Running {
    child: Child,
    url: String,
}

fn start(more: &[&str]) -> Running {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mgsd"))
        .args(["serve", "--json", "--port", "0", "--slots", "2", "--context", "512"])
        .args(more)
        .env("MGSD_TEST_KEY", "from the environment\n")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("stdout")).read_line(&mut line).expect("first line");
    let told: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    Running { url: told["url"].as_str().expect("url").to_string(), child }
}

impl Running {
    fn status(&self, path: &str, headers: &str) -> u16 {
        let mut stream = TcpStream::connect(self.url.trim_start_matches("http://")).expect("connect");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{headers}\r\n").expect("send");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read");
        text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("status")
    }

    /// The answer to one question, and how it was refused if it was.
    fn ask(&self, question: &str) -> String {
        let mut stream = TcpStream::connect(self.url.trim_start_matches("http://")).expect("connect");
        let body = serde_json::json!({"temperature": 0, "max_tokens": 24, "ignore_eos": true,
            "messages": [{"role": "user", "content": question}]});
        let body = body.to_string();
        let head = "Host: t\r\nConnection: close\r\nContent-Type: application/json";
        write!(stream, "POST /v1/chat/completions HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .expect("send");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read");
        let (_, body) = text.split_once("\r\n\r\n").expect("a body");
        let answer: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
        answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}")).to_string()
    }

    fn signal(&mut self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill");
        assert!(sent.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already in one test. Asked to end, it removes its temporary folder.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

#[test]
fn the_embedded_model_is_served_without_any_flag_and_sigterm_ends_it_in_good_order() {
    let mut server = start(&[]);
    assert_eq!((server.status("/health", ""), server.status("/v1/models", "")), (200, 200));
    server.signal("-TERM");
    assert!(server.child.wait().expect("wait").success());
}

#[test]
fn a_key_from_the_environment_is_asked_for() {
    let server = start(&["--api-key-env", "MGSD_TEST_KEY"]);
    assert_eq!(server.status("/v1/models", ""), 401);
    assert_eq!(server.status("/v1/models", "Authorization: Bearer from the environment\r\n"), 200);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let server = start(&[]);
    let port = server.url.rsplit(':').next().expect("port");
    let second = Command::new(env!("CARGO_BIN_EXE_mgsd")).args(["serve", "--port", port]).output().expect("run");
    let message = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && message.contains(port) && message.contains("--port"), "{message}");
}

/// An adapter of the embedded model that changes its answers, in the layout of PEFT.
fn adapter(model: &std::path::Path, out: &std::path::Path) {
    let config = LoraConfig::default();
    let mut adapted = Qwen3Vl::load(model, Purpose::Inference).expect("the embedded model");
    adapted.add_lora(&config, 5).expect("adapters");
    adapted.visit_linears_mut(&mut |layer| {
        let Some(lora) = &mut layer.lora else { return };
        let (rows, cols) = (lora.b.value.rows(), lora.b.value.cols());
        let values = (0..rows * cols).map(|i| ((i * 7 % 13) as f32 - 6.0) * 0.02).collect();
        lora.b.value = Tensor::from_vec(rows, cols, values);
    });
    adapted.save_adapter(out, "nano", &config).expect("saved");
}

#[test]
fn an_adapter_is_served_evaluated_and_chatted_with_as_if_it_were_merged() {
    let folder = tempfile::tempdir().expect("a folder");
    let nano = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano");
    adapter(&nano, &folder.path().join("lora"));
    let nano = nano.to_str().expect("a path");
    common::ok(folder.path(), &["merge", "--base", nano, "--adapter", "lora", "--out", "merged"]);
    let at = |name: &str| folder.path().join(name).to_str().expect("a path").to_string();
    let question = "frozenlake plan";
    let said = |arguments: &[&str]| start(arguments).ask(question);
    let (merged, base) = (said(&["--model", &at("merged")]), said(&["--model", nano]));
    assert_eq!(said(&["--model", nano, "--adapter", &at("lora")]), merged);
    assert_ne!(base, merged, "the adapter must matter");
    let chat = |arguments: &[&str]| {
        let rest = ["--max-new-tokens", "24", question];
        common::ok(folder.path(), &[&["model", "chat"], arguments, &rest].concat())
    };
    assert_eq!(chat(&["--model", nano, "--adapter", "lora"]), chat(&["--model", "merged"]));
    common::boards(folder.path(), "frozenlake", "3");
    let eval = |arguments: &[&str]| {
        let rest = ["--data", "data", "--prompts", "compact", "--max-new-tokens", "40", "--out", "runs"];
        common::ok(folder.path(), &[&["eval", "plan"], arguments, &rest].concat());
    };
    eval(&["--model", nano, "--adapter", "lora"]);
    eval(&["--model", "merged"]);
    let answers = |file: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(folder.path().join("runs").join(file)).expect(file);
        text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a row")["response"].clone()).collect()
    };
    assert_eq!(answers("nano-lora_image.jsonl"), answers("merged_image.jsonl"));
    common::is_refused(
        folder.path(),
        &["serve", "--model", nano, "--adapter", "data"],
        &["data", "adapter_config.json"],
    );
}
