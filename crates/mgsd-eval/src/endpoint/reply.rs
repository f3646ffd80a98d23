//! What came back, and what that means for the request and for the endpoint.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

use crate::client::Answer;

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// With an answer.
    Answered(Answer),
    /// The question itself is refused: asking again would not help.
    Rejected(String),
    /// The endpoint refuses us (key, model): others may not.
    Refused(String),
    /// There is nothing at this address: the same, unless there was something before.
    Missing(String),
    /// Too many questions; the wait that the server asks for, if it says.
    Busy(String, Option<Duration>),
    /// The endpoint stumbled: worth another try.
    Failed(String),
    /// Nobody is there.
    Unreachable(String),
}

/// The most of a server's message that is kept.
const MOST_SHOWN: usize = 300;

#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Reply>,
    finish_reason: Option<String>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    content: Value,
    #[serde(default)]
    refusal: Option<String>,
}

/// Counts that make no sense are not there: no reason to throw an answer away.
#[derive(Deserialize)]
struct Usage {
    #[serde(default, deserialize_with = "count")]
    prompt_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    completion_tokens: Option<u64>,
}

fn count<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let whole = |number: f64| (number >= 0.0 && number.fract() == 0.0).then_some(number as u64);
    Ok(value.as_u64().or_else(|| value.as_f64().and_then(whole)))
}

/// Reads a response. `wait` is what its headers ask for.
pub(super) fn read(status: u16, wait: Option<Duration>, bytes: &[u8]) -> Outcome {
    let said = || format!("HTTP {status}: {}", message(bytes));
    match status {
        200..=299 => completion(bytes),
        300..=399 => Outcome::Refused(format!("HTTP {status}: a redirect; give the address that it leads to")),
        401 => Outcome::Refused(said()),
        404 | 405 => Outcome::Missing(said()),
        // A quota that is used up comes back as 429 at some providers, and no wait mends it.
        429 if message(bytes).contains("insufficient_quota") => Outcome::Refused(said()),
        429 => Outcome::Busy(said(), wait),
        503 if wait.is_some() => Outcome::Busy(said(), wait),
        408 | 409 | 425 | 500 | 502..=599 => Outcome::Failed(said()),
        _ => Outcome::Rejected(said()),
    }
}

fn completion(bytes: &[u8]) -> Outcome {
    let value: Value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        Err(error) => return Outcome::Failed(format!("the answer is no JSON ({error}): {}", shorten(bytes))),
    };
    // Some gateways report an error under status 200.
    if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
        let code = error.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        return match code {
            Some(code @ 400..=599) => read(code, None, bytes),
            _ => Outcome::Failed(format!("the server reports an error: {}", message(bytes))),
        };
    }
    let completion: Completion = match serde_json::from_value(value) {
        Ok(completion) => completion,
        Err(error) => {
            return Outcome::Failed(format!("the answer is no chat completion ({error}): {}", shorten(bytes)));
        }
    };
    let usage = completion.usage;
    let Some(Choice { message, finish_reason, error }) = completion.choices.into_iter().next() else {
        return Outcome::Failed(format!("the answer has no choices[0]: {}", shorten(bytes)));
    };
    let finish = finish_reason.unwrap_or_default();
    // What the server broke off is not the model's answer.
    if error.is_some() || ["error", "abort"].contains(&finish.as_str()) {
        return Outcome::Failed(format!("the server broke the answer off: {}", shorten(bytes)));
    }
    if finish == "content_filter" {
        return Outcome::Rejected("the server's content filter kept the answer back".into());
    }
    let Some(reply) = message else {
        return Outcome::Failed(format!("the answer has no choices[0].message: {}", shorten(bytes)));
    };
    let text = text(&reply.content).or(reply.refusal).unwrap_or_default();
    Outcome::Answered(Answer {
        text,
        tokens: usage.as_ref().and_then(|usage| usage.completion_tokens),
        prompt_tokens: usage.as_ref().and_then(|usage| usage.prompt_tokens),
        truncated: finish == "length",
        error: None,
    })
}

/// The text of a content: a string, or the texts of a list of parts.
fn text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => Some(parts.iter().filter_map(|part| part.get("text")?.as_str()).collect()),
        _ => None,
    }
}

/// What an error body says: its `error.message` with code or type, its `detail`, or its beginning.
fn message(bytes: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return shorten(bytes) };
    let error = value.get("error").unwrap_or(&value);
    let named = ["message", "detail", "error"].iter().find_map(|name| error.get(name)?.as_str()).or(error.as_str());
    let Some(text) = named else { return shorten(bytes) };
    let kind = ["code", "type"].iter().find_map(|name| error.get(name)?.as_str());
    match kind {
        Some(kind) if !text.contains(kind) => shorten(format!("{text} ({kind})").as_bytes()),
        _ => shorten(text.as_bytes()),
    }
}

/// The beginning of a body on one line.
fn shorten(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MOST_SHOWN)]);
    let line: Vec<&str> = text.split_whitespace().collect();
    let line = line.join(" ");
    match line.char_indices().nth(MOST_SHOWN) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None if line.is_empty() => "(empty)".to_string(),
        None => line,
    }
}

