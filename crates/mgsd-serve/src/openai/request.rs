//! What a client may ask for, with its defaults and limits.

use crate::reply::{ApiError, Reply};
use mgsd_model::sampling::Sampling;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// Most answers to one request.
const MOST_CHOICES: usize = 64;
/// Most stop strings.
const MOST_STOPS: usize = 16;
/// Most likeliest tokens told at each place.
const MOST_TOP_LOG_PROBS: usize = 20;

/// How answers are sampled where a request does not say: the model folder's `generation_config.json`, and OpenAI's
/// defaults for what that leaves open.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingDefaults(Sampling);

impl SamplingDefaults {
    /// Reads the folder's settings. `do_sample: false` means the likeliest token, whatever temperature stands beside it.
    /// A setting that would change answers and is not followed is refused.
    pub fn of_folder(dir: &Path) -> mgsd_model::error::Result<Self> {
        let path = dir.join("generation_config.json");
        let mut sampling = Sampling::policy(0);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Self(sampling)),
            Err(source) => return Err(mgsd_model::error::Error::Read { path, source }),
        };
        let json: Value = serde_json::from_str(&text)
            .map_err(|source| mgsd_model::error::Error::Json { path: path.clone(), source })?;
        let number = |key: &str| json[key].as_f64().map(|value| value as f32);
        if let Some((field, _)) = NOT_FOLLOWED.iter().find(|(key, neutral)| asks_for_something(&json[key], neutral)) {
            let problem = format!("is {}, which this server does not follow; take it out", short(&json[field]));
            return Err(mgsd_model::error::Error::Field { path, field: (*field).into(), problem });
        }
        sampling.temperature = match json["do_sample"].as_bool() {
            Some(false) => 0.0,
            _ => number("temperature").unwrap_or(1.0),
        };
        sampling.top_p = number("top_p").unwrap_or(1.0);
        sampling.min_p = number("min_p").unwrap_or(0.0);
        sampling.top_k = json["top_k"].as_u64().unwrap_or(0) as usize;
        sampling.repetition_penalty = number("repetition_penalty").unwrap_or(1.0);
        match sampling.problem() {
            Some(problem) => {
                let field = problem.split(' ').next().unwrap_or_default().to_string();
                Err(mgsd_model::error::Error::Field { path, problem: problem[field.len()..].trim().into(), field })
            }
            None => Ok(Self(sampling)),
        }
    }
}

/// Settings of `generation_config.json` that change what transformers generates and that this server does not follow,
/// with the number that asks for nothing.
const NOT_FOLLOWED: [(&str, Option<f64>); 24] = [
    ("suppress_tokens", None),
    ("begin_suppress_tokens", None),
    ("bad_words_ids", None),
    ("force_words_ids", None),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("sequence_bias", None),
    ("constraints", None),
    ("exponential_decay_length_penalty", None),
    ("watermarking_config", None),
    ("stop_strings", None),
    ("token_healing", None),
    ("top_h", None),
    ("min_length", Some(0.0)),
    ("min_new_tokens", Some(0.0)),
    ("no_repeat_ngram_size", Some(0.0)),
    ("encoder_no_repeat_ngram_size", Some(0.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("epsilon_cutoff", Some(0.0)),
    ("eta_cutoff", Some(0.0)),
    ("typical_p", Some(1.0)),
    ("penalty_alpha", Some(0.0)),
    ("guidance_scale", Some(1.0)),
    ("num_beams", Some(1.0)),
];

fn asks_for_something(value: &Value, neutral: &Option<f64>) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(_) | Value::Number(_) => neutral.is_none() || value.as_f64() != *neutral,
    }
}

/// One string or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// OpenAI's `stream_options`.
#[derive(Clone, Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

/// The fields that are read; others are harmless and passed over, unless they are in [`REFUSED`].
#[derive(Debug, Deserialize)]
struct Fields {
    model: Option<String>,
    messages: Value,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    n: Option<u64>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    stop_token_ids: Option<Vec<u32>>,
    include_stop_str_in_output: Option<bool>,
    ignore_eos: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<bool>,
    top_logprobs: Option<u64>,
    truncate_prompt_tokens: Option<i64>,
    return_token_ids: Option<bool>,
    user: Option<String>,
}

