//! How the server behaves under load, with clients that leave, and when it is stopped.

mod common;

use common::{Call, JSON, chat, get, metric, options, start, wait_for};
use serde_json::{Value, json};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// An answer that goes on until it is cut.
fn long(tokens: usize) -> Value {
    json!({"max_tokens": tokens, "ignore_eos": true, "messages": [{"role": "user", "content": "frozenlake plan"}]})
}

fn begin(server: &mgsd_serve::Server, body: &Value) -> Call {
    Call::send(server.address(), "POST", "/v1/chat/completions", JSON, &body.to_string())
}

#[test]
fn what_does_not_fit_the_queue_is_refused_and_the_rest_is_served() {
    let mut options = options();
    options.capacity.slots = Some(1);
    options.capacity.queue = 1;
    options.capacity.context = Some(4096);
    let server = start(&options);
    let running = begin(&server, &long(4000));
    wait_for(&server, "mgsd_active_answers", |active| active == 1.0);
    let waiting = begin(&server, &long(10));
    wait_for(&server, "mgsd_queue_length", |length| length == 1.0);
    let refused = chat(&server, &long(10));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("queue_full")));
    assert!(refused.head.to_lowercase().contains("retry-after: 1"), "{}", refused.head);
    let mut many = long(10);
    many["n"] = json!(3);
    let never = chat(&server, &many);
    assert_eq!((never.status, &never.json()["error"]["param"]), (400, &json!("n")), "three fit no queue of one");
    assert_eq!([running, waiting].map(|call| call.response().status), [200, 200]);
    many["n"] = json!(2);
    assert_eq!(chat(&server, &many).json()["choices"].as_array().map(Vec::len), Some(2));
    assert_eq!((metric(&server, "mgsd_active_answers"), metric(&server, "mgsd_queue_length")), (0.0, 0.0));
}

#[test]
fn vanished_clients_free_their_slots() {
    let mut options = options();
    options.capacity.context = Some(4096);
    let server = start(&options);
    for stream in [false, true] {
        let before = metric(&server, "mgsd_generated_tokens_total");
        let mut request = long(4000);
        request["stream"] = json!(stream);
        request["n"] = json!(6);
        let mut call = begin(&server, &request);
        wait_for(&server, "mgsd_active_answers", |active| active == 4.0);
        wait_for(&server, "mgsd_queue_length", |length| length == 2.0);
        if stream {
            assert!(call.read_some() > 0);
        }
        drop(call);
        wait_for(&server, "mgsd_active_answers", |active| active == 0.0);
        assert_eq!(metric(&server, "mgsd_queue_length"), 0.0);
        let made = metric(&server, "mgsd_generated_tokens_total") - before;
        assert!(made < 24_000.0, "{made} tokens: all were generated for nobody");
    }
    assert!(get(&server, "/metrics").text().contains("mgsd_answers_total{end=\"cancelled\"} 12"));
    assert_eq!(chat(&server, &long(3)).status, 200);
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up() {
    let server = start(&options());
    let mut slow = long(1000);
    slow["stream"] = json!(true);
    slow["logprobs"] = json!(true);
    slow["top_logprobs"] = json!(20);
    // Several megabytes of stream, of which nothing is read.
    let stuck: Vec<Call> = (0..3).map(|_| begin(&server, &slow)).collect();
    wait_for(&server, "mgsd_active_answers", |active| active == 3.0);
    assert_eq!(chat(&server, &long(50)).status, 200);
    wait_for(&server, "mgsd_active_answers", |active| active == 0.0);
    for call in stuck {
        let text = call.response().text();
        assert!(text.ends_with("data: [DONE]\n\n"), "the slow client gets the whole answer all the same");
    }
}

#[test]
fn stopping_lets_answers_end_and_refuses_new_ones() {
    let server = start(&options());
    // A connection that is open before the server begins to stop.
    let running = begin(&server, &long(400));
    wait_for(&server, "mgsd_active_answers", |active| active == 1.0);
    server.begin_drain();
    let refused = chat(&server, &long(3));
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (503, &json!("server_error")));
    assert!(refused.head.to_lowercase().contains("connection: close"), "{}", refused.head);
    assert_eq!(get(&server, "/health").status, 503);
    let address = server.address();
    let whole = std::thread::spawn(move || server.stop(&AtomicBool::new(false)));
    let response = running.response();
    assert_eq!((response.status, &response.json()["usage"]["completion_tokens"]), (200, &json!(400)));
    assert!(whole.join().expect("stop"));
    assert!(std::net::TcpStream::connect(address).is_err(), "the port is free again");
}

#[test]
fn stopping_gives_answers_up_that_take_too_long_and_says_so() {
    let mut options = options();
    options.capacity.context = Some(4096);
    options.drain = Duration::from_millis(100);
    let server = start(&options);
    let whole = begin(&server, &long(4000));
    let mut streamed = long(4000);
    streamed["stream"] = json!(true);
    let streamed = begin(&server, &streamed);
    wait_for(&server, "mgsd_active_answers", |active| active == 2.0);
    let began = Instant::now();
    assert!(!server.stop(&AtomicBool::new(false)));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let response = whole.response();
    assert_eq!((response.status, &response.json()["error"]["code"]), (503, &json!("unavailable")));
    let text = streamed.response().text();
    assert!(text.contains("\"error\"") && !text.contains("[DONE]"), "{}", &text[text.len().saturating_sub(300)..]);
}

#[test]
fn a_model_that_cannot_be_loaded_is_told_at_once() {
    let load =
        || mgsd_model::model::Qwen3Vl::load(std::path::Path::new("nowhere"), mgsd_model::model::Purpose::Inference);
    let failed = mgsd_serve::Server::start(
        &options(),
        Box::new(move || Ok(mgsd_serve::Models { model: load()?, teacher: None })),
    );
    let message = failed.err().expect("no model").to_string();
    assert!(message.contains("nowhere"), "{message}");
}
