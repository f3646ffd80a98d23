//! The server: an OpenAI-compatible API over continuous batching, and the web page.
//!
//! Three layers: `openai` and `boards` turn JSON into jobs and answers into JSON, `engine` owns the model on a
//! thread of its own, `server` takes care of connections and of stopping in good order.

mod app;
mod boards;
mod body;
mod connection;
mod engine;
mod error;
mod metrics;
mod openai;
mod options;
mod page;
mod remote;
mod reply;
mod routes;
mod server;
mod stream;

pub use engine::{Capacity, Loader, ModelInfo, Models};
pub use error::{Error, Result};
pub use options::{Limits, Options, Reach, RemotePictures};
pub use server::Server;
