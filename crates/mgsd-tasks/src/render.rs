//! Options of the pictures, common to the three tasks.

use crate::{Error, Result, TileSet};

/// How a board is drawn.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// Side of the square picture in pixels, 16 to 4096.
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
    pub(crate) fn check(&self) -> Result<()> {
        if (16..=4096).contains(&self.image_size) {
            return Ok(());
        }
        Err(Error::Option {
            option: "image-size",
            value: self.image_size.to_string(),
            problem: "expected 16 to 4096 pixels".to_owned(),
        })
    }
}
