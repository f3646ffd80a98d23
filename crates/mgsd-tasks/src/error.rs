//! What can go wrong, said with the field, the value and the way to mend it.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of an instance text is missing or holds a value that makes no sense.
    #[error("field `{field}`: {problem}")]
    Field {
        /// Name of the field in the text.
        field: String,
        /// What was found, what was expected.
        problem: String,
    },
    /// A board breaks the rules of its task.
    #[error("{task} board: {problem}")]
    Board {
        /// The task whose rules are broken.
        task: crate::Task,
        /// What is wrong.
        problem: String,
    },
    /// An option of the generator cannot be satisfied.
    #[error("{option} = {value}: {problem}")]
    Option {
        /// Name of the option as on the command line, without dashes.
        option: &'static str,
        /// The value given.
        value: String,
        /// What is accepted.
        problem: String,
    },
    /// A file is there that boards of other options wrote.
    #[error(
        "{path}: is there already, and these options would not write it so; choose another folder, or remove this one",
        path = path.display()
    )]
    Occupied {
        /// The file.
        path: PathBuf,
    },
    /// The generator gave up looking for a board.
    #[error("{task} level {level}, seed {seed}: {problem}")]
    Exhausted {
        /// The task.
        task: crate::Task,
        /// Side of the board.
        level: usize,
        /// Seed of the sample that could not be made.
        seed: u64,
        /// Why, and what to change.
        problem: String,
    },
    /// A name that stands for nothing known.
    #[error("unknown {what} {value:?}; expected {expected}")]
    Unknown {
        /// Kind of name (`task`, `difficulty`, `action`).
        what: &'static str,
        /// The text found.
        value: String,
        /// The accepted texts.
        expected: &'static str,
    },
    /// A picture could not be encoded or decoded.
    #[error("{path}: {problem}", path = path.display())]
    Image {
        /// The file (or a description when there is none).
        path: PathBuf,
        /// What the codec said.
        problem: String,
    },
    /// Reading or writing a file failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Field { field: field.into(), problem: problem.into() }
    }

    pub(crate) fn board(task: crate::Task, problem: impl Into<String>) -> Self {
        Error::Board { task, problem: problem.into() }
    }
}
