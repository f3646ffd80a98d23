//! Options of the pictures, common to the three tasks.

use crate::{Error, Result, TileSet};

/// Pixels of a cell below which a wall, a door or a table may be hidden by what lies beside it.
pub const CELL: usize = 8;

/// How a board is drawn.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// Side of the square picture in pixels: 16 to 4096, for Maze and MiniBehaviour at least [`CELL`] a cell.
    pub image_size: usize,
    /// The tiles of FrozenLake.
    pub tiles: TileSet,
}

impl Default for RenderOptions {
    /// 256 pixels, our own tiles.
    fn default() -> Self {
        Self { image_size: 256, tiles: TileSet::drawn() }
    }
}

impl RenderOptions {
    /// `least`: what the board needs so that no two boards look alike.
    pub(crate) fn check(&self, least: usize) -> Result<()> {
        let least = least.max(16);
        if (least..=4096).contains(&self.image_size) {
            return Ok(());
        }
        Err(Error::Option {
            option: "image-size",
            value: self.image_size.to_string(),
            problem: format!("expected {least} to 4096 pixels for this board"),
        })
    }
}
