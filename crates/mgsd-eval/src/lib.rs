//! Evaluation: who answers (a model in process, or an OpenAI-compatible endpoint), planning and perception measured over boards,
//! summaries, the modality gap, and the report that people read.

pub mod analysis;
pub mod board_key;
pub mod cases;
pub mod client;
pub mod compare;
pub mod demo;
pub mod endpoint;
pub mod error;
pub mod failures;
pub mod gap;
mod gap_table;
pub mod json;
pub mod perception;
pub mod plan;
pub mod report;
pub mod rows;
pub mod run;
pub mod settings;
pub mod several;
pub mod stats;
pub mod summary;
mod sync;

pub use error::{Error, Result};