/// Fields that would change what is generated and that this server cannot honour, with the values that ask for nothing.
const REFUSED: [(&str, &[&str]); 42] = [
    ("tools", &["[]"]),
    ("functions", &["[]"]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("logit_bias", &["{}"]),
    ("audio", &[]),
    ("modalities", &["[\"text\"]"]),
    ("prompt_logprobs", &["0"]),
    ("echo", &["false"]),
    ("best_of", &["1"]),
    ("use_beam_search", &["false"]),
    ("min_tokens", &["0"]),
    ("skip_special_tokens", &["true"]),
    ("continue_final_message", &["false"]),
    ("add_generation_prompt", &["true"]),
    ("chat_template", &[]),
    ("chat_template_kwargs", &["{}"]),
    ("add_special_tokens", &["false"]),
    ("documents", &["[]"]),
    ("mm_processor_kwargs", &["{}"]),
    ("web_search_options", &[]),
    ("enable_thinking", &["false"]),
    ("bad_words", &["[]"]),
    ("allowed_token_ids", &["[]"]),
    ("logits_processors", &["[]"]),
    ("vllm_xargs", &["{}"]),
    ("num_beams", &["1"]),
    ("length_penalty", &["1", "1.0"]),
    ("no_repeat_ngram_size", &["0"]),
    ("typical_p", &["1", "1.0"]),
    ("tfs", &["1", "1.0"]),
    ("top_a", &["0", "0.0"]),
    ("mirostat", &["0"]),
    ("xtc_probability", &["0", "0.0"]),
    ("dry_multiplier", &["0", "0.0"]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("structured_outputs", &[]),
    ("json_schema", &[]),
    ("regex", &[]),
    ("ebnf", &[]),
];

/// A request that was read and checked.
#[derive(Debug)]
pub struct ChatRequest {
    /// The conversation as it was sent.
    pub messages: Value,
    /// How tokens are chosen; the seed is that of the first answer.
    pub sampling: Sampling,
    /// Length at which an answer is cut; `None`: whatever room there is.
    pub max_tokens: Option<usize>,
    /// Number of answers.
    pub choices: usize,
    /// Texts that end an answer.
    pub stops: Vec<String>,
    /// Whether the answer keeps the text that ended it.
    pub keep_stop: bool,
    /// Further tokens that end an answer.
    pub stop_token_ids: Vec<u32>,
    /// Whether the model's own end tokens count for nothing.
    pub ignore_eos: bool,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub stream_usage: bool,
    /// How many of the likeliest tokens are told at each place, if log-probabilities are wanted.
    pub log_probs: Option<usize>,
    /// How much of the prompt's end is kept.
    pub truncate: Option<Truncate>,
    /// Whether the answer's token ids are told.
    pub token_ids: bool,
    /// Who asks, within one address.
    pub user: String,
}

/// How many tokens of a prompt's end are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// So many.
    Last(usize),
    /// As many as leave room for one token of the answer.
    ToFit,
}

impl ChatRequest {
    /// Reads a body; `served` is the only model there is.
    pub fn read(body: &[u8], served: &str, defaults: &SamplingDefaults) -> Reply<Self> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::malformed(format!("the body is not valid JSON: {error}")))?;
        if !value.is_object() {
            return Err(ApiError::malformed("the body is not a JSON object with messages"));
        }
        for (name, harmless) in REFUSED {
            let given = &value[name];
            if !given.is_null() && !harmless.contains(&given.to_string().as_str()) {
                let remedy = "is not supported by this server; leave it out";
                return Err(ApiError::invalid(name, format!("{name} is {}: {remedy}", short(given))));
            }
        }
        let fields: Fields = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            // A missing field is reported at the top, and named in the message.
            let param = if path == "." { "messages".to_string() } else { path.clone() };
            ApiError::invalid(param, format!("{path}: {}", error.inner()))
        })?;
        fields.check(served, defaults)
    }
}

/// A value for a message, cut if it is long.
pub(super) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

