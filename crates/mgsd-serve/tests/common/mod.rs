//! What the tests share: a server on the embedded model, and an HTTP client of a few lines.
#![allow(dead_code)]

use mgsd_compute::Device;
use mgsd_model::model::Qwen3Vl;
use mgsd_serve::{Capacity, Limits, Models, Options, Server};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano")
}

pub fn options() -> Options {
    Options {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        model: nano(),
        name: "nano".into(),
        api_key: None,
        capacity: Capacity { slots: Some(4), context: Some(1024), ..Capacity::default() },
        limits: Limits::default(),
        remote: None,
        pixels: Default::default(),
        prompts: "compact".into(),
        pictures: Default::default(),
        drain: Duration::from_secs(20),
    }
}

/// The embedded model on `MGSD_TEST_DEVICE`, on the CPU without it.
pub fn load() -> mgsd_model::error::Result<Qwen3Vl> {
    Qwen3Vl::for_inference(&nano(), None, Device::of_tests())
}

/// Starts a server; the teacher is the same model.
pub fn start(options: &Options) -> Server {
    let models = move || Ok(Models { model: load()?, teacher: Some(load()?) });
    Server::start(options, Box::new(models)).unwrap_or_else(|error| panic!("{error}"))
}

/// A response as it came.
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The objects of a stream, `[DONE]` checked and left out.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let mut lines: Vec<&str> = text.split("\n\n").filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.pop(), Some("data: [DONE]"), "{text}");
        let event = |line: &&str| {
            let json = line.strip_prefix("data: ").unwrap_or_else(|| panic!("{line:?} is no event"));
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
        };
        lines.iter().map(event).collect()
    }
}

/// One request on a connection of its own.
pub struct Call {
    stream: TcpStream,
}

impl Call {
    pub fn send(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Self {
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).expect("head");
        // A server that refuses by the head alone may close before it has read the body.
        let _ = stream.write_all(body.as_bytes());
        Self { stream }
    }

    /// Reads some bytes of the response, at least one.
    pub fn read_some(&mut self) -> usize {
        self.stream.read(&mut [0; 256]).expect("read")
    }

    pub fn response(self) -> Response {
        let mut reader = BufReader::new(self.stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).expect("head") > 0, "closed in the head: {head:?}");
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("status");
        let lower = head.to_ascii_lowercase();
        let mut body = Vec::new();
        if lower.contains("transfer-encoding: chunked") {
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).expect("chunk size");
                let size = usize::from_str_radix(line.trim(), 16).expect("chunk size");
                let mut chunk = vec![0; size + 2];
                reader.read_exact(&mut chunk).expect("chunk");
                body.extend_from_slice(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else {
            let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
            body.resize(length.unwrap_or(0), 0);
            reader.read_exact(&mut body).expect("body");
        }
        Response { status, head, body }
    }
}

pub const JSON: &str = "Content-Type: application/json\r\n";

pub fn get(server: &Server, path: &str) -> Response {
    Call::send(server.address(), "GET", path, "", "").response()
}

pub fn post(server: &Server, path: &str, body: &Value) -> Response {
    Call::send(server.address(), "POST", path, JSON, &body.to_string()).response()
}

pub fn chat(server: &Server, body: &Value) -> Response {
    post(server, "/v1/chat/completions", body)
}

/// The value of a metric without labels.
pub fn metric(server: &Server, name: &str) -> f64 {
    let text = get(server, "/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no metric {name} in\n{text}"))
}

/// Waits until a metric has a value.
pub fn wait_for(server: &Server, name: &str, wanted: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..3000 {
        let value = metric(server, name);
        if wanted(value) {
            return value;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{name} stays at {}", metric(server, name));
}

/// A board of the task, solved by its generator: prompt as text, picture as a data URL.
pub fn board(task: mgsd_tasks::Task, level: usize, seed: u64) -> (mgsd_tasks::Instance, String, String) {
    use base64::Engine as _;
    let options = mgsd_tasks::GenerateOptions { seed, ..Default::default() };
    let instance = mgsd_tasks::generate(task, level, &options, 0..1).expect("generate").remove(0);
    let prompts = mgsd_data::prompts::Prompts::compact().expect("prompts");
    let context = mgsd_data::prompts::PromptContext::of_instance(&instance);
    let text = prompts.text(&context).expect("text");
    let png = instance.board.render(&Default::default()).and_then(|picture| picture.to_png()).expect("picture");
    let url = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png));
    (instance, text, url)
}
