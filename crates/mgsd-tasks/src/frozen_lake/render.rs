//! The picture of a lake: one tile a cell, then resized to the size wanted.
//!
//! A resized cell depends on itself and its eight neighbours only, so cells are resized in blocks that
//! are kept: a lake then costs little more than copying.

use super::Board;
use crate::resample::{Taps, resize, taps};
use crate::tiles::{CellImages, Kind, TileSet};
use crate::{Position, RenderOptions, RgbImage};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Kept blocks may take this many bytes a thread before they are thrown away.
const MOST_KEPT_BYTES: usize = 24 << 20;
/// Kept geometries (tiles, side, image size) a thread.
const MOST_GEOMETRIES: usize = 8;

/// Draws the board on a square picture.
pub(crate) fn render(board: &Board, options: &RenderOptions) -> RgbImage {
    let side = board.side();
    let size = options.image_size;
    let cell = (512 / side).min(64);
    let mut image = RgbImage { width: size, height: size, pixels: vec![0; size * size * 3] };
    if cell * side == size {
        draw_tiles(board, &options.tiles.cells(cell), &mut image.pixels);
        return image;
    }
    with_blocks(&options.tiles, side, size, |blocks| blocks.draw(board, &mut image));
    image
}

fn kind(board: &Board, position: Position) -> Kind {
    match board.letter(position) {
        'S' => Kind::Start,
        'G' => Kind::Goal,
        'H' => Kind::Hole,
        _ => Kind::Ice,
    }
}

/// Copies the tiles side by side onto a canvas of exactly their size.
fn draw_tiles(board: &Board, cells: &CellImages, canvas: &mut [u8]) {
    let side = board.side();
    let line = cells.side * 3;
    for i in 0..side * side {
        let p = Position::from_index(i, side);
        let left = p.col * line;
        for (y, row) in cells.image(kind(board, p)).chunks_exact(line).enumerate() {
            let start = (p.row * cells.side + y) * side * line + left;
            canvas[start..start + line].copy_from_slice(row);
        }
    }
}

/// How output pixels fall onto cells along one axis.
struct Axis {
    /// Output pixels of each cell (those whose centre lies in it).
    pixels: Vec<Range<usize>>,
    /// Number of each cell's pattern of taps; cells with the same one are resized alike.
    pattern: Vec<usize>,
    /// The patterns: taps counted from the start of the cell before.
    patterns: Vec<Vec<Taps>>,
    /// How far taps reach beyond their cell.
    reach: usize,
}

impl Axis {
    fn new(side: usize, cell: usize, size: usize) -> Self {
        let taps = taps(cell * side, size);
        let mut axis = Axis { pixels: Vec::new(), pattern: Vec::new(), patterns: Vec::new(), reach: 0 };
        let mut end = 0;
        for i in 0..side {
            let start = end;
            while end < size && (2 * end + 1) * cell * side < 2 * (i + 1) * cell * size {
                end += 1;
            }
            let (first, after) = (i * cell, (i + 1) * cell);
            for t in &taps[start..end] {
                axis.reach = axis.reach.max(first.saturating_sub(t.first));
                axis.reach = axis.reach.max((t.first + t.weights.len()).saturating_sub(after));
            }
            // Counted from one cell earlier, so that the first cell has a (blank) neighbour as well.
            let relative: Vec<Taps> = taps[start..end]
                .iter()
                .map(|t| Taps { first: (t.first + cell).saturating_sub(first), weights: t.weights.clone() })
                .collect();
            let known = axis.patterns.iter().position(|p| *p == relative);
            axis.pattern.push(known.unwrap_or(axis.patterns.len()));
            if known.is_none() {
                axis.patterns.push(relative);
            }
            axis.pixels.push(start..end);
        }
        axis
    }
}

/// Resized cells for one geometry.
struct Blocks {
    tiles: u64,
    side: usize,
    size: usize,
    axis: Axis,
    cells: Arc<CellImages>,
    /// By patterns of row and column and by the kinds of the nine cells.
    kept: HashMap<u64, Box<[u8]>>,
    kept_bytes: usize,
}

