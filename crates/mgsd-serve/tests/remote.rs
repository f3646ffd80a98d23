//! Pictures that a request names by their address.

mod common;

use common::{Call, JSON, board, chat, get, metric, options, start};
use mgsd_serve::{Options, Reach, RemotePictures};
use mgsd_tasks::Task;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A server of pictures and of everything that can go wrong with them.
struct Shelf {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Shelf {
    fn open(png: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (png, count) = (png.clone(), Arc::clone(&count));
                std::thread::spawn(move || answer(stream.expect("accept"), &png, &count));
            }
        });
        Self { address, asked }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

fn answer(mut stream: std::net::TcpStream, png: &[u8], count: &AtomicUsize) {
    let mut lines = BufReader::new(stream.try_clone().expect("clone")).lines();
    let line = lines.next().expect("a request").expect("read");
    lines.map_while(Result::ok).find(String::is_empty);
    count.fetch_add(1, Ordering::SeqCst);
    let path = line.split(' ').nth(1).expect("a path").to_string();
    let head = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n");
    // A client that gives up in between is what some of the tests are about.
    let _ = match path.strip_prefix("/hop/").and_then(|left| left.parse::<usize>().ok()) {
        Some(0) => write!(stream, "{}", head("302 Found", "Location: /board.png\r\nContent-Length: 0\r\n")),
        Some(left) => {
            let more = format!("Location: /hop/{}\r\nContent-Length: 0\r\n", left - 1);
            write!(stream, "{}", head("302 Found", &more))
        }
        None if path == "/board.png" => {
            let head = head("200 OK", &format!("Content-Length: {}\r\n", png.len()));
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(png))
        }
        None if path == "/endless" => {
            let _ = stream.write_all(head("200 OK", "").as_bytes());
            (0..1000).try_for_each(|_| stream.write_all(&[0; 1 << 16]))
        }
        None if path == "/text" => write!(stream, "{}no picture", head("200 OK", "Content-Length: 10\r\n")),
        None if path == "/silent" => {
            std::thread::sleep(Duration::from_secs(3));
            Ok(())
        }
        None => write!(stream, "{}", head("404 Not Found", "Content-Length: 0\r\n")),
    };
}

fn allowed(reach: Reach) -> Options {
    Options { remote: Some(RemotePictures { reach, time: Duration::from_millis(1500) }), ..options() }
}

fn asking(urls: &[&str]) -> Value {
    let mut content: Vec<Value> =
        urls.iter().map(|url| json!({"type": "image_url", "image_url": {"url": url}})).collect();
    content.push(json!({"type": "text", "text": "frozenlake read"}));
    json!({"temperature": 0, "max_tokens": 60, "messages": [{"role": "user", "content": content}]})
}

fn png_of(data_url: &str) -> Vec<u8> {
    use base64::Engine as _;
    let (_, data) = data_url.split_once(',').expect("a data URL");
    base64::engine::general_purpose::STANDARD.decode(data).expect("base64")
}

#[test]
fn a_fetched_picture_is_answered_like_the_same_picture_sent() {
    let (_, _, sent) = board(Task::FrozenLake, 4, 3);
    let shelf = Shelf::open(png_of(&sent));
    let server = start(&allowed(Reach::Anywhere));
    let expected = chat(&server, &asking(&[&sent, &sent])).json();
    let (near, far) = (shelf.url("/board.png"), shelf.url("/hop/1"));
    let answer = chat(&server, &asking(&[&near, &near])).json();
    assert_eq!(answer["choices"], expected["choices"], "{answer}");
    assert_eq!(answer["usage"], expected["usage"]);
    assert_eq!(shelf.asked.load(Ordering::SeqCst), 1, "one address is asked once a request");
    assert_eq!(chat(&server, &asking(&[&far, &near])).json()["choices"], expected["choices"], "two redirects");
}

