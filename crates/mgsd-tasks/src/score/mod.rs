//! Two ways to score a response: as the training reward, and as the published benchmark.
//!
//! They disagree on a tenth of odd responses: the reward lets a FrozenLake plan bump into the border and
//! reads the first answer block, the benchmark does neither. Keep both; report the benchmark's.

pub mod benchmark;
pub mod training;

pub use benchmark::{BenchmarkCase, BenchmarkScore};
pub use training::{TrainingCase, TrainingScore};
