//! Conversations with pictures, from clients that are not to be trusted: a picture is a data URL of bounded size, or was
//! fetched before.

use crate::remote::Fetched;
use crate::reply::{ApiError, Reply};
use base64::Engine as _;
use mgsd_model::chat::{Content, Message, Part, field_not_read};
use mgsd_model::image::{ImageSource, RgbImage};
use serde_json::Value;
use std::io::Cursor;
use std::sync::Arc;

use super::request::short;

/// Bounds on pictures before they are decoded.
#[derive(Clone, Copy, Debug)]
pub struct PictureLimits {
    /// Pictures in one request.
    pub count: usize,
    /// Width times height of one picture.
    pub pixels: usize,
}

/// The URLs of pictures that lie elsewhere, each once, with the place of the first part that names it.
pub fn remote_pictures(messages: &Value) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (index, message) in messages.as_array().into_iter().flatten().enumerate() {
        for (place, part) in message["content"].as_array().into_iter().flatten().enumerate() {
            let url = picture_url(part).filter(|url| part["type"] == "image_url" && is_remote(url));
            if let Some(url) = url.filter(|url| !found.iter().any(|(_, known)| known == url)) {
                found.push((format!("messages[{index}].content[{place}]"), url.to_string()));
            }
        }
    }
    found
}

fn picture_url(part: &Value) -> Option<&str> {
    part["image_url"]["url"].as_str().or_else(|| part["image_url"].as_str())
}

fn is_remote(url: &str) -> bool {
    let begins = |scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    begins("http://") || begins("https://")
}

/// Reads OpenAI-style messages. Never reads a file or the network: `fetched` holds what the URLs of
/// [`remote_pictures`] gave, if they were allowed to be asked.
pub fn conversation(messages: &Value, limits: PictureLimits, fetched: &Fetched) -> Reply<Vec<Message>> {
    let list = messages.as_array().filter(|list| !list.is_empty());
    let Some(list) = list else {
        let found = short(messages);
        return Err(ApiError::invalid(
            "messages",
            format!("messages is {found}; expected a list of at least one message"),
        ));
    };
    let mut pictures = 0;
    list.iter().enumerate().map(|(index, message)| read(index, message, limits, fetched, &mut pictures)).collect()
}

fn read(
    index: usize,
    message: &Value,
    limits: PictureLimits,
    fetched: &Fetched,
    pictures: &mut usize,
) -> Reply<Message> {
    let at = |field: &str| format!("messages[{index}].{field}");
    if let Some(field) = field_not_read(message) {
        let problem =
            format!("{} is {}: is not supported by this server; leave it out", at(field), short(&message[field]));
        return Err(ApiError::invalid(at(field), problem));
    }
    let role = match message["role"].as_str() {
        Some("developer" | "system") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        _ => {
            let found = short(&message["role"]);
            let message = format!("{} is {found}; expected system, developer, user or assistant", at("role"));
            return Err(ApiError::invalid(at("role"), message));
        }
    };
    let content = match &message["content"] {
        Value::String(text) => Content::Text(text.clone()),
        Value::Array(parts) => {
            let part = |(place, part): (usize, &Value)| {
                read_part(&at(&format!("content[{place}]")), part, limits, fetched, pictures)
            };
            Content::Parts(parts.iter().enumerate().map(part).collect::<Reply<_>>()?)
        }
        other => {
            let message = format!("{} is {}; expected a text or a list of parts", at("content"), short(other));
            return Err(ApiError::invalid(at("content"), message));
        }
    };
    Ok(Message { role: role.into(), content })
}

fn read_part(at: &str, part: &Value, limits: PictureLimits, fetched: &Fetched, pictures: &mut usize) -> Reply<Part> {
    match (part["type"].as_str(), part["text"].as_str(), picture_url(part)) {
        (Some("text"), Some(text), _) => Ok(Part::Text(text.into())),
        (Some("image_url"), _, Some(url)) => {
            *pictures += 1;
            if *pictures > limits.count {
                let message = format!("{at} is picture {pictures}; a request may have {}", limits.count);
                return Err(ApiError::invalid(at, message));
            }
            let image = picture(at, url, limits, fetched)?;
            Ok(Part::Image(ImageSource::Rgb(Arc::new(image))))
        }
        _ => Err(ApiError::invalid(
            at,
            format!(
                "{at} is {}; expected {{\"type\": \"text\", \"text\": ...}} or {{\"type\": \"image_url\", \"image_url\": \
                 {{\"url\": \"data:image/png;base64,...\"}}}}",
                short(part)
            ),
        )),
    }
}

