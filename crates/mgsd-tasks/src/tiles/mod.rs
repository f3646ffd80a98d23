//! The tiles of FrozenLake: our own, or a folder of pictures.

mod drawn;

use crate::image::{RgbaImage, read_rgba_png};
use crate::resample::resize_rgba;
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Colour of the line around each cell.
const OUTLINE: [u8; 3] = [180, 200, 230];

/// What a cell of FrozenLake shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Ice,
    Hole,
    Goal,
    Start,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Ice, Kind::Hole, Kind::Goal, Kind::Start];
}

/// The four kinds of cells as RGB pictures of one size.
#[derive(Debug)]
pub(crate) struct CellImages {
    pub side: usize,
    images: [Vec<u8>; 4],
}

impl CellImages {
    pub fn image(&self, kind: Kind) -> &[u8] {
        &self.images[kind as usize]
    }
}

/// The tiles that FrozenLake is drawn with. Cheap to clone.
#[derive(Clone)]
pub struct TileSet(Arc<Inner>);

struct Inner {
    id: u64,
    source: Source,
    by_size: Mutex<HashMap<usize, Arc<CellImages>>>,
}

enum Source {
    Drawn,
    Loaded { ice: RgbaImage, hole: RgbaImage, goal: RgbaImage, stool: RgbaImage, elf: RgbaImage },
}

impl std::fmt::Debug for TileSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let source = if matches!(self.0.source, Source::Drawn) { "drawn" } else { "loaded" };
        f.debug_tuple("TileSet").field(&source).finish()
    }
}

impl Default for TileSet {
    fn default() -> Self {
        Self::drawn()
    }
}

impl TileSet {
    fn new(source: Source) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        TileSet(Arc::new(Inner { id, source, by_size: Mutex::default() }))
    }

    /// Our own tiles, drawn from shapes at any size.
    pub fn drawn() -> Self {
        static DRAWN: LazyLock<TileSet> = LazyLock::new(|| TileSet::new(Source::Drawn));
        DRAWN.clone()
    }

    /// The tiles `ice.png`, `hole.png`, `goal.png`, `stool.png` and `elf_down.png` of a folder, named
    /// and composed as in gymnasium 1.3.0.
    ///
    /// # Errors
    /// When a file is missing, is no PNG, or is not square.
    pub fn load(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::Image { path: folder.to_owned(), problem: "no such folder of tiles".to_owned() });
        }
        let read = |name: &str| {
            let path = folder.join(name);
            let tile = read_rgba_png(&path)?;
            if tile.width != tile.height || tile.width == 0 {
                let problem = format!("is {} x {} pixels, expected a square tile", tile.width, tile.height);
                return Err(Error::Image { path, problem });
            }
            Ok(tile)
        };
        Ok(Self::new(Source::Loaded {
            ice: read("ice.png")?,
            hole: read("hole.png")?,
            goal: read("goal.png")?,
            stool: read("stool.png")?,
            elf: read("elf_down.png")?,
        }))
    }

    /// Tells two sets apart.
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    /// The cells at a size, made on first use.
    pub(crate) fn cells(&self, side: usize) -> Arc<CellImages> {
        let mut by_size = self.0.by_size.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let images = match &self.0.source {
                Source::Drawn => drawn::cells(side),
                Source::Loaded { ice, hole, goal, stool, elf } => {
                    let sized = |tile: &RgbaImage| resize_rgba(&tile.pixels, tile.width, side);
                    compose(side, &sized(ice), &sized(hole), &sized(goal), &sized(stool), &sized(elf))
                }
            };
            Arc::new(CellImages { side, images })
        };
        by_size.entry(side).or_insert_with(make).clone()
    }
}

fn compose(side: usize, ice: &[u8], hole: &[u8], goal: &[u8], stool: &[u8], elf: &[u8]) -> [Vec<u8>; 4] {
    let mut floor = vec![0; side * side * 3];
    blend(&mut floor, ice);
    let with = |object: Option<&[u8]>, above: Option<&[u8]>| {
        let mut cell = floor.clone();
        if let Some(object) = object {
            blend(&mut cell, object);
        }
        outline(&mut cell, side);
        if let Some(above) = above {
            blend(&mut cell, above);
        }
        cell
    };
    [with(None, None), with(Some(hole), None), with(Some(goal), None), with(Some(stool), Some(elf))]
}

/// Lays a picture with transparency over an opaque one.
fn blend(under: &mut [u8], over: &[u8]) {
    for (under, over) in under.as_chunks_mut::<3>().0.iter_mut().zip(over.as_chunks::<4>().0) {
        let a = u32::from(over[3]);
        for c in 0..3 {
            let mixed = u32::from(over[c]) * a + u32::from(under[c]) * (255 - a);
            under[c] = ((mixed + 127) / 255) as u8;
        }
    }
}

/// A line of one pixel along the border of a square RGB picture.
fn outline(cell: &mut [u8], side: usize) {
    let pixels = cell.as_chunks_mut::<3>().0;
    for i in 0..side {
        for at in [i, (side - 1) * side + i, i * side, i * side + side - 1] {
            pixels[at] = OUTLINE;
        }
    }
}
