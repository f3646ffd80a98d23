//! `mgsd serve` as a user starts and stops it.

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
