//! What can go wrong in an evaluation, with the file, the line and the value in the message.

use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done, such as "reading".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A line of a JSONL file is not the record that was expected.
    #[error(
        "{path}, line {line}: {message}; expected one JSON object a line as `mgsd eval` writes them; remove the line to have its case answered again"
    )]
    Row {
        /// The file.
        path: PathBuf,
        /// Its line, counted from 1.
        line: usize,
        /// What the reader found.
        message: String,
    },
    /// A JSON file is not what was expected.
    #[error("{path}: {message}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        message: String,
    },
    /// A folder holds nothing of what is needed.
    #[error("{path} holds none of what is needed: expected {expected}")]
    Empty {
        /// The folder.
        path: PathBuf,
        /// What was expected, and how to mend it.
        expected: &'static str,
    },
    /// A value given by the caller cannot be used.
    #[error("{field}: {value:?}: {expected}")]
    Value {
        /// The field or option.
        field: &'static str,
        /// Its value.
        value: String,
        /// What was expected, and how to mend it.
        expected: String,
    },
    /// The client could not answer at all (a single failed answer is recorded in its row instead).
    #[error("client {client}: {message}")]
    Client {
        /// The client's name.
        client: String,
        /// What it said.
        message: String,
    },
    /// A board, a prompt or a picture could not be prepared.
    #[error("case {case_id}: {message}")]
    Case {
        /// The case.
        case_id: String,
        /// What failed.
        message: String,
    },
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] closure for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