#[test]
fn nothing_is_fetched_unless_it_is_allowed() {
    let shelf = Shelf::open(Vec::new());
    let server = start(&options());
    let refused = chat(&server, &asking(&[&shelf.url("/board.png")]));
    let error = &refused.json()["error"];
    assert_eq!((refused.status, &error["param"]), (400, &json!("messages[0].content[0]")));
    assert!(error["message"].as_str().is_some_and(|text| text.contains("--allow-remote-images")), "{error}");
    assert_eq!(shelf.asked.load(Ordering::SeqCst), 0);
}

#[test]
fn private_addresses_are_not_asked_however_they_are_written() {
    let shelf = Shelf::open(Vec::new());
    let server = start(&allowed(Reach::Public));
    let port = shelf.address.port();
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "0x7f.1", "127.1"] {
        let refused = chat(&server, &asking(&[&format!("http://{host}:{port}/board.png")]));
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["code"]), (400, &json!("invalid_image_url")), "{host}: {error}");
        assert_eq!(shelf.asked.load(Ordering::SeqCst), 0, "{host}");
    }
    let refused = chat(&server, &asking(&["http://127.0.0.1/x.png"])).json();
    let said = refused["error"]["message"].as_str().expect("a message").to_string();
    assert!(said.contains("--allow-private-addresses"), "{said}");
    assert_eq!(chat(&server, &asking(&["file:///etc/passwd"])).status, 400);
}

#[test]
fn what_goes_wrong_is_told_with_its_place() {
    let (_, _, sent) = board(Task::FrozenLake, 3, 1);
    let shelf = Shelf::open(png_of(&sent));
    let mut options = allowed(Reach::Anywhere);
    options.limits.body = 200_000;
    let server = start(&options);
    let good = shelf.url("/board.png");
    for (path, code, words) in [
        ("/missing", "invalid_image_url", "answered 404"),
        ("/hop/5", "invalid_image_url", "redirected more than 3 times"),
        ("/endless", "image_too_large", "--max-body-mib"),
        ("/silent", "invalid_image_url", "took too long"),
        ("/text", "invalid_value", "cannot be decoded"),
    ] {
        let refused = chat(&server, &asking(&[&good, &shelf.url(path)]));
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["code"]), (400, &json!(code)), "{path}: {error}");
        assert_eq!(error["param"], "messages[0].content[1]", "{path}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(words)), "{path}: {error}");
    }
    let many: Vec<String> = (0..17).map(|number| shelf.url(&format!("/{number}"))).collect();
    let before = shelf.asked.load(Ordering::SeqCst);
    assert_eq!(chat(&server, &asking(&many.iter().map(String::as_str).collect::<Vec<_>>())).status, 400);
    assert_eq!(shelf.asked.load(Ordering::SeqCst), before, "too many pictures are refused before any is fetched");
}

#[test]
fn a_server_that_does_not_answer_holds_nobody_up() {
    let shelf = Shelf::open(Vec::new());
    let server = start(&allowed(Reach::Anywhere));
    let body = asking(&[&shelf.url("/silent")]).to_string();
    // More than there are threads to prepare requests, and than fetches that may be under way.
    let stuck: Vec<Call> =
        (0..20).map(|_| Call::send(server.address(), "POST", "/v1/chat/completions", JSON, &body)).collect();
    while shelf.asked.load(Ordering::SeqCst) < 16 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let began = Instant::now();
    assert_eq!(get(&server, "/health").status, 200);
    assert_eq!(chat(&server, &asking(&[])).status, 200);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let mut statuses: Vec<u16> = stuck.into_iter().map(|call| call.response().status).collect();
    statuses.sort_unstable();
    assert_eq!((statuses[0], statuses[15]), (400, 400), "{statuses:?}");
    assert!(statuses[16..].iter().all(|status| matches!(status, 400 | 429)), "{statuses:?}");
    assert_eq!(metric(&server, "mgsd_active_answers"), 0.0);
}