fn picture(at: &str, url: &str, limits: PictureLimits, fetched: &Fetched) -> Reply<RgbImage> {
    let wrong = |problem: String| ApiError::invalid(at, format!("{at}: {problem}"));
    let inline;
    let (kind, bytes): (&str, &[u8]) = if let Some(bytes) = fetched.get(url) {
        ("fetched", bytes)
    } else if let Some(data) = url.strip_prefix("data:") {
        let Some((kind, data)) = data.split_once(',').filter(|(kind, _)| kind.ends_with(";base64")) else {
            return Err(wrong("the data URL is not base64; expected data:image/png;base64,...".into()));
        };
        inline = base64::engine::general_purpose::STANDARD
            .decode(data.trim())
            .map_err(|problem| wrong(format!("the data URL is not valid base64: {problem}")))?;
        (kind, &inline)
    } else {
        let start: String = url.chars().take(40).collect();
        let does = if is_remote(url) {
            "fetches no pictures unless it is started with --allow-remote-images, and opens no files"
        } else {
            "opens no files"
        };
        return Err(wrong(format!(
            "the picture's URL begins with {start:?}; this server {does}: send the picture itself as \
             data:image/png;base64,..."
        )));
    };
    let reader = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let size = reader.map_err(image::ImageError::from).and_then(image::ImageReader::into_dimensions);
    let (width, height) = size.map_err(|problem| {
        wrong(format!("the picture ({kind}) cannot be decoded: {problem}; expected a PNG or JPEG"))
    })?;
    if width as usize * height as usize > limits.pixels {
        let problem = format!("the picture has {width} x {height} pixels; expected at most {} in all", limits.pixels);
        return Err(ApiError { code: "image_too_large", ..wrong(problem) });
    }
    RgbImage::decode(bytes, "the picture").map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LIMITS: PictureLimits = PictureLimits { count: 2, pixels: 64 };

    fn data_url(side: usize) -> String {
        let png = mgsd_tasks::RgbImage::filled(side, side, [9, 8, 7]).to_png().expect("encode");
        format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png))
    }

    fn conversation(messages: &Value, limits: PictureLimits) -> Reply<Vec<Message>> {
        super::conversation(messages, limits, &Fetched::default())
    }

    fn show(url: &str) -> Value {
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    }

    #[test]
    fn texts_and_pictures_keep_their_order() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": data_url(8)}]);
        let read =
            conversation(&json!([{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]), LIMITS);
        let read = read.expect("read");
        assert_eq!((read[0].role.as_str(), read[1].role.as_str()), ("system", "user"));
        assert!(
            matches!(&read[1].content, Content::Parts(parts) if matches!(parts[..], [Part::Text(_), Part::Image(_)]))
        );
    }

    #[test]
    fn what_a_message_says_beside_its_content_is_refused() {
        let said = |field: &str, value: Value| {
            conversation(&json!([{"role": "assistant", "content": "x", field: value}]), LIMITS).map(|_| ())
        };
        for (field, value) in [
            ("tool_calls", json!([{"id": "1"}])),
            ("function_call", json!({"name": "f"})),
            ("reasoning_content", json!("because")),
        ] {
            let error = said(field, value).expect_err(field);
            assert_eq!(error.param, Some(format!("messages[0].{field}")));
            assert!(error.message.contains("leave it out"), "{}", error.message);
        }
        // What clients send that hand an answer back as it came.
        for (field, value) in [("tool_calls", json!([])), ("function_call", Value::Null), ("refusal", Value::Null)] {
            said(field, value).expect(field);
        }
    }

    #[test]
    fn files_and_the_network_are_never_touched() {
        for url in ["/etc/passwd", "file:///etc/passwd", "http://localhost/x.png", "x.png"] {
            let error = conversation(&show(url), LIMITS).expect_err(url);
            assert_eq!(error.param.as_deref(), Some("messages[0].content[0]"));
            assert!(error.message.contains("opens no files"), "{}", error.message);
        }
    }

    #[test]
    fn remote_pictures_are_found_once_with_their_place() {
        let part = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
        let content =
            json!([part("data:x"), part("http://a/1"), part("HTTPS://b/2"), part("http://a/1"), part("file:///c")]);
        let found = remote_pictures(
            &json!([{"role": "system", "content": "http://no/part"}, {"role": "user", "content": content}]),
        );
        let found: Vec<(&str, &str)> = found.iter().map(|(at, url)| (at.as_str(), url.as_str())).collect();
        assert_eq!(found, [("messages[1].content[1]", "http://a/1"), ("messages[1].content[2]", "HTTPS://b/2")]);
    }

    #[test]
    fn pictures_are_measured_before_they_are_decoded() {
        assert!(conversation(&show(&data_url(8)), LIMITS).is_ok());
        let error = conversation(&show(&data_url(9)), LIMITS).expect_err("too large");
        assert_eq!(error.code, "image_too_large");
        let one = json!({"type": "image_url", "image_url": {"url": data_url(8)}});
        let error = conversation(&json!([{"role": "user", "content": [one, one, one]}]), LIMITS).expect_err("too many");
        assert!(error.message.contains("picture 3"), "{}", error.message);
    }
}
