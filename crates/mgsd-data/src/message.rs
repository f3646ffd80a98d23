//! A chat message as the data files hold it, and its content split at the places of its pictures.

use serde::{Deserialize, Serialize};

/// Marks the place of a picture in a message.
pub const IMAGE_MARK: &str = "<image>";

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that come before the conversation.
    System,
    /// The question.
    User,
    /// The answer.
    Assistant,
}

/// One message; pictures are marked by [`IMAGE_MARK`] in the content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Message { role: Role::User, content: content.into() }
    }

    /// A message of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Message { role: Role::Assistant, content: content.into() }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Message { role: Role::System, content: content.into() }
    }
}

/// A stretch of a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// Text between pictures, never empty.
    Text(&'a str),
    /// The next picture.
    Image,
}

/// Splits content at its [`IMAGE_MARK`]s; empty stretches of text are left out.
pub fn parts(content: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    for (index, text) in content.split(IMAGE_MARK).enumerate() {
        if index > 0 {
            parts.push(Part::Image);
        }
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
    }
    parts
}

/// How many pictures the content asks for.
pub fn image_count(content: &str) -> usize {
    content.matches(IMAGE_MARK).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_split_at_its_pictures_in_order() {
        assert_eq!(
            parts("look: <image>\n<image>plan"),
            vec![Part::Text("look: "), Part::Image, Part::Text("\n"), Part::Image, Part::Text("plan")]
        );
        assert_eq!(parts("<image>"), vec![Part::Image]);
        assert_eq!(image_count("a<image>b<image>"), 2);
    }
}
