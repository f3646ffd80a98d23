//! What the chat API answers.

mod common;

use common::{board, chat, get, options, post, start};
use mgsd_model::generate::{Completion, Generator, Request};
use mgsd_model::image::PixelLimits;
use mgsd_model::linear::Adapter;
use mgsd_model::processor::Processor;
use mgsd_model::sampling::Sampling;
use mgsd_tasks::Task;
use serde_json::{Value, json};
use std::sync::Arc;

/// The same question asked of the model without a server.
fn in_process(text: &str, sampling: Sampling, most: usize) -> (Processor, usize, Completion) {
    let processor = Processor::open(&common::nano(), PixelLimits::default()).expect("processor");
    let model = common::load().expect("model");
    let prompt = processor.prompt(&[mgsd_model::chat::Message::text("user", text)]).expect("prompt");
    let tokens = prompt.ids.len();
    let stop = model.config.eos_token_ids.clone();
    let request = Request { prompt: Arc::new(prompt), sampling, max_new_tokens: most, stop };
    let mut generator = Generator::new(&model.config, 1);
    let answers = generator.generate(&model, &[request], Adapter::On, &mut |_| {});
    (processor, tokens, answers.expect("generate").remove(0))
}

fn ask(text: &str) -> Value {
    json!({"model": "nano", "temperature": 0, "max_tokens": 200, "messages": [{"role": "user", "content": text}]})
}

fn with(mut request: Value, fields: Value) -> Value {
    for (key, value) in fields.as_object().expect("fields") {
        request[key] = value.clone();
    }
    request
}

#[test]
fn a_completion_is_what_the_model_says_without_a_server() {
    let server = start(&options());
    let (_, text, _) = board(Task::FrozenLake, 4, 1);
    let (processor, prompt_tokens, expected) = in_process(&text, Sampling::greedy(), 200);
    let response = chat(&server, &ask(&text));
    assert_eq!(response.status, 200, "{}", response.text());
    let answer = response.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], processor.tokenizer.decode(expected.content()).expect("decode"));
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["usage"]["prompt_tokens"], prompt_tokens);
    assert_eq!(answer["usage"]["completion_tokens"], expected.ids.len());
    assert_eq!(answer["usage"]["total_tokens"], prompt_tokens + expected.ids.len());
    assert_eq!(get(&server, "/v1/models").json()["data"][0]["id"], "nano");
    assert_eq!(get(&server, "/v1/models/nano").json()["object"], "model");
    assert_eq!(get(&server, "/v1/models/org/other").status, 404);
}

#[test]
fn a_picture_is_answered_and_several_are_counted() {
    let server = start(&options());
    let (instance, _, url) = board(Task::FrozenLake, 3, 5);
    let picture = json!({"type": "image_url", "image_url": {"url": url}});
    let one = json!([picture, {"type": "text", "text": "frozenlake read"}]);
    let request = |content: Value| json!({"temperature": 0, "max_completion_tokens": 100, "messages": [{"role": "user", "content": content}]});
    let answer = chat(&server, &request(one)).json();
    let text = answer["choices"][0]["message"]["content"].as_str().expect("an answer").to_string();
    // The embedded model cannot read boards well before stage 1, but it answers in the form it was taught.
    assert!(text.starts_with("1. "), "{text:?} for {}", mgsd_tasks::perception::gold(&instance.board));
    let several =
        json!([picture, {"type": "text", "text": "and"}, picture, {"type": "text", "text": "frozenlake read"}]);
    let more = chat(&server, &request(several)).json();
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().expect("usage");
    assert!(tokens(&more) > tokens(&answer) + 15, "{} and {}", tokens(&more), tokens(&answer));
}

