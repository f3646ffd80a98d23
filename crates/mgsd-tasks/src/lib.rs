//! mgsd-tasks
