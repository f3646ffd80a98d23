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
            processor.tokenizer.token(id).and_then(|token| byte_level(&token)).unwrap_or_else(|| token.clone().into())
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

/// The bytes of a token in the byte-level alphabet of GPT-2, where printable bytes stand for themselves and the others
/// for the characters from U+0100 on, in order.
fn byte_level(token: &str) -> Option<Vec<u8>> {
    let itself = |c: u32| matches!(c, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others: Vec<u8> = (0..=255u32).filter(|c| !itself(*c)).map(|c| c as u8).collect();
    let byte = |c: char| match c as u32 {
        c if itself(c) => Some(c as u8),
        c => others.get((c as usize).checked_sub(0x100)?).copied(),
    };
    token.chars().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_read_back() {
        assert_eq!(byte_level("Ġa"), Some(b" a".to_vec()));
        assert_eq!(byte_level("ÃĊ"), Some(vec![0xc3, b'\n']));
        assert_eq!(byte_level("ł"), Some(vec![0xa0]));
        assert_eq!(byte_level("Ń"), Some(vec![0xad]));
        assert_eq!(byte_level("日"), None);
    }
}
