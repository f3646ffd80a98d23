//! The JSON objects of answers, as OpenAI's clients read them.

use crate::engine::Token;
use mgsd_model::processor::Processor;
use serde::Serialize;

/// How many tokens it took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// Tokens of the prompt, pictures included.
    pub prompt_tokens: usize,
    /// Tokens of all answers.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
}

impl Usage {
    /// The usage of answers to one prompt.
    pub fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

/// A token with its log-probability.
#[derive(Clone, Debug, Serialize)]
pub struct Likelihood {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Likelihood {
    fn new(processor: &Processor, id: u32, log_prob: f32) -> Self {
        let token = processor.tokenizer.decode_with_special(&[id]).unwrap_or_default();
        let bytes = if token.contains(char::REPLACEMENT_CHARACTER) {
            processor.tokenizer.token_bytes(id)
        } else {
            token.clone().into()
        };
        // JSON has no infinities; no token that is told has a probability below this.
        Self { token, logprob: log_prob.max(-9999.0), bytes }
    }
}

/// A token of the answer, with the likeliest at its place.
#[derive(Clone, Debug, Serialize)]
pub struct TokenLogProbs {
    #[serde(flatten)]
    chosen: Likelihood,
    top_logprobs: Vec<Likelihood>,
}

impl TokenLogProbs {
    /// What is told about a token.
    pub fn new(processor: &Processor, token: &Token) -> Self {
        let top = token.top.iter().map(|(id, log_prob)| Likelihood::new(processor, *id, *log_prob));
        Self { chosen: Likelihood::new(processor, token.id, token.log_prob), top_logprobs: top.collect() }
    }
}

/// Log-probabilities of an answer or a piece of one.
#[derive(Clone, Debug, Serialize)]
pub struct LogProbs {
    /// One entry a token.
    pub content: Vec<TokenLogProbs>,
}

/// The words of the assistant.
#[derive(Clone, Debug, Serialize)]
pub struct Spoken {
    /// `assistant`, in the first piece of a stream and in whole answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// What ended an answer besides its length: a stop text, or a token that is none of the model's own end tokens.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// One of `stop`.
    Text(String),
    /// One of `stop_token_ids`.
    Token(u32),
}

/// One of the answers, whole or in part.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// From 0.
    pub index: usize,
    /// The whole answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Spoken>,
    /// What is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<Spoken>,
    /// If asked for.
    pub logprobs: Option<LogProbs>,
    /// `stop` or `length`, once the answer has ended.
    pub finish_reason: Option<&'static str>,
    /// vLLM's addition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// vLLM's addition, if asked for: the tokens of this answer, or of this piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// An answer, or a piece of one.
#[derive(Clone, Debug, Serialize)]
pub struct Completion<'a> {
    /// The same in all pieces.
    pub id: &'a str,
    /// `chat.completion` or `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The served model's name.
    pub model: &'a str,
    /// The answers.
    pub choices: Vec<Choice>,
    /// In whole answers; in streams null until the last piece, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}
