//! What keeps a server from starting or running.

use std::io;
use std::net::SocketAddr;

/// An error of the server as a whole; what goes wrong with one request is answered to its client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address could not be listened on.
    #[error("cannot listen on {address}; choose another with --host and --port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A thread or the runtime could not be started.
    #[error("cannot start {what}")]
    Start {
        /// What was to be started.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The model could not be loaded, or does not fit the options.
    #[error(transparent)]
    Model(#[from] mgsd_model::error::Error),
    /// Prompts or pictures of boards could not be prepared.
    #[error(transparent)]
    Data(#[from] mgsd_data::DataError),
    /// An option has a value that cannot be used.
    #[error("{option} is {value}: {problem}")]
    Option {
        /// Name of the option as on the command line.
        option: &'static str,
        /// The value given.
        value: String,
        /// What was expected.
        problem: String,
    },
    /// The thread that owns the model has ended while the server was up.
    #[error("the model's thread stopped: {0}")]
    ModelStopped(String),
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
