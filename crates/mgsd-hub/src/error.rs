//! What can go wrong, and how to mend it.

use crate::name::Name;
use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no place for a cache.
    #[error("there is no home folder to keep models in; set HF_HOME")]
    NoHome,
    /// Asking was forbidden.
    #[error("{name} is neither a folder nor whole in the cache, and HF_HUB_OFFLINE forbids to fetch it")]
    Offline {
        /// What was asked for.
        name: Name,
    },
    /// The hub does not give it.
    #[error("{name} is no folder, and {endpoint} does not give a model of this name: {why}")]
    Refused {
        /// What was asked for.
        name: Name,
        /// Who was asked.
        endpoint: String,
        /// What the answer means.
        why: String,
    },
    /// The hub could not be asked.
    #[error("{name} is no folder, and {endpoint} cannot be asked for a model of this name: {why}")]
    Unreachable {
        /// What was asked for.
        name: Name,
        /// Who was asked.
        endpoint: String,
        /// What happened.
        why: String,
    },
    /// A file could not be fetched.
    #[error("{file} of {name} could not be fetched: {why}; what is there is kept, call again to go on")]
    Broken {
        /// The model.
        name: Name,
        /// The file.
        file: String,
        /// What happened.
        why: String,
    },
    /// What came is not what was announced.
    #[error("{file} of {name} has another checksum than the hub says and was thrown away; call again to fetch it anew")]
    Damaged {
        /// The model.
        name: Name,
        /// The file.
        file: String,
    },
    /// The hub's answer makes no sense.
    #[error("{name}: {endpoint} answers something unexpected: {why}")]
    Answer {
        /// What was asked for.
        name: Name,
        /// Who was asked.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// The cache could not be read or written.
    #[error("{path}: {source}; free space there, or set HF_HUB_CACHE to another folder")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn cache(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Cache { path: path.to_path_buf(), source }
    }
}