#[test]
fn a_stream_adds_up_to_the_whole_answer() {
    let server = start(&options());
    let (_, text, _) = board(Task::MiniBehaviour, 4, 2);
    let whole = chat(&server, &with(ask(&text), json!({"logprobs": true, "top_logprobs": 3}))).json();
    let fields = json!({
        "stream": true, "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 3,
        "return_token_ids": true
    });
    let response = chat(&server, &with(ask(&text), fields));
    assert!(response.head.contains("text/event-stream"), "{}", response.head);
    let events = response.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let last = events.last().expect("events");
    assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])));
    let pieces: Vec<&Value> = events.iter().filter_map(|event| event["choices"].get(0)).collect();
    let joined: String = pieces.iter().filter_map(|piece| piece["delta"]["content"].as_str()).collect();
    assert_eq!(joined, whole["choices"][0]["message"]["content"]);
    let told = |field: &str| pieces.iter().filter_map(|p| p["logprobs"][field].as_array()).flatten().count();
    assert_eq!(told("content"), whole["choices"][0]["logprobs"]["content"].as_array().map_or(0, Vec::len));
    let ids = pieces.iter().filter_map(|piece| piece["token_ids"].as_array()).flatten().count();
    assert_eq!(ids + 1, whole["usage"]["completion_tokens"].as_u64().expect("tokens") as usize, "all but the last");
    let finishes: Vec<&Value> = pieces.iter().map(|piece| &piece["finish_reason"]).filter(|f| !f.is_null()).collect();
    assert_eq!(finishes, [&json!("stop")]);
    assert!(events.iter().all(|event| event["id"] == events[0]["id"] && event["object"] == "chat.completion.chunk"));
}

#[test]
fn log_probabilities_are_the_models_own_and_the_likeliest_come_first() {
    let server = start(&options());
    let (_, text, _) = board(Task::Maze, 3, 3);
    let (_, _, expected) = in_process(&text, Sampling::greedy(), 200);
    let answer = chat(&server, &with(ask(&text), json!({"logprobs": true, "top_logprobs": 5}))).json();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().expect("log-probabilities").clone();
    assert_eq!(content.len(), expected.content().len());
    let mut bytes = Vec::new();
    for (told, log_prob) in content.iter().zip(&expected.log_probs) {
        assert!((told["logprob"].as_f64().expect("number") - f64::from(*log_prob)).abs() < 1e-4, "{told} {log_prob}");
        let top: Vec<f64> =
            told["top_logprobs"].as_array().expect("top").iter().filter_map(|t| t["logprob"].as_f64()).collect();
        assert_eq!(top.len(), 5);
        assert!(top.is_sorted_by(|a, b| a >= b), "{top:?}");
        // Greedy: the token is the likeliest.
        assert_eq!(told["top_logprobs"][0]["token"], told["token"]);
        bytes.extend(told["bytes"].as_array().expect("bytes").iter().filter_map(|b| b.as_u64()).map(|b| b as u8));
    }
    assert_eq!(String::from_utf8(bytes).ok().as_deref(), answer["choices"][0]["message"]["content"].as_str());
}

#[test]
fn stop_texts_end_an_answer_and_are_left_out() {
    let server = start(&options());
    let (_, text, _) = board(Task::FrozenLake, 4, 1);
    let whole = chat(&server, &ask(&text)).json();
    let whole = whole["choices"][0]["message"]["content"].as_str().expect("text").to_string();
    let stop = "<answer>";
    let before = &whole[..whole.find(stop).expect("the model answers in its form")];
    for stream in [false, true] {
        let response = chat(&server, &with(ask(&text), json!({"stop": [stop, "never"], "stream": stream})));
        let pieces = if stream { response.events() } else { vec![response.json()] };
        let words = |event: &Value| {
            let choice = &event["choices"][0];
            choice["message"]["content"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or("").to_string()
        };
        assert_eq!(pieces.iter().map(words).collect::<String>(), before);
        let last = &pieces.last().expect("pieces")["choices"][0];
        assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!("stop"), &json!(stop)));
    }
    let kept = chat(&server, &with(ask(&text), json!({"stop": stop, "include_stop_str_in_output": true}))).json();
    assert_eq!(kept["choices"][0]["message"]["content"], format!("{before}{stop}"));
    let cut = chat(&server, &with(ask(&text), json!({"max_tokens": 3}))).json();
    assert_eq!(
        (&cut["choices"][0]["finish_reason"], &cut["usage"]["completion_tokens"]),
        (&json!("length"), &json!(3))
    );
}

