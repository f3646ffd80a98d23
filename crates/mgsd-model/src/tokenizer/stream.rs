//! From tokens to text while they come: every piece is of whole characters, and all pieces together are the text of all
//! tokens.

use super::Tokenizer;
use crate::error::Result;

/// What is kept between tokens: the bytes of a character that is not complete.
#[derive(Debug, Default)]
pub struct Characters {
    begun: Vec<u8>,
    /// Where the folder's decoder does more than to join bytes: all tokens so far, and how much of their text is out.
    ids: Vec<u32>,
    out: usize,
}

impl Characters {
    /// Takes a token and gives the text that is certain now, possibly none.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        if !tokenizer.joins_bytes() {
            return self.decode_again(tokenizer, id);
        }
        if !tokenizer.is_special(id) {
            self.begun.extend(tokenizer.token_bytes(id));
        }
        let incomplete = incomplete_end(&self.begun);
        let rest = self.begun.split_off(self.begun.len() - incomplete);
        let certain = std::mem::replace(&mut self.begun, rest);
        Ok(String::from_utf8_lossy(&certain).into_owned())
    }

    /// What is left when no token comes any more.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let begun = std::mem::take(&mut self.begun);
        let text = tokenizer.decode(&std::mem::take(&mut self.ids))?;
        let out = std::mem::take(&mut self.out);
        Ok(text.get(out..).unwrap_or_default().to_string() + &String::from_utf8_lossy(&begun))
    }

    /// Decodes all tokens each time, and keeps back a replacement sign at the end: it may be a character begun.
    fn decode_again(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids)?;
        let certain = text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text);
        let piece = certain.get(self.out..).unwrap_or_default().to_string();
        self.out += piece.len();
        Ok(piece)
    }
}

/// Number of bytes at the end that further ones may complete to a character.
fn incomplete_end(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    // Bytes that no others can make right are an error of a known length.
    let waits = std::str::from_utf8(last).is_err_and(|problem| problem.error_len().is_none());
    if waits { last.len() } else { 0 }
}

/// The bytes of a token in the byte-level alphabet of GPT-2, where printable bytes stand for themselves and the others
/// for the characters from U+0100 on, in order; `None` if the token is not written in it.
pub(super) fn byte_level(token: &str) -> Option<Vec<u8>> {
    let byte = |c: char| match c as u32 {
        c @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(c as u8),
        c @ 0x100..=0x120 => Some((c - 0x100) as u8),
        c @ 0x121..=0x142 => Some((c - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    };
    token.chars().map(byte).collect()
}

/// Decodes a response while it is being made.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    characters: Characters,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, characters: Characters::default() }
    }

    /// Takes a token and gives the text that is certain now, possibly none.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.characters.push(self.tokenizer, id)
    }

    /// What is left when no token comes any more.
    pub fn finish(&mut self) -> Result<String> {
        self.characters.finish(self.tokenizer)
    }
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

    #[test]
    fn only_a_character_that_can_still_be_completed_is_held_back() {
        for (bytes, held) in [
            (&b"ab"[..], 0),
            (&[0xe2, 0x80], 2),
            (&[b'a', 0xff], 0),
            (&[0xff, 0xf0, 0x9f, 0x99], 3),
            (&[0xe2, 0x80, 0xe6], 1),
            (&[0x80], 0),
            (&[0xed, 0xa0], 0),
            ("é".as_bytes(), 0),
        ] {
            assert_eq!(incomplete_end(bytes), held, "{bytes:x?}");
        }
    }
}
