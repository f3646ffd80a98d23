//! FrozenLake: cross the ice from the start to the goal without stepping into a hole.

mod board;
mod generate;
mod render;
mod solve;
mod text;

pub use board::Board;
pub(crate) use generate::sample;
pub(crate) use render::render;
pub(crate) use text::{parse, write};
