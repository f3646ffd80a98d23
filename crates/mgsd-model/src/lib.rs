//! mgsd-model