impl Fields {
    fn check(self, served: &str, defaults: &SamplingDefaults) -> Reply<ChatRequest> {
        if let Some(model) = self.model.as_deref().filter(|model| *model != served && !model.is_empty()) {
            return Err(ApiError::unknown_model(model, served));
        }
        let sampling = self.sampling(&defaults.0)?;
        for (name, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if value.is_some_and(|value| value != 0.0) {
                let message =
                    format!("{name} is {}; only 0 is supported, use repetition_penalty", value.unwrap_or(0.0));
                return Err(ApiError::invalid(name, message));
            }
        }
        let max_tokens = self.max_completion_tokens.or(self.max_tokens);
        if max_tokens == Some(0) {
            let name = if self.max_completion_tokens.is_some() { "max_completion_tokens" } else { "max_tokens" };
            return Err(ApiError::invalid(name, format!("{name} is 0; expected at least 1")));
        }
        let choices = self.n.unwrap_or(1) as usize;
        if !(1..=MOST_CHOICES).contains(&choices) {
            return Err(ApiError::invalid("n", format!("n is {choices}; expected 1 to {MOST_CHOICES}")));
        }
        let top = self.top_logprobs.unwrap_or(0) as usize;
        if top > MOST_TOP_LOG_PROBS {
            let message = format!("top_logprobs is {top}; expected 0 to {MOST_TOP_LOG_PROBS}");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        let log_probs = self.logprobs.unwrap_or(false);
        if top > 0 && !log_probs {
            let message = format!("top_logprobs is {top}, but logprobs is not true; set logprobs: true");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        let truncate = match self.truncate_prompt_tokens {
            None => None,
            Some(-1) => Some(Truncate::ToFit),
            Some(tokens) if tokens >= 1 => Some(Truncate::Last(tokens as usize)),
            Some(tokens) => {
                let message =
                    format!("truncate_prompt_tokens is {tokens}; expected at least 1, or -1 for as many as fit");
                return Err(ApiError::invalid("truncate_prompt_tokens", message));
            }
        };
        let usage = self.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        Ok(ChatRequest {
            sampling,
            max_tokens: max_tokens.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
            choices,
            stops: stops(self.stop)?,
            keep_stop: self.include_stop_str_in_output.unwrap_or(false),
            stop_token_ids: self.stop_token_ids.unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            stream: self.stream.unwrap_or(false),
            stream_usage: usage,
            log_probs: log_probs.then_some(top),
            truncate,
            token_ids: self.return_token_ids.unwrap_or(false),
            user: self.user.unwrap_or_default().chars().take(64).collect(),
            messages: self.messages,
        })
    }

    fn sampling(&self, defaults: &Sampling) -> Reply<Sampling> {
        let top_k = match self.top_k {
            None => defaults.top_k,
            // vLLM's way to say that it is off.
            Some(-1 | 0) => 0,
            Some(top_k) if top_k > 0 => top_k as usize,
            Some(top_k) => {
                return Err(ApiError::invalid("top_k", format!("top_k is {top_k}; expected at least 1, or -1")));
            }
        };
        let sampling = Sampling {
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k,
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            seed: self.seed.map_or_else(fresh_seed, |seed| seed as u64),
        };
        match sampling.problem() {
            Some(problem) => Err(ApiError::invalid(problem.split(' ').next().unwrap_or_default(), problem.clone())),
            None => Ok(sampling),
        }
    }
}

fn stops(given: Option<OneOrMany>) -> Reply<Vec<String>> {
    let stops = match given {
        None => Vec::new(),
        Some(OneOrMany::One(stop)) => vec![stop],
        Some(OneOrMany::Many(stops)) => stops,
    };
    if stops.len() > MOST_STOPS {
        return Err(ApiError::invalid(
            "stop",
            format!("stop has {} texts; expected at most {MOST_STOPS}", stops.len()),
        ));
    }
    if stops.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "stop holds an empty text; expected texts of at least one character"));
    }
    Ok(stops)
}

