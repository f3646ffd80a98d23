//! What can go wrong while training, said so that it can be mended.

use std::path::{Path, PathBuf};

/// Any failure of a training run.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A key of the recipe is unknown, missing or has a value that makes no sense.
    #[error("{file}: key `{key}`{}: {expected}", .value.as_ref().map(|v| format!(" has the value {v}")).unwrap_or_default())]
    Recipe {
        /// The recipe file, or a name for a recipe held in memory.
        file: String,
        /// Dotted key.
        key: String,
        /// The value as written, when there is one.
        value: Option<String>,
        /// What would have been right.
        expected: String,
    },
    /// A file could not be read or written.
    #[error("{}: {what}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done with it.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file was read but does not hold what it should.
    #[error("{}: {what}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, what was expected, how to mend it.
        what: String,
    },
    /// A training example cannot be used.
    #[error("sample {sample}: {what}")]
    Sample {
        /// Name of the example.
        sample: String,
        /// What is wrong with it.
        what: String,
    },
    /// The data or model side failed.
    #[error("{context}: {message}")]
    Other {
        /// What was being done.
        context: String,
        /// The other side's own message.
        message: String,
    },
    /// Loss or gradient norm is NaN or infinite.
    #[error(
        "step {step}: {quantity} is {value}; the weights were not changed by this step. Samples of the step: {}. Last good checkpoint: {}. \
         Lower optimiser.lr, or look at these samples, and continue with --resume",
        .samples.join(", "),
        .checkpoint.as_ref().map_or("none yet".to_string(), |p| p.display().to_string())
    )]
    NonFinite {
        /// The step that failed, counted from 1.
        step: u64,
        /// Which number it was.
        quantity: &'static str,
        /// Its value.
        value: f64,
        /// Names of the samples in the step.
        samples: Vec<String>,
        /// The newest complete checkpoint.
        checkpoint: Option<PathBuf>,
    },
    /// The caller's stop flag was raised; a checkpoint was written first.
    #[error("stopped after step {step}; continue with --resume from {}", .checkpoint.display())]
    Interrupted {
        /// Steps done.
        step: u64,
        /// Where to continue.
        checkpoint: PathBuf,
    },
}

/// Result of anything in this crate.
pub type Result<T> = std::result::Result<T, TrainError>;

impl TrainError {
    pub(crate) fn io(path: &Path, what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, what, source }
    }

    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_path_buf(), what: what.into() }
    }

    pub(crate) fn other<E: std::fmt::Display>(context: impl Into<String>) -> impl FnOnce(E) -> Self {
        let context = context.into();
        move |error| Self::Other { context, message: error.to_string() }
    }
}
