//! OpenAI's chat API: requests in, answers out, whole or streamed.

mod chat;
mod messages;
mod objects;
mod prepare;
mod request;
mod text;

pub use chat::{completions, model, models};
pub use messages::{PictureLimits, conversation};
pub use prepare::{check_prompt, held_bytes};
pub use request::SamplingDefaults;
