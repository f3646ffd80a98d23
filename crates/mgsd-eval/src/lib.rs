//! Evaluation: who answers (a model in process, later an endpoint), planning and perception measured over boards,
//! summaries, the modality gap, and the report that people read.

pub mod cases;
pub mod client;
pub mod demo;
pub mod error;
pub mod gap;
pub mod json;
pub mod perception;
pub mod plan;
pub mod report;
pub mod rows;
pub mod run;
pub mod stats;
pub mod summary;

pub use error::{Error, Result};
