//! The two random streams of the published generators, so that a seed means the same board here.

mod mt19937;
mod pcg64;

pub use mt19937::Mt19937;
pub use pcg64::Pcg64;
