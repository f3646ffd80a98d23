//! The page and its own API.

mod common;

use common::{board, chat, get, options, post, start};
use mgsd_tasks::Task;
use serde_json::{Value, json};

#[test]
fn boards_of_all_tasks_are_made_drawn_and_described() {
    let server = start(&options());
    let info = get(&server, "/api/info").json();
    assert_eq!((&info["model"], &info["teacher"], &info["prompts"]), (&json!("nano"), &json!(true), &json!("compact")));
    for (task, level) in [("frozenlake", 4), ("maze", 4), ("minibehaviour", 5)] {
        let made = post(&server, "/api/generate", &json!({"task": task, "level": level, "seed": 3})).json();
        assert_eq!((&made["board"]["task"], &made["side"]), (&json!(task), &json!(level)), "{made}");
        assert!(made["picture"].as_str().is_some_and(|url| url.starts_with("data:image/png;base64,iVBOR")));
        let again = post(&server, "/api/board", &json!({"board": made["board"]})).json();
        assert_eq!(again, made, "the same board is described in the same way");
        let answer = format!("<answer>{}</answer>", made["plan"].as_str().expect("a plan"));
        let walk = post(&server, "/api/walk", &json!({"board": made["board"], "answer": answer})).json();
        assert_eq!(walk["score"]["optimal_success"], true, "{walk}");
        // The picture's place is there exactly where the modality has one.
        assert!(made["messages"]["image"]["plan"].to_string().contains("\"url\":\"board\""));
        assert!(!made["messages"]["text"].to_string().contains("image_url"));
    }
}

#[test]
fn boards_that_break_the_rules_are_refused_with_the_reason() {
    let server = start(&options());
    let refused = |path: &str, body: Value, words: &str| {
        let response = post(&server, path, &body);
        let message = response.json()["error"]["message"].as_str().expect("message").to_string();
        assert!(response.status == 400 && message.contains(words), "{} {message}", response.status);
    };
    refused("/api/generate", json!({"task": "maze", "level": 21}), "at most 20");
    refused("/api/generate", json!({"task": "maze", "level": 4, "difficulty": "mean"}), "easy, medium or hard");
    refused("/api/generate", json!({"task": "chess", "level": 4}), "unknown variant `chess`");
    refused("/api/board", json!({"board": {"task": "frozenlake", "rows": ["FF", "FG"]}}), "a start S and a goal G");
    refused("/api/walk", json!({"board": {"task": "frozenlake", "rows": ["SF", "FG"]}}), "missing field `answer`");
}

#[test]
fn the_divergence_is_zero_where_teacher_and_student_see_the_same_and_not_elsewhere() {
    let server = start(&options());
    let (_, text, url) = board(Task::Maze, 4, 9);
    let seen = json!([{"role": "user", "content": text}]);
    let ask = json!({"messages": seen, "temperature": 0, "logprobs": true, "return_token_ids": true, "max_tokens": 60});
    let answer = chat(&server, &ask).json();
    let choice = &answer["choices"][0];
    let compare = |student: &Value| {
        let body = json!({"messages": student, "teacher_messages": seen, "token_ids": choice["token_ids"]});
        let response = post(&server, "/api/kl", &body);
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    };
    let same = compare(&seen);
    let told = choice["logprobs"]["content"].as_array().expect("log-probabilities");
    assert_eq!(same["tokens"].as_array().map(Vec::len), Some(told.len()));
    for (token, told) in same["tokens"].as_array().expect("tokens").iter().zip(told) {
        assert_eq!(token["text"], told["token"]);
        let score = |name: &str| token["score"][name].as_f64().expect("number");
        assert!(score("kl").abs() < 1e-5, "{token}");
        let log_prob = told["logprob"].as_f64().expect("number");
        assert!((score("student_log_prob") - log_prob).abs() < 1e-3, "{token} {told}");
    }
    let picture = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "maze plan"}]}]);
    let other = compare(&picture);
    assert!(other["mean_kl"].as_f64().is_some_and(|mean| mean > 0.1), "{}", other["mean_kl"]);
    let empty = json!({"messages": seen, "teacher_messages": seen, "token_ids": []});
    assert_eq!(post(&server, "/api/kl", &empty).status, 400);
    let outside = json!({"messages": seen, "teacher_messages": seen, "token_ids": [1, 999999]});
    let outside = post(&server, "/api/kl", &outside);
    assert!(outside.status == 400 && outside.text().contains("outside the vocabulary"), "{}", outside.text());
}

#[test]
fn the_page_loads_nothing_from_elsewhere_and_all_its_files_are_there() {
    let server = start(&options());
    let page = get(&server, "/");
    assert!(page.head.contains("text/html") && page.head.contains("default-src 'none'"), "{}", page.head);
    let mut waiting = vec!["/page/page.css".to_string(), "/page/page.js".to_string()];
    let mut seen = Vec::new();
    while let Some(path) = waiting.pop() {
        let file = get(&server, &path);
        assert_eq!(file.status, 200, "{path}");
        let text = file.text();
        let imported = text.lines().filter_map(|line| line.split("from \"./").nth(1)?.split('"').next());
        for name in imported.map(|name| format!("/page/{name}")) {
            if !seen.contains(&name) && !waiting.contains(&name) {
                waiting.push(name);
            }
        }
        let foreign = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!foreign.contains("http://") && !foreign.contains("https://"), "{path} names another host");
        seen.push(path);
    }
    assert_eq!(seen.len(), 7, "{seen:?}");
}
