//! The endpoint client against a server on loopback that behaves well and badly.

mod server;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use mgsd_eval::client::{Answer, Client, Message, Request};
use mgsd_eval::endpoint::{Address, ApiKey, EndpointClient, EndpointOptions};
use server::{Play, Seen, Server, completion, error, question};

const MS: Duration = Duration::from_millis(1);

fn options(urls: &[String]) -> EndpointOptions {
    let endpoints = urls.iter().map(|url| Address::parse(url).expect("address")).collect();
    EndpointOptions {
        concurrency: 4,
        timeout: 2000 * MS,
        backoff: 5 * MS,
        rest: 30 * MS,
        outage: 300 * MS,
        ..EndpointOptions::new(endpoints, "some/model-name")
    }
}

fn requests(count: usize) -> Vec<Request> {
    let request = |index: usize| Request {
        messages: vec![Message::user(&format!("question {index}"), &[])],
        max_new_tokens: 50,
        temperature: 0.0,
        top_p: 1.0,
        seed: index as u64,
    };
    (0..count).map(request).collect()
}

/// All answers in the order of the questions, `None` where there is none, and how the run ended.
fn ask(options: EndpointOptions, count: usize) -> (Vec<Option<Answer>>, Result<(), String>, EndpointClient) {
    let mut client = EndpointClient::new(options).expect("client");
    let mut answers = vec![None; count];
    let end = client.answer(&requests(count), &mut |index, answer| {
        assert!(answers[index].replace(answer).is_none(), "question {index} is answered twice");
        Ok(())
    });
    (answers, end.map_err(|error| error.to_string()), client)
}

fn echo(seen: &Seen) -> Play {
    completion(&format!("re: {}", question(seen)))
}

fn all_right(answers: &[Option<Answer>]) {
    for (index, answer) in answers.iter().enumerate() {
        let answer = answer.as_ref().expect("an answer");
        assert_eq!((answer.error.as_deref(), answer.text.as_str()), (None, format!("re: question {index}").as_str()));
    }
}

fn error_of(answer: &Option<Answer>) -> &str {
    answer.as_ref().and_then(|answer| answer.error.as_deref()).expect("an error")
}

#[test]
fn answers_come_in_any_order_with_their_tokens_and_never_more_at_once_than_asked_for() {
    let server = Server::start(|number, seen| Play::After(((number % 3) as u32 * 20 + 10) * MS, Box::new(echo(seen))));
    let (answers, end, client) = ask(options(&[server.url()]), 20);
    assert_eq!(end, Ok(()));
    all_right(&answers);
    assert_eq!(answers[3].as_ref().and_then(|answer| answer.prompt_tokens), Some(100));
    let spent = client.spent().expect("counts");
    assert_eq!((spent.requests, spent.retries, spent.prompt_tokens, spent.answer_tokens), (20, 0, 2000, 400));
    assert_eq!(server.most_at_once(), 4);
    let seen = &server.seen()[0];
    assert_eq!((seen.path.as_str(), &seen.body["model"]), ("/v1/chat/completions", &"some/model-name".into()));
    assert!(!seen.headers.contains_key("authorization"));
}

#[test]
fn too_many_requests_waits_as_long_as_it_is_told() {
    let server = Server::start(|number, seen| match number {
        0 => Play::Reply(429, vec![("retry-after", "0.4".into())], "{}".into()),
        _ => echo(seen),
    });
    let begun = Instant::now();
    let (answers, end, client) = ask(EndpointOptions { concurrency: 1, ..options(&[server.url()]) }, 3);
    assert_eq!(end, Ok(()));
    all_right(&answers);
    let seen = server.seen();
    assert!(seen[1].at - seen[0].at >= 400 * MS, "{:?}", seen[1].at - seen[0].at);
    assert!(begun.elapsed() < 1500 * MS);
    assert_eq!(client.spent().map(|spent| spent.retries), Some(1));
}

#[test]
fn a_pause_that_is_too_long_fails_the_question_and_says_so() {
    let server = Server::start(|_, _| Play::Reply(429, vec![("retry-after", "86400".into())], "{}".into()));
    let (answers, _, _) = ask(options(&[server.url()]), 1);
    assert!(error_of(&answers[0]).contains("86400 s"), "{}", error_of(&answers[0]));
}