/// A seed that nobody chose: the standard library keys its hashes from the system's randomness.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Reply<ChatRequest> {
        ChatRequest::read(body.as_bytes(), "nano", &SamplingDefaults(Sampling::policy(0)))
    }

    #[test]
    fn defaults_are_openais_and_unknown_fields_are_passed_over() {
        let request =
            read(r#"{"model": "nano", "messages": [], "reasoning_effort": "low", "tools": []}"#).expect("read");
        assert_eq!((request.sampling.temperature, request.sampling.top_p, request.choices), (1.0, 1.0, 1));
        assert_eq!((request.max_tokens, request.stream, request.log_probs), (None, false, None));
    }

    #[test]
    fn fields_that_would_change_prompt_or_sampling_are_refused_when_they_ask_for_something() {
        for (name, asks, nothing) in [
            ("chat_template_kwargs", r#"{"enable_thinking": false}"#, "{}"),
            ("documents", r#"[{"text": "x"}]"#, "null"),
            ("mm_processor_kwargs", r#"{"max_pixels": 9}"#, "{}"),
            ("bad_words", r#"["x"]"#, "[]"),
            ("allowed_token_ids", "[1]", "null"),
            ("length_penalty", "0.5", "1.0"),
            ("typical_p", "0.9", "1"),
            ("guided_grammar", r#""root ::= x""#, "null"),
        ] {
            let body = |value: &str| format!(r#"{{"messages": [], "{name}": {value}}}"#);
            assert_eq!(read(&body(asks)).expect_err(name).param.as_deref(), Some(name));
            assert!(read(&body(nothing)).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_folder_that_does_not_sample_is_greedy_and_one_that_wants_what_is_not_followed_is_refused() {
        let dir = tempfile::tempdir().expect("folder");
        let of = |text: &str| {
            std::fs::write(dir.path().join("generation_config.json"), text).expect("written");
            SamplingDefaults::of_folder(dir.path())
        };
        let greedy =
            of(r#"{"do_sample": false, "temperature": 0.7, "num_beams": 1, "suppress_tokens": []}"#).expect("read");
        assert_eq!(greedy.0.temperature, 0.0);
        let asked = ChatRequest::read(br#"{"messages": [], "temperature": 0.5}"#, "nano", &greedy).expect("read");
        assert_eq!(asked.sampling.temperature, 0.5);
        assert_eq!(of(r#"{"do_sample": true, "temperature": 0.7}"#).expect("read").0.temperature, 0.7);
        for (key, value) in [
            ("suppress_tokens", "[3]"),
            ("forced_eos_token_id", "0"),
            ("no_repeat_ngram_size", "3"),
            ("min_new_tokens", "4"),
            ("bad_words_ids", "[[1]]"),
            ("sequence_bias", "[[[1],2.0]]"),
        ] {
            let error = of(&format!(r#"{{"{key}": {value}}}"#)).expect_err(key).to_string();
            assert!(
                error.contains("generation_config.json") && error.contains(key) && error.contains(value),
                "{error}"
            );
        }
    }

    #[test]
    fn errors_name_the_field_and_what_was_expected() {
        for (body, param, words) in [
            (r#"{"messages": [], "temperature": -1}"#, "temperature", "0 (greedy) or more"),
            (r#"{"messages": [], "temperature": "hot"}"#, "temperature", "invalid type: string"),
            (r#"{"messages": [], "n": 0}"#, "n", "expected 1 to 64"),
            (r#"{"messages": [], "top_logprobs": 3}"#, "top_logprobs", "set logprobs: true"),
            (r#"{"messages": [], "stop": ["a", ""]}"#, "stop", "empty text"),
            (r#"{"messages": [], "tools": [{"type": "function"}]}"#, "tools", "leave it out"),
            (r#"{"messages": [], "max_tokens": 0}"#, "max_tokens", "at least 1"),
            (r#"{"messages": [], "truncate_prompt_tokens": -7}"#, "truncate_prompt_tokens", "or -1"),
            (r#"{"messages": [], "model": "gpt"}"#, "model", "expected \"nano\""),
            (r#"{"n": 1}"#, "messages", "missing field `messages`"),
        ] {
            let error = read(body).expect_err(body);
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
            assert!(error.message.contains(words), "{body}: {}", error.message);
        }
    }
}
