//! What can go wrong with a model folder, a prompt or a picture, always with the place and the value named.

use std::{io, path::PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{} is not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// A field of a file is missing or has a value that cannot be used.
    #[error("{}: {field} {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, dotted from the top of the file.
        field: String,
        /// The value found, and what was expected.
        problem: String,
    },
    /// A folder lacks what it should hold.
    #[error("{} {problem}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is missing, and how to mend it.
        problem: String,
    },
    /// A weights file is damaged.
    #[error("weights file {}: {problem}", path.display())]
    WeightsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor is missing, or not of the shape or type that is needed.
    #[error("{}: tensor {name} {problem}", path.display())]
    Tensor {
        /// The file, or the folder if no file has it.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer could not be read or used.
    #[error("tokenizer {}: {problem}", path.display())]
    Tokenizer {
        /// The file it comes from.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The chat template could not be compiled or rendered.
    #[error("chat template {origin}: {problem}")]
    Template {
        /// The file it comes from.
        origin: String,
        /// What is wrong.
        problem: String,
    },
    /// A picture could not be decoded or used.
    #[error("image {origin}: {problem}")]
    Image {
        /// The file, or the kind of source.
        origin: String,
        /// What is wrong.
        problem: String,
    },
    /// A prompt does not fit together (placeholders against images, roles, lengths).
    #[error("prompt: {0}")]
    Prompt(String),
    /// Anything about the network or its training that has no file to name.
    #[error("{0}")]
    Model(String),
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