#[test]
fn server_errors_broken_bodies_and_wrong_json_are_asked_again() {
    let server = Server::start(|number, seen| match number {
        0 => error(500, "oops"),
        1 => Play::BreakOff,
        2 => Play::Reply(200, Vec::new(), "{\"choices\": [{\"message\": {\"cont".into()),
        3 => Play::Close,
        4 => Play::Reply(200, Vec::new(), "<html>gateway</html>".into()),
        5 => error(503, "loading"),
        _ => echo(seen),
    });
    let (answers, end, client) = ask(EndpointOptions { attempts: 8, ..options(&[server.url()]) }, 8);
    assert_eq!(end, Ok(()));
    all_right(&answers);
    assert_eq!(client.spent().map(|spent| (spent.requests, spent.retries)), Some((14, 6)));
}

#[test]
fn a_question_that_keeps_failing_ends_with_its_reason_and_the_others_go_on() {
    let server = Server::start(|_, seen| match question(seen).as_str() {
        "question 2" => error(500, "this one always breaks"),
        _ => echo(seen),
    });
    let (answers, end, _) = ask(EndpointOptions { attempts: 3, ..options(&[server.url()]) }, 6);
    assert_eq!(end, Ok(()));
    let said = error_of(&answers[2]);
    assert!(said.contains("HTTP 500: this one always breaks") && said.contains("3 attempts"), "{said}");
    let asked = server.seen().iter().filter(|seen| question(seen) == "question 2").count();
    assert_eq!(asked, 3);
    assert_eq!(answers.iter().filter(|answer| answer.as_ref().is_some_and(|answer| answer.error.is_none())).count(), 5);
}

#[test]
fn a_bad_request_is_not_repeated() {
    let server = Server::start(|_, seen| match question(seen).as_str() {
        "question 1" => error(400, "too long"),
        _ => echo(seen),
    });
    let (answers, end, client) = ask(options(&[server.url()]), 3);
    assert_eq!(end, Ok(()));
    assert!(error_of(&answers[1]).contains("HTTP 400: too long"));
    assert_eq!(client.spent().map(|spent| spent.requests), Some(3));
}

#[test]
fn when_every_question_is_rejected_the_run_ends_early() {
    let server = Server::start(|_, _| error(400, "no such parameter: seed"));
    let (_, end, client) = ask(EndpointOptions { hopeless_after: 5, ..options(&[server.url()]) }, 500);
    let end = end.expect_err("hopeless");
    assert!(end.contains("5 questions failed") && end.contains("no such parameter: seed"), "{end}");
    assert!(client.spent().is_some_and(|spent| spent.requests < 20));
}

#[test]
fn a_slow_answer_times_out_and_is_asked_again() {
    let server = Server::start(|number, seen| match number {
        0 => Play::After(900 * MS, Box::new(echo(seen))),
        _ => echo(seen),
    });
    let begun = Instant::now();
    let (answers, end, _) = ask(EndpointOptions { timeout: 200 * MS, concurrency: 1, ..options(&[server.url()]) }, 2);
    assert_eq!(end, Ok(()));
    all_right(&answers);
    assert!(begun.elapsed() < 800 * MS, "{:?}", begun.elapsed());
}

#[test]
fn a_dead_endpoint_is_left_out_and_taken_back_when_it_comes_up() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let late = free.local_addr().expect("address");
    drop(free);
    let steady = Server::start(|_, seen| Play::After(10 * MS, Box::new(echo(seen))));
    let urls = [format!("http://{late}"), steady.url()];
    let waker = std::thread::spawn(move || {
        std::thread::sleep(200 * MS);
        let listener = TcpListener::bind(late).expect("the port is still free");
        Server::on(listener, |_, seen| Play::After(10 * MS, Box::new(echo(seen))))
    });
    let (answers, end, client) = ask(options(&urls), 250);
    let revived = waker.join().expect("thread");
    assert_eq!(end, Ok(()));
    all_right(&answers);
    assert!(revived.seen().len() > 20, "the revived endpoint got {} questions", revived.seen().len());
    let wasted = client.spent().map_or(0, |spent| spent.retries);
    assert!((1..20).contains(&wasted), "{wasted} attempts went to the dead endpoint");
}

