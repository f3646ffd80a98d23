//! Maze: find the way from the start to the target between walls.

mod board;
mod generate;
mod render;
mod solve;
mod text;

pub use board::{Board, EAST, NORTH, SOUTH, WEST};
pub(crate) use generate::sample;
pub(crate) use render::render;
pub(crate) use text::{parse, write};
