//! The picture of a maze: white rooms on black, grey thresholds, a yellow start, a blue target.

use super::Board;
use crate::{Direction, Position, RgbImage};

const WALL: [u8; 3] = [0, 0, 0];
const FLOOR: [u8; 3] = [255, 255, 255];
const THRESHOLD: [u8; 3] = [224, 224, 224];
const START: [u8; 3] = [255, 255, 0];
const TARGET: [u8; 3] = [0, 0, 255];

/// Draws the board on a square picture.
pub(crate) fn render(board: &Board, image_size: usize) -> RgbImage {
    let side = board.side();
    let cell = image_size as f64 / side as f64;
    let wall = (cell / 4.0).floor().max(2.0);
    let half = wall / 2.0;
    let threshold_width = ((cell / 16.0) as i64).max(1);
    let mut image = RgbImage::filled(image_size, image_size, WALL);
    let cells = || (0..side * side).map(|i| Position::from_index(i, side));
    let corners = |p: Position| {
        let edge = |i: usize| i as f64 * cell;
        [edge(p.col), edge(p.row), edge(p.col + 1), edge(p.row + 1)]
    };
    let opens = |p: Position, direction| board.open_step(p, direction).is_some();

    for p in cells() {
        let [x0, y0, x1, y1] = corners(p);
        image.rectangle([x0 + half, y0 + half, x1 - half, y1 - half], FLOOR);
    }
    for p in cells() {
        let [x0, y0, x1, y1] = corners(p);
        if opens(p, Direction::Down) {
            image.rectangle([x0 + half, y1 - half, x1 - half, y1 + half], FLOOR);
        }
        if opens(p, Direction::Right) {
            image.rectangle([x1 - half, y0 + half, x1 + half, y1 - half], FLOOR);
        }
    }
    for p in cells() {
        let [x0, y0, x1, y1] = corners(p);
        if opens(p, Direction::Down) {
            image.horizontal_line(x0 + half, x1 - half, y1, threshold_width, THRESHOLD);
        }
        if opens(p, Direction::Right) {
            image.vertical_line(x1, y0 + half, y1 - half, threshold_width, THRESHOLD);
        }
    }
    let radius = ((cell - wall) * 0.25).floor().max(3.0);
    for (p, color) in [(board.start(), START), (board.target(), TARGET)] {
        let [x0, y0, x1, y1] = corners(p);
        let (x, y) = ((x0 + x1) / 2.0, (y0 + y1) / 2.0);
        image.ellipse([x - radius, y - radius, x + radius, y + radius], color);
    }
    image
}
