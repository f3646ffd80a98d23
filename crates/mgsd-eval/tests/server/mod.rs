//! A small HTTP server for tests: each request goes to a closure that says how to behave.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What to do with a request.
pub enum Play {
    /// Status, further headers, body.
    Reply(u16, Vec<(&'static str, String)>, String),
    /// Wait, then go on.
    After(Duration, Box<Play>),
    /// Promise a body and close in the middle of it.
    BreakOff,
    /// Close without a word.
    Close,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: serde_json::Value,
    pub at: Instant,
}

/// A server on a free port of loopback; it ends with the value.
pub struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    most_at_once: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Server {
    /// `play` gets the number of the request, from 0, and the request.
    pub fn start(play: impl Fn(usize, &Seen) -> Play + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self::on(listener, play)
    }

    /// The same on a listener that is there already.
    pub fn on(listener: TcpListener, play: impl Fn(usize, &Seen) -> Play + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("address");
        let (seen, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let most_at_once = Arc::new(AtomicUsize::new(0));
        let now = Arc::new(AtomicUsize::new(0));
        let play = Arc::new(play);
        let server =
            Self { address, seen: Arc::clone(&seen), most_at_once: Arc::clone(&most_at_once), over: Arc::clone(&over) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (seen, play) = (Arc::clone(&seen), Arc::clone(&play));
                let (now, most) = (Arc::clone(&now), Arc::clone(&most_at_once));
                if let Ok(stream) = stream {
                    std::thread::spawn(move || serve(&stream, &seen, &*play, &now, &most));
                }
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    /// The most requests that were under way together.
    pub fn most_at_once(&self) -> usize {
        self.most_at_once.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the listener so that it sees the end.
        let _ = TcpStream::connect(self.address);
    }
}

/// A chat completion that says `text`.
pub fn completion(text: &str) -> Play {
    let body = serde_json::json!({
        "id": "x", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    });
    Play::Reply(200, Vec::new(), body.to_string())
}

/// An error in the usual shape.
pub fn error(status: u16, message: &str) -> Play {
    let body = serde_json::json!({"error": {"message": message, "type": "test", "code": null}});
    Play::Reply(status, Vec::new(), body.to_string())
}

/// The text of a question.
pub fn question(seen: &Seen) -> String {
    match &seen.body["messages"][0]["content"] {
        serde_json::Value::String(text) => text.clone(),
        parts => {
            let texts = parts.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str());
            texts.collect()
        }
    }
}

fn serve(
    stream: &TcpStream,
    seen: &Mutex<Vec<Seen>>,
    play: &dyn Fn(usize, &Seen) -> Play,
    now: &AtomicUsize,
    most: &AtomicUsize,
) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let number = {
            let mut seen = seen.lock().expect("no panic");
            seen.push(request.clone());
            seen.len() - 1
        };
        let kept = act(stream, play(number, &request));
        now.fetch_sub(1, Ordering::SeqCst);
        if !kept {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

fn read(reader: &mut BufReader<&TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let path = line.split(' ').nth(1)?.to_string();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let mut body = vec![0; headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { path, headers, body: serde_json::from_slice(&body).unwrap_or_default(), at: Instant::now() })
}

/// Whether the connection stays.
fn act(mut stream: &TcpStream, play: Play) -> bool {
    match play {
        Play::After(wait, next) => {
            std::thread::sleep(wait);
            act(stream, *next)
        }
        Play::Reply(status, headers, body) => {
            let mut text = format!("HTTP/1.1 {status} Test\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            stream.write_all(format!("{text}\r\n{body}").as_bytes()).is_ok()
        }
        Play::BreakOff => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"choices\": [");
            false
        }
        Play::Close => false,
    }
}