#[test]
fn seeds_repeat_answers_and_n_answers_differ() {
    let server = start(&options());
    let (_, text, _) = board(Task::FrozenLake, 4, 7);
    let sampled = json!({"temperature": 8, "seed": 11, "n": 6, "max_tokens": 40, "top_p": 0.999, "top_k": 50, "min_p": 0.001,
        "repetition_penalty": 1.01});
    let texts = |answer: Value| -> Vec<String> {
        let choices = answer["choices"].as_array().expect("choices").clone();
        assert!(choices.iter().enumerate().all(|(at, choice)| choice["index"] == at));
        choices.iter().map(|choice| choice["message"]["content"].as_str().expect("text").to_string()).collect()
    };
    let first = texts(chat(&server, &with(ask(&text), sampled.clone())).json());
    assert_eq!(first.len(), 6);
    assert!(first.iter().any(|text| *text != first[0]), "{first:?}");
    assert_eq!(texts(chat(&server, &with(ask(&text), sampled.clone())).json()), first);
    assert_ne!(texts(chat(&server, &with(ask(&text), with(sampled, json!({"seed": 12})))).json()), first);
}

#[test]
fn any_tokens_give_the_text_that_they_decode_to_whole_and_in_pieces() {
    let server = start(&options());
    let processor = Processor::open(&common::nano(), PixelLimits::default()).expect("processor");
    let mut wrong_bytes = 0;
    for seed in 0..6 {
        let sampled = json!({"temperature": 1000, "seed": seed, "ignore_eos": true, "return_token_ids": true});
        for stream in [false, true] {
            let response = chat(&server, &with(ask("x"), with(sampled.clone(), json!({"stream": stream}))));
            let pieces = if stream { response.events() } else { vec![response.json()] };
            let (mut text, mut ids) = (String::new(), Vec::new());
            for choice in pieces.iter().filter_map(|piece| piece["choices"].get(0)) {
                let said = choice["message"]["content"].as_str().or(choice["delta"]["content"].as_str());
                text.push_str(said.unwrap_or(""));
                let told = choice["token_ids"].as_array().into_iter().flatten();
                ids.extend(told.filter_map(Value::as_u64).map(|id| id as u32));
            }
            assert_eq!(ids.len(), 200);
            assert_eq!(text, processor.tokenizer.decode(&ids).expect("decode"), "seed {seed}, stream {stream}");
            wrong_bytes += text.matches('\u{fffd}').count();
        }
    }
    assert!(wrong_bytes > 100, "{wrong_bytes}: the samples must have bytes of no character");
}

#[test]
fn the_prompt_of_n_answers_is_run_once_and_they_are_those_of_as_many_requests() {
    let mut options = options();
    options.capacity.slots = Some(8);
    let server = start(&options);
    let (_, _, url) = board(Task::FrozenLake, 4, 7);
    let content =
        json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "frozenlake plan"}]);
    let ask = |seed: usize, n: usize| {
        let messages = json!([{"role": "user", "content": content}]);
        json!({"temperature": 2, "max_tokens": 40, "seed": seed, "n": n, "messages": messages})
    };
    let run = || common::metric(&server, "mgsd_prefilled_tokens_total");
    let together = chat(&server, &ask(20, 8)).json();
    let prompt = together["usage"]["prompt_tokens"].as_f64().expect("usage");
    assert_eq!(run(), prompt, "one pass over the prompt");
    assert_eq!(common::metric(&server, "mgsd_prompt_tokens_total"), 8.0 * prompt);
    let texts: Vec<Value> = (0..8).map(|at| together["choices"][at]["message"]["content"].clone()).collect();
    for (at, text) in texts.iter().enumerate() {
        assert_eq!(&chat(&server, &ask(20 + at, 1)).json()["choices"][0]["message"]["content"], text, "answer {at}");
    }
    assert_eq!(run(), 9.0 * prompt);
    assert!(texts.iter().any(|text| *text != texts[0]), "seeds must matter: {texts:?}");
}

