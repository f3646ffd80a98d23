//! The one error type of this crate: it names the file, the place in it, and how to mend it.

use std::path::{Path, PathBuf};

/// Result with [`DataError`].
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// What went wrong while reading or writing data on disk.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder could not be read or written.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried ("read", "write", "list").
        action: &'static str,
        /// The operating system's word on it.
        source: std::io::Error,
    },
    /// A file holds something other than what its format asks for.
    #[error("{path}: {place}: {problem}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Record and field, for instance `record 3, field "images"`.
        place: String,
        /// What was found, what was expected, how to mend it.
        problem: String,
    },
    /// A folder has nothing of what was asked for.
    #[error("{path}: {problem}")]
    Missing {
        /// The folder or file.
        path: PathBuf,
        /// What is missing and where it was looked for.
        problem: String,
    },
    /// A prompt template is broken or uses a variable that does not exist.
    #[error("prompt template {name}: {problem}")]
    Prompt {
        /// File name of the template, with its folder when it is not an embedded one.
        name: String,
        /// The template engine's message.
        problem: String,
    },
    /// An option has a value that makes no sense.
    #[error("option {name} = {value}: {problem}")]
    Option {
        /// Name of the option.
        name: &'static str,
        /// The value given.
        value: String,
        /// What was expected.
        problem: String,
    },
}

impl DataError {
    /// An input or output error of `path`.
    pub(crate) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        DataError::Io { path: path.to_path_buf(), action, source }
    }

    /// A format error at `place` in `path`.
    pub(crate) fn format(path: &Path, place: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        DataError::Format { path: path.to_path_buf(), place: place.into(), problem: problem.to_string() }
    }

    /// Something that should be at `path` and is not.
    pub(crate) fn missing(path: &Path, problem: impl Into<String>) -> Self {
        DataError::Missing { path: path.to_path_buf(), problem: problem.into() }
    }
}
