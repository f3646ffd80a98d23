//! Text to token ids and back, with the tokenizer of the model folder.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;
use tokenizers::{
    AddedToken, DecoderWrapper, SplitDelimiterBehavior,
    models::bpe::BPE,
    normalizers::NFC,
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::{
    config::{Section, read_json},
    error::{Error, Result},
};

mod stream;

pub use stream::{Characters, StreamDecoder};

use stream::byte_level;

/// How Qwen2 and its successors cut text before byte pairs are merged: contractions, words with one leading sign,
/// single digits, signs with the line ends after them, line ends, and blanks.
const QWEN_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer of a model folder.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    origin: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or `vocab.json` with `merges.txt` where that is missing.
    pub fn open(dir: &Path) -> Result<Self> {
        let config_path = dir.join("tokenizer_config.json");
        let config = if config_path.is_file() { read_json(&config_path)? } else { Value::Null };
        let config = Section { path: &config_path, name: "", value: &config };
        for key in ["add_prefix_space", "split_special_tokens"] {
            if config.flag(key, false)? {
                return Err(config.wrong(key, "is true; only false is supported, as in every Qwen3-VL".into()));
            }
        }
        let path = dir.join("tokenizer.json");
        if path.is_file() {
            let bytes = std::fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
            let inner = tokenizers::Tokenizer::from_bytes(&bytes)
                .map_err(|problem| Error::Tokenizer { path: path.clone(), problem: problem.to_string() })?;
            check_added_tokens(&inner, &path, &config)?;
            return Self::plain(inner, &path);
        }
        let vocabulary = dir.join("vocab.json");
        if !vocabulary.is_file() || !dir.join("merges.txt").is_file() {
            return Err(Error::Folder {
                path: dir.into(),
                problem: "holds neither tokenizer.json nor vocab.json with merges.txt".into(),
            });
        }
        let inner = from_vocabulary(dir, &vocabulary, &config)?;
        Self::plain(inner, &vocabulary)
    }

    /// Cutting and padding that the file may ask for belong to batches of another kind.
    fn plain(mut inner: tokenizers::Tokenizer, path: &Path) -> Result<Self> {
        inner.with_padding(None);
        let wrong = |problem: tokenizers::Error| Error::Tokenizer { path: path.into(), problem: problem.to_string() };
        inner.with_truncation(None).map_err(wrong)?;
        Ok(Self { inner, origin: path.display().to_string() })
    }

    /// The file it was read from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The ids of a text. Added tokens such as `<|im_end|>` are recognised in it; none is put around it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|problem| self.wrong(&problem))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, special tokens left out. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|problem| self.wrong(&problem))
    }

    /// The text of ids, special tokens included.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|problem| self.wrong(&problem))
    }

    /// The id of a token, such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id as it stands in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The number of tokens, added ones included. The model may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Decodes a response while it is being made.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// Whether the text of tokens is their bytes one after the other, as in every tokenizer of Qwen.
    fn joins_bytes(&self) -> bool {
        matches!(self.inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
    }

    /// The bytes that a token stands for; none if it is unknown.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.token(id).map_or(Vec::new(), |token| byte_level(&token).unwrap_or_else(|| token.into_bytes()))
    }

    /// Whether [`Tokenizer::decode`] leaves a token out.
    fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    fn wrong(&self, problem: &tokenizers::Error) -> Error {
        Error::Tokenizer { path: self.origin.clone().into(), problem: problem.to_string() }
    }
}

fn from_vocabulary(dir: &Path, vocabulary: &Path, config: &Section) -> Result<tokenizers::Tokenizer> {
    let wrong = |problem: String| Error::Tokenizer { path: vocabulary.into(), problem };
    let merges = dir.join("merges.txt");
    let model = BPE::from_file(&vocabulary.to_string_lossy(), &merges.to_string_lossy());
    let model = model.build().map_err(|problem| wrong(problem.to_string()))?;
    let split = Split::new(SplitPattern::Regex(QWEN_SPLIT.into()), SplitDelimiterBehavior::Isolated, false)
        .map_err(|problem| wrong(problem.to_string()))?;
    let bytes = ByteLevel::new(false, true, false);
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_normalizer(Some(NFC)).map_err(|problem| wrong(problem.to_string()))?;
    inner.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Split(split),
        PreTokenizerWrapper::ByteLevel(bytes),
    ])));
    inner.with_decoder(Some(bytes));
    for (id, token) in added_tokens(config)? {
        let content = token.content.clone();
        inner.add_tokens([token]).map_err(|problem| wrong(problem.to_string()))?;
        let given = inner.token_to_id(&content);
        if given != Some(id) {
            let problem = format!("is {content:?}, but {} gives it the id {given:?}", vocabulary.display());
            return Err(config.wrong(&format!("added_tokens_decoder.{id}"), problem));
        }
    }
    Ok(inner)
}

/// transformers adds what `tokenizer_config.json` has and `tokenizer.json` has not; its id would be a matter of order.
fn check_added_tokens(inner: &tokenizers::Tokenizer, path: &Path, config: &Section) -> Result<()> {
    let known = inner.get_added_tokens_decoder();
    let listed = added_tokens(config)?;
    let unknown = |(id, token): &(&u32, &AddedToken)| known.get(id).is_none_or(|own| own.content != token.content);
    let Some((id, token)) = listed.iter().find(unknown) else { return Ok(()) };
    let problem = format!(
        "is {:?}, which is no added token of this id in {}; take it out, or copy both files from the same folder",
        token.content,
        path.display()
    );
    Err(config.wrong(&format!("added_tokens_decoder.{id}"), problem))
}

fn added_tokens(config: &Section) -> Result<BTreeMap<u32, AddedToken>> {
    let Some(listed) = config.get("added_tokens_decoder").and_then(Value::as_object) else {
        return Ok(BTreeMap::new());
    };
    let read = |(id, token): (&String, &Value)| {
        let flag = |key: &str| token[key].as_bool().unwrap_or(false);
        match (id.parse::<u32>(), token["content"].as_str()) {
            (Ok(id), Some(content)) => {
                let token = AddedToken::from(content, flag("special"))
                    .single_word(flag("single_word"))
                    .lstrip(flag("lstrip"))
                    .rstrip(flag("rstrip"))
                    .normalized(flag("normalized"));
                Ok((id, token))
            }
            _ => {
                let problem = format!("is {token}; expected a token id with its content");
                Err(config.wrong(&format!("added_tokens_decoder.{id}"), problem))
            }
        }
    };
    listed.iter().map(read).collect()
}
