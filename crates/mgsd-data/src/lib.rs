//! What lies on disk: task folders, prompts, perception records, OPCD rows, the two public benchmarks.
//!
//! | module | holds |
//! |---|---|
//! | [`folder`] | task folders: instances read and written |
//! | [`prompts`] | what the models are asked and the gold answers, as template files |
//! | [`perception_sft`] | perception questions as LLaMA-Factory sharegpt JSON, and a reader for such files |
//! | [`opcd`] | rows of the distillation stage as JSON and parquet |
//! | [`benchmarks`] | readers of DiffThinker's FrozenLake maps and VisualPlanning's records |
//! | [`shapes`] | generic pictures with questions, for pretraining |
//! | [`split`] | which boards are kept for evaluation |
//! | [`message`], [`picture`] | messages and pictures as the files hold them |

pub mod benchmarks;
mod error;
mod files;
pub mod folder;
pub mod message;
pub mod opcd;
pub mod perception_sft;
pub mod picture;
pub mod prompts;
pub mod shapes;
pub mod split;

pub use error::{DataError, Result};
pub use folder::Example;