fn with_blocks(tiles: &TileSet, side: usize, size: usize, draw: impl FnOnce(&mut Blocks)) {
    thread_local!(static KEPT: RefCell<Vec<Blocks>> = const { RefCell::new(Vec::new()) });
    KEPT.with_borrow_mut(|kept| {
        let found = kept.iter().position(|b| b.tiles == tiles.id() && b.side == side && b.size == size);
        let at = found.unwrap_or_else(|| {
            if kept.len() >= MOST_GEOMETRIES {
                kept.remove(0);
            }
            let cell = (512 / side).min(64);
            kept.push(Blocks {
                tiles: tiles.id(),
                side,
                size,
                axis: Axis::new(side, cell, size),
                cells: tiles.cells(cell),
                kept: HashMap::new(),
                kept_bytes: 0,
            });
            kept.len() - 1
        });
        draw(&mut kept[at]);
    });
}

impl Blocks {
    fn draw(&mut self, board: &Board, image: &mut RgbImage) {
        let side = self.side;
        if self.axis.reach > self.cells.side {
            // Tiny cells: taps reach over more than one neighbour, so the whole lake is resized.
            let mut canvas = vec![0; (self.cells.side * side).pow(2) * 3];
            draw_tiles(board, &self.cells, &mut canvas);
            let taps = taps(self.cells.side * side, self.size);
            image.pixels = resize::<3>(&canvas, self.cells.side * side, Some(&taps), Some(&taps));
            return;
        }
        // One digit a cell, with a border of blank ones; a digit of 0 is blank.
        let stride = side + 2;
        let mut digits = vec![0_u8; stride * stride];
        for i in 0..side * side {
            let p = Position::from_index(i, side);
            digits[(p.row + 1) * stride + p.col + 1] = kind(board, p) as u8 + 1;
        }
        for row in 0..side {
            for col in 0..side {
                let around: [u8; 9] = std::array::from_fn(|i| digits[(row + i / 3) * stride + col + i % 3]);
                self.draw_cell(row, col, around, image);
            }
        }
    }

    fn draw_cell(&mut self, row: usize, col: usize, around: [u8; 9], image: &mut RgbImage) {
        let columns = self.axis.pixels[col].clone();
        if columns.is_empty() {
            return;
        }
        let (pattern_row, pattern_col) = (self.axis.pattern[row], self.axis.pattern[col]);
        let patterns = (pattern_row * self.axis.patterns.len() + pattern_col) as u64;
        let key = around.iter().fold(patterns, |key, digit| key * 5 + u64::from(*digit));
        if !self.kept.contains_key(&key) {
            let vertical = &self.axis.patterns[pattern_row];
            let horizontal = &self.axis.patterns[pattern_col];
            let canvas = self.patch(around);
            let block = resize::<3>(&canvas, 3 * self.cells.side, Some(horizontal), Some(vertical));
            if self.kept_bytes > MOST_KEPT_BYTES {
                self.kept.clear();
                self.kept_bytes = 0;
            }
            self.kept_bytes += block.len();
            self.kept.insert(key, block.into());
        }
        let block = &self.kept[&key];
        for (y, line) in self.axis.pixels[row].clone().zip(block.chunks_exact(columns.len() * 3)) {
            let start = (y * self.size + columns.start) * 3;
            image.pixels[start..start + line.len()].copy_from_slice(line);
        }
    }

    /// Nine cells before resizing.
    fn patch(&self, around: [u8; 9]) -> Vec<u8> {
        let line = self.cells.side * 3;
        let mut canvas = vec![0; 9 * self.cells.side * line];
        for (i, digit) in around.into_iter().enumerate().filter(|(_, digit)| *digit > 0) {
            let image = self.cells.image(Kind::ALL[usize::from(digit) - 1]);
            for (y, row) in image.chunks_exact(line).enumerate() {
                let start = ((i / 3 * self.cells.side + y) * 3 + i % 3) * line;
                canvas[start..start + line].copy_from_slice(row);
            }
        }
        canvas
    }
}
