//! How much a run would ask for, roughly, before anything is asked.

use serde::Serialize;

use crate::client::{Part, Request};

/// A rough count of what requests would use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Requests, without repeats.
    pub requests: u64,
    /// Tokens of the questions: a token for four bytes of text and for 32 x 32 pixels of a picture (as Qwen3-VL counts;
    /// providers differ by a factor of a few).
    pub prompt_tokens: u64,
    /// Tokens of the answers if each were as long as allowed.
    pub most_answer_tokens: u64,
}

/// Tokens that begin and end a message.
const FRAME: u64 = 8;

/// Counts requests; draws their pictures to know their size.
///
/// # Errors
/// In words, when a picture cannot be drawn or read.
pub fn estimate(requests: &[Request]) -> Result<Estimate, String> {
    let mut sum = Estimate::default();
    for request in requests {
        sum.requests += 1;
        sum.most_answer_tokens += request.max_new_tokens as u64;
        for message in &request.messages {
            sum.prompt_tokens += FRAME;
            for part in &message.parts {
                sum.prompt_tokens += match part {
                    Part::Text(text) => (text.len() as u64).div_ceil(4),
                    Part::Picture(picture) => {
                        let (_, bytes) = picture.encoded()?;
                        let (width, height) = png_size(&bytes).unwrap_or((256, 256));
                        width.div_ceil(32) * height.div_ceil(32) + 2
                    }
                };
            }
        }
    }
    Ok(sum)
}

/// Width and height in a PNG's first chunk.
fn png_size(bytes: &[u8]) -> Option<(u64, u64)> {
    let number = |at: usize| Some(u64::from(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?)));
    bytes.starts_with(b"\x89PNG").then_some(())?;
    Some((number(16)?, number(20)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Message, Picture};
    use mgsd_tasks::RgbImage;

    #[test]
    fn text_and_pictures_are_counted() {
        let picture = Picture::drawn(|| Ok(RgbImage::filled(256, 128, [0; 3])));
        let request = Request {
            messages: vec![Message::user("<image>four", &[picture])],
            max_new_tokens: 100,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
        };
        let sum = estimate(&[request.clone(), request]).expect("estimate");
        assert_eq!(sum, Estimate { requests: 2, prompt_tokens: 2 * (8 + 8 * 4 + 2 + 1), most_answer_tokens: 200 });
    }
}
