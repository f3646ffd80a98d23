//! From messages with picture marks to token sequences.

use crate::error::{Result, TrainError};
use crate::packing::Sample;
use mgsd_data::message::{self, Message, Role};
use mgsd_model::chat;
use mgsd_model::image::ImageSource;
use mgsd_model::processor::{Processor, Prompt};

/// A conversation before tokenisation.
pub(crate) struct Conversation {
    /// For messages about it.
    pub(crate) name: String,
    pub(crate) messages: Vec<Message>,
    /// As many as the messages have picture marks, in order.
    pub(crate) pictures: Vec<ImageSource>,
}

impl Conversation {
    /// The conversation as the chat template wants it.
    fn chat(&self) -> Result<Vec<chat::Message>> {
        let marks: usize = self.messages.iter().map(|message| message::image_count(&message.content)).sum();
        if marks != self.pictures.len() {
            return Err(self.wrong(format!(
                "{marks} picture marks ({}) but {} pictures",
                message::IMAGE_MARK,
                self.pictures.len()
            )));
        }
        let mut pictures = self.pictures.iter();
        let turn = |message: &Message| {
            let role = match message.role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
            };
            if message::image_count(&message.content) == 0 {
                return chat::Message::text(role, message.content.clone());
            }
            let parts = message::parts(&message.content).into_iter().filter_map(|part| match part {
                message::Part::Text(text) => Some(chat::Part::Text(text.to_string())),
                message::Part::Image => pictures.next().cloned().map(chat::Part::Image),
            });
            chat::Message::parts(role, parts.collect())
        };
        Ok(self.messages.iter().map(turn).collect())
    }

    /// A sequence with its labels, at most `limit` tokens long.
    pub(crate) fn sample(self, processor: &Processor, limit: usize) -> Result<Sample> {
        let example = processor.example(&self.chat()?).map_err(|error| self.wrong(error))?;
        let mut sample = Sample { name: self.name, prompt: example.prompt, labelled: example.labelled };
        sample.limit(limit)?;
        Ok(sample)
    }

    /// A sequence after which the assistant is to speak.
    pub(crate) fn prompt(&self, processor: &Processor) -> Result<Prompt> {
        processor.prompt(&self.chat()?).map_err(|error| self.wrong(error))
    }

    fn wrong(&self, what: impl std::fmt::Display) -> TrainError {
        TrainError::Sample { sample: self.name.clone(), what: what.to_string() }
    }
}
