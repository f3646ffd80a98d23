//! The operations that Qwen3-VL needs, each with its forward and its backward pass.
//!
//! Everything is a matrix: a [`Tensor`] is `[rows, cols]`, row-major, and activations are `[tokens, features]`; the
//! heads of attention lie side by side in the columns. There is no autograd graph: a layer keeps what its backward
//! pass needs and calls the `backward` that stands beside the `forward`.
//!
//! Rules, stated once:
//! - **Parameter gradients are added to** (`+=`); the optimiser's caller sets them to zero.
//! - **Activation gradients are overwritten**, unless the function takes a [`Write`] and is told [`Write::Add`].
//! - Outputs are resized as needed, unless told [`Write::Add`].
//! - An operation allocates nothing that grows with its input; scratch memory is per thread and kept.
//! - A shape that does not fit is a bug of the caller and panics with both shapes named.
//! - Work is cut by shape, never by the number of threads: the same input gives the same bits on 1 or 16 threads.

pub mod bench;
mod check;
pub mod cuda;
mod device;
mod group;
mod mapped;
mod math;
pub mod ops;
mod par;
mod pool;
mod product;
mod simd;
mod tensor;

pub use device::Device;
pub use group::{Group, free_port};
pub use mapped::MappedFile;
pub use pool::{set_threads, threads};
pub use tensor::{Dtype, SharedBytes, Tensor, memory_taken};

/// Whether an operation replaces its output or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `out = …`
    Set,
    /// `out += …`
    Add,
}
