//! mgsd-train