#[test]
fn without_any_endpoint_the_run_ends_and_names_the_reason() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody = format!("http://{}", free.local_addr().expect("address"));
    drop(free);
    let begun = Instant::now();
    let (answers, end, _) = ask(EndpointOptions { attempts: 100, ..options(std::slice::from_ref(&nobody)) }, 50);
    let end = end.expect_err("nobody is there");
    assert!(end.contains(&nobody) && end.contains("refused") && end.contains("--resume"), "{end}");
    assert!(begun.elapsed() < 3000 * MS && answers.iter().all(Option::is_none));
}

#[test]
fn the_key_goes_into_its_header_and_into_no_message() {
    let secret = "sk-very-secret";
    let server = Server::start(|_, seen| error(401, &format!("bad key {}", seen.headers["authorization"])));
    let key = ApiKey::new(secret, "test").expect("key");
    let (_, end, _) = ask(EndpointOptions { key: Some(key.clone()), ..options(&[server.url()]) }, 30);
    let end = end.expect_err("refused");
    assert!(end.contains("HTTP 401: bad key Bearer [api key]") && !end.contains(secret), "{end}");
    assert_eq!(server.seen()[0].headers["authorization"], format!("Bearer {secret}"));
    assert!(server.seen().len() <= 4, "a refused key is not tried again");

    let other = Server::start(|_, seen| echo(seen));
    let named = EndpointOptions { key: Some(key), key_header: Some("api-key".into()), ..options(&[other.url()]) };
    assert!(!format!("{named:?}").contains(secret));
    let (answers, _, _) = ask(named, 1);
    all_right(&answers);
    assert_eq!(other.seen()[0].headers["api-key"], secret);
    assert!(!other.seen()[0].headers.contains_key("authorization"));
}

#[test]
fn one_endpoint_that_refuses_us_does_not_stop_the_other() {
    let closed = Server::start(|_, _| error(404, "no such model"));
    let open = Server::start(|_, seen| echo(seen));
    let (answers, end, client) = ask(options(&[closed.url(), open.url()]), 12);
    assert_eq!(end, Ok(()));
    all_right(&answers);
    assert!(closed.seen().len() <= 4);
    assert_eq!(client.spent().map(|spent| spent.retries), Some(0));
}

#[test]
fn a_redirect_is_not_followed() {
    let goal = Server::start(|_, seen| echo(seen));
    let to = goal.url();
    let server = Server::start(move |_, _| Play::Reply(307, vec![("location", to.clone())], String::new()));
    let (_, end, _) = ask(options(&[server.url()]), 1);
    assert!(end.expect_err("redirect").contains("a redirect"));
    assert!(goal.seen().is_empty());
}

#[test]
fn the_budget_counts_attempts_and_leaves_the_rest_unasked() {
    let server = Server::start(|number, seen| if number % 2 == 0 { error(500, "again") } else { echo(seen) });
    let options = EndpointOptions { max_requests: Some(10), concurrency: 1, ..options(&[server.url()]) };
    let (answers, end, client) = ask(options, 40);
    assert_eq!((end, server.seen().len()), (Ok(()), 10));
    assert_eq!(answers.iter().flatten().count(), 5);
    assert!(answers.iter().flatten().all(|answer| answer.error.is_none()), "what was not asked has no row");
    assert!(client.spent().is_some_and(|spent| spent.budget_used_up));
}

#[test]
fn an_error_of_the_caller_ends_the_run_at_once() {
    let server = Server::start(|_, seen| Play::After(5 * MS, Box::new(echo(seen))));
    let mut client = EndpointClient::new(options(&[server.url()])).expect("client");
    let end = client.answer(&requests(400), &mut |_, _| {
        Err(mgsd_eval::Error::Client { client: "test".into(), message: "disk full".into() })
    });
    assert!(end.expect_err("the caller's error").to_string().contains("disk full"));
    assert!(server.seen().len() < 40);
}
