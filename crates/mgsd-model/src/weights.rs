//! Weights on disk: safetensors, in one file or in shards, read through a memory map and written safely.

mod arrays;
mod file;
mod read;
mod write;

pub use arrays::{Array, Values, read_arrays, write_arrays};
pub use file::StoredDtype;
pub use read::{Checkpoint, LoadAs};
pub use write::{CheckpointWriter, TensorSpec, copy_folder_files, write_atomically};

/// Bytes of weights in one shard before the next is begun, as the published checkpoints have it.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// `shape` as a matrix: one dimension is a row, more than two are `[first, all the rest]`.
pub fn matrix_shape(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [length] => (1, *length),
        [first, rest @ ..] => (*first, rest.iter().product()),
    }
}
