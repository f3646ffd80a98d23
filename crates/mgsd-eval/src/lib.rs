//! mgsd-eval
