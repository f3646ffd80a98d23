//! MiniBehaviour: go next to the printer, pick it up, carry it next to the table, drop it.

mod board;
mod generate;
mod render;
mod solve;
mod text;

pub use board::Board;
pub(crate) use generate::sample;
pub(crate) use render::render;
pub(crate) use text::{parse, write};