#[test]
fn a_long_prompt_is_refused_or_cut_when_asked_to() {
    let server = start(&options());
    let long = "frozenlake plan ".repeat(2000);
    let refused = chat(&server, &ask(&long));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    let cut = chat(&server, &with(ask(&long), json!({"truncate_prompt_tokens": 50, "max_tokens": 2}))).json();
    assert_eq!(cut["usage"]["prompt_tokens"], 50);
    let fits = chat(&server, &with(ask(&long), json!({"truncate_prompt_tokens": -1}))).json();
    assert_eq!((&fits["usage"]["prompt_tokens"], &fits["usage"]["completion_tokens"]), (&json!(1023), &json!(1)));
}

#[test]
fn errors_have_openais_shape_and_the_right_status() {
    let server = start(&options());
    let refused = |body: &Value| {
        let response = chat(&server, body);
        let error = response.json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        (response.status, error["type"].clone(), error["param"].clone())
    };
    let invalid = json!("invalid_request_error");
    assert_eq!(refused(&with(ask("x"), json!({"model": "gpt-5"}))), (404, invalid.clone(), json!("model")));
    assert_eq!(refused(&with(ask("x"), json!({"temperature": -1}))), (400, invalid.clone(), json!("temperature")));
    assert_eq!(refused(&with(ask("x"), json!({"tools": [{}]}))), (400, invalid.clone(), json!("tools")));
    assert_eq!(refused(&json!({"messages": []})), (400, invalid.clone(), json!("messages")));
    let remote = json!([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]);
    let remote = json!({"messages": [{"role": "user", "content": remote}]});
    assert_eq!(refused(&remote), (400, invalid.clone(), json!("messages[0].content[0]")));
    // The model's own marks in a text do not stand for a picture.
    assert_eq!(refused(&ask("<|image_pad|>")), (400, invalid, json!("messages")));
    let post = |headers: &str, body: &str| {
        common::Call::send(server.address(), "POST", "/v1/chat/completions", headers, body).response()
    };
    assert_eq!(post(common::JSON, "{").status, 400);
    assert_eq!(post("Content-Type: text/plain\r\n", "{}").status, 415);
    assert_eq!(get(&server, "/v1/chat/completions").status, 405);
    let lost = get(&server, "/v2/nothing");
    assert_eq!((lost.status, &lost.json()["error"]["code"]), (404, &json!("not_found")));
}

#[test]
fn large_bodies_are_refused_by_their_head_and_by_their_length() {
    let mut options = options();
    options.limits.body = 100_000;
    let server = start(&options);
    let long = ask(&"x".repeat(200_000));
    assert_eq!(chat(&server, &long).status, 413);
    let chunked = format!("{}Transfer-Encoding: chunked\r\n", common::JSON);
    let body = format!("{:x}\r\n{}\r\n0\r\n\r\n", 150_000, "x".repeat(150_000));
    let mut stream = std::net::TcpStream::connect(server.address()).expect("connect");
    use std::io::{Read as _, Write as _};
    write!(stream, "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\n{chunked}\r\n{body}").expect("send");
    let mut start = [0; 12];
    stream.read_exact(&mut start).expect("read");
    assert_eq!(&start, b"HTTP/1.1 413");
}

#[test]
fn a_key_is_asked_for_everywhere_but_on_the_page_and_the_probes() {
    let mut options = options();
    options.api_key = Some("open sesame".into());
    let server = start(&options);
    let call = |path: &str, headers: &str| common::Call::send(server.address(), "GET", path, headers, "").response();
    for headers in ["", "Authorization: Bearer open\r\n", "Authorization: Basic open sesame\r\n"] {
        let refused = call("/v1/models", headers);
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (401, &json!("invalid_api_key")));
    }
    assert_eq!(call("/v1/models", "Authorization: Bearer open sesame\r\n").status, 200);
    assert_eq!(post(&server, "/v1/chat/completions", &ask("x")).status, 401);
    assert!(["/", "/health", "/metrics"].iter().all(|path| call(path, "").status == 200));
}