/// The wait in `Retry-After`: seconds (fractions allowed), or a date.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let then = UNIX_EPOCH.checked_add(Duration::from_secs(http_date(value)?))?;
    Some(then.duration_since(now).unwrap_or_default())
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let dated = (1970..=9999).contains(&year) && (1..=31).contains(&day);
    if words.next()? != "GMT" || !dated || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days before a month, with March as the first month of a year: leap days then come last.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    (days.checked_sub(719_468)? * 24 + hour).checked_mul(3600)?.checked_add(minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(body: &str) -> Answer {
        match read(200, None, body.as_bytes()) {
            Outcome::Answered(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_is_read_from_a_string_from_parts_or_from_a_refusal() {
        let answer = answered(
            r#"{"choices":[{"message":{"content":"up"},"finish_reason":"length"}],"usage":{"prompt_tokens":9,"completion_tokens":2}}"#,
        );
        assert_eq!((answer.text.as_str(), answer.tokens, answer.prompt_tokens), ("up", Some(2), Some(9)));
        assert!(answer.truncated);
        for (usage, tokens) in [("100.0", Some(100)), ("-1", None), ("1.5", None), ("\"9\"", None), ("null", None)] {
            let body =
                format!(r#"{{"choices":[{{"message":{{"content":"up"}}}}],"usage":{{"completion_tokens":{usage}}}}}"#);
            assert_eq!(answered(&body).tokens, tokens, "{usage}");
        }
        let parts = r#"{"choices":[{"message":{"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}}]}"#;
        assert_eq!(answered(parts).text, "ab");
        assert_eq!(answered(r#"{"choices":[{"message":{"content":null,"refusal":"no"}}]}"#).text, "no");
        assert_eq!(answered(r#"{"choices":[{"message":{"content":null},"finish_reason":"length"}]}"#).text, "");
    }

    #[test]
    fn each_status_says_whether_to_ask_again() {
        let kind = |status, body: &str| match read(status, None, body.as_bytes()) {
            Outcome::Answered(_) => "answered",
            Outcome::Rejected(_) => "rejected",
            Outcome::Refused(_) => "refused",
            Outcome::Missing(_) => "missing",
            Outcome::Busy(..) => "busy",
            Outcome::Failed(_) | Outcome::Unreachable(_) => "failed",
        };
        for status in [400, 402, 403, 413, 422, 501] {
            assert_eq!(kind(status, "{}"), "rejected", "{status}");
        }
        for status in [301, 401] {
            assert_eq!(kind(status, "{}"), "refused", "{status}");
        }
        for status in [404, 405] {
            assert_eq!(kind(status, "{}"), "missing", "{status}");
        }
        // Answers that the server broke off are not the model's.
        for choice in [
            r#"{"message":{"content":""},"finish_reason":"error","error":{"code":502}}"#,
            r#"{"message":{"content":"up"},"finish_reason":"abort"}"#,
            r#"{"error":{"code":502}}"#,
        ] {
            assert_eq!(kind(200, &format!(r#"{{"choices":[{choice}]}}"#)), "failed", "{choice}");
        }
        let kept_back = r#"{"choices":[{"message":{"content":"up"},"finish_reason":"content_filter"}]}"#;
        assert_eq!(kind(200, kept_back), "rejected");
        for status in [408, 500, 502, 503, 504, 529] {
            assert_eq!(kind(status, ""), "failed", "{status}");
        }
        assert_eq!(kind(429, "{}"), "busy");
        assert_eq!(kind(429, r#"{"error":{"message":"pay","code":"insufficient_quota"}}"#), "refused");
        assert_eq!(kind(200, r#"{"error":{"message":"slow down","code":429}}"#), "busy");
        for broken in ["", "<html>", "{}", r#"{"choices":[]}"#, r#"{"choices":[{"message":{"content":"#] {
            assert_eq!(kind(200, broken), "failed", "{broken}");
        }
    }

    #[test]
    fn a_servers_message_is_shown_and_a_page_is_cut() {
        let Outcome::Rejected(said) = read(400, None, br#"{"error":{"message":"too long","type":"invalid"}}"#) else {
            panic!("400 is a rejection");
        };
        assert_eq!(said, "HTTP 400: too long (invalid)");
        assert!(message("<p>\n x".repeat(1000).as_bytes()).len() < 2 * MOST_SHOWN);
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("Thu, 29 Feb 2024 00:00:00 GMT", UNIX_EPOCH), Some(Duration::from_secs(1_709_164_800)));
        assert_eq!(retry_after(" 2 ", now), Some(Duration::from_secs(2)));
        assert_eq!(retry_after("0.5", now), Some(Duration::from_millis(500)));
        let far = "Sun, 06 Nov 500000000000 08:49:37 GMT";
        for nothing in ["soon", "-1", "", "Sun, 06 Foo 1994 08:49:37 GMT", far, "Sun, 06 Nov 1994 99:99:99 GMT"] {
            assert_eq!(retry_after(nothing, now), None, "{nothing}");
        }
    }
}
