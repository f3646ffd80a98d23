//! mgsd-data
