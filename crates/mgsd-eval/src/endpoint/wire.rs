//! Questions as the chat completions API wants them.

use base64::Engine as _;
use serde_json::{Map, Value, json};

use crate::client::{Message, Part, Request};

/// What the length limit is called. Servers of open models know `max_tokens`; newer hosted ones only the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LengthField {
    /// `max_tokens`.
    #[default]
    MaxTokens,
    /// `max_completion_tokens`.
    MaxCompletionTokens,
}

/// How the content of a message is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContentForm {
    /// A list of parts where there is a picture, otherwise a plain string.
    #[default]
    Auto,
    /// Always a list of parts.
    Parts,
    /// Always a plain string; a picture is then an error.
    Plain,
}

/// Whether an optional field is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Field {
    /// It is sent.
    #[default]
    Sent,
    /// The server refuses it: left out.
    LeftOut,
}

/// What a provider wants to be written differently.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dialect {
    /// Name of the length limit.
    pub length: LengthField,
    /// Form of the content.
    pub content: ContentForm,
    /// The seed.
    pub seed: Field,
    /// `temperature` and `top_p`.
    pub sampling: Field,
    /// `detail` of a picture, such as `high`; not sent when none.
    pub image_detail: Option<String>,
    /// Further fields of the request, which replace ours of the same name.
    pub extra: Map<String, Value>,
}

/// The JSON of a request.
pub(super) fn body(model: &str, request: &Request, dialect: &Dialect) -> Result<Value, String> {
    let messages: Vec<Value> =
        request.messages.iter().map(|message| self::message(message, dialect)).collect::<Result<_, _>>()?;
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    body.insert("messages".into(), messages.into());
    let length = match dialect.length {
        LengthField::MaxTokens => "max_tokens",
        LengthField::MaxCompletionTokens => "max_completion_tokens",
    };
    body.insert(length.into(), request.max_new_tokens.into());
    if dialect.sampling == Field::Sent {
        body.insert("temperature".into(), number(request.temperature));
        if request.top_p < 1.0 {
            body.insert("top_p".into(), number(request.top_p));
        }
    }
    if dialect.seed == Field::Sent {
        // Servers keep it in a signed number.
        body.insert("seed".into(), (request.seed & i64::MAX as u64).into());
    }
    for (name, value) in &dialect.extra {
        body.insert(name.clone(), value.clone());
    }
    Ok(Value::Object(body))
}

/// An `f32` with its own short digits (0.7, not 0.699999988079071).
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().unwrap_or(f64::from(value)).into()
}

fn message(message: &Message, dialect: &Dialect) -> Result<Value, String> {
    let has_picture = message.parts.iter().any(|part| matches!(part, Part::Picture(_)));
    let plain = match dialect.content {
        ContentForm::Auto => !has_picture,
        ContentForm::Parts => false,
        ContentForm::Plain if has_picture => {
            return Err(
                "a picture cannot be sent as a plain string; leave --content out, or use --modality text".into()
            );
        }
        ContentForm::Plain => true,
    };
    let content: Value = if plain {
        let texts = message.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Picture(_) => None,
        });
        texts.collect::<String>().into()
    } else {
        let parts: Vec<Value> =
            message.parts.iter().map(|part| self::part(part, dialect)).collect::<Result<_, String>>()?;
        parts.into()
    };
    Ok(json!({"role": message.role, "content": content}))
}

fn part(part: &Part, dialect: &Dialect) -> Result<Value, String> {
    Ok(match part {
        Part::Text(text) => json!({"type": "text", "text": text}),
        Part::Picture(picture) => {
            let (kind, bytes) = picture.encoded()?;
            let url = format!("data:{kind};base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes));
            let mut image = json!({"url": url});
            if let Some(detail) = &dialect.image_detail {
                image["detail"] = detail.as_str().into();
            }
            json!({"type": "image_url", "image_url": image})
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Picture;
    use mgsd_tasks::RgbImage;

    fn request(pictures: &[Picture]) -> Request {
        Request {
            messages: vec![Message::user("<image>what is this?", pictures)],
            max_new_tokens: 5,
            temperature: 0.7,
            top_p: 1.0,
            seed: u64::MAX,
        }
    }

    #[test]
    fn a_picture_goes_as_a_data_url_and_text_alone_as_a_string() {
        let picture = Picture::drawn(|| Ok(RgbImage::filled(8, 8, [1, 2, 3])));
        let with = body("m", &request(&[picture]), &Dialect::default()).expect("body");
        let parts = with["messages"][0]["content"].as_array().expect("parts");
        assert!(
            parts[0]["image_url"]["url"].as_str().is_some_and(|url| url.starts_with("data:image/png;base64,iVBOR"))
        );
        assert_eq!(parts[1], json!({"type": "text", "text": "what is this?"}));
        let without = body("m", &request(&[]), &Dialect::default()).expect("body");
        assert_eq!(without["messages"][0]["content"], "what is this?");
        assert_eq!((&without["max_tokens"], &without["temperature"]), (&json!(5), &json!(0.7)));
        assert!(without["seed"].as_i64().is_some() && without.get("top_p").is_none());
    }

    #[test]
    fn a_dialect_renames_leaves_out_and_adds() {
        let dialect = Dialect {
            length: LengthField::MaxCompletionTokens,
            content: ContentForm::Parts,
            seed: Field::LeftOut,
            sampling: Field::LeftOut,
            image_detail: Some("high".into()),
            extra: json!({"reasoning_effort": "low", "model": "other"}).as_object().cloned().unwrap_or_default(),
        };
        let body = body("m", &request(&[]), &dialect).expect("body");
        assert_eq!(body["messages"][0]["content"], json!([{"type": "text", "text": "what is this?"}]));
        assert_eq!((&body["max_completion_tokens"], &body["reasoning_effort"]), (&json!(5), &json!("low")));
        assert_eq!(body["model"], "other");
        for absent in ["max_tokens", "seed", "temperature"] {
            assert!(body.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn a_picture_cannot_go_as_a_plain_string() {
        let picture = Picture::drawn(|| Ok(RgbImage::filled(8, 8, [1, 2, 3])));
        let dialect = Dialect { content: ContentForm::Plain, ..Dialect::default() };
        assert!(body("m", &request(&[picture]), &dialect).expect_err("picture").contains("--modality text"));
    }
}
