//! The picture of a room: black floor, brown table, white printer, red agent, grey grid.

use super::Board;
use crate::raster::Box4;
use crate::{Position, RgbImage};

const FLOOR: [u8; 3] = [0, 0, 0];
const GRID: [u8; 3] = [60, 60, 60];
const TABLE: [u8; 3] = [181, 143, 96];
const AGENT: [u8; 3] = [255, 24, 16];
const PRINTER: [u8; 3] = [255, 255, 255];

/// Draws the board on a square picture.
pub(crate) fn render(board: &Board, image_size: usize) -> RgbImage {
    let side = board.side();
    let size = image_size as f64;
    let cell = size / side as f64;
    let corners = |p: Position| -> Box4 {
        let edge = |i: usize| i as f64 * cell;
        [edge(p.col), edge(p.row), edge(p.col + 1), edge(p.row + 1)]
    };
    let mut image = RgbImage::filled(image_size, image_size, FLOOR);
    for p in board.table() {
        let [x0, y0, x1, y1] = corners(*p);
        image.rectangle([x0 + 1.0, y0 + 1.0, x1 - 1.0, y1 - 1.0], TABLE);
    }
    draw_printer(&mut image, corners(board.printer()));
    draw_agent(&mut image, corners(board.start()));
    for i in 0..=side {
        let at = i as f64 * cell;
        image.horizontal_line(0.0, size, at, 1, GRID);
        image.vertical_line(at, 0.0, size, 1, GRID);
    }
    image
}

/// A triangle that points to the right.
fn draw_agent(image: &mut RgbImage, [x0, y0, x1, y1]: Box4) {
    let (inset_x, inset_y) = ((x1 - x0) * 0.22, (y1 - y0) * 0.20);
    let tip = (x1 - inset_x, (y0 + y1) / 2.0);
    image.polygon(&[tip, (x0 + inset_x, y0 + inset_y), (x0 + inset_x, y1 - inset_y)], AGENT);
}

/// Paper, body and tray in white, a slot and a lamp in black. The fractions, and the order in which they
/// are combined, are the published renderer's: where a float falls on a whole pixel, either would show.
fn draw_printer(image: &mut RgbImage, [x0, y0, x1, y1]: Box4) {
    let cell = (x1 - x0).min(y1 - y0);
    let (width, height) = (cell * 0.58, cell * 0.52);
    let (middle_x, middle_y) = ((x0 + x1) / 2.0, (y0 + y1) / 2.0);
    let (left, right) = (middle_x - width / 2.0, middle_x + width / 2.0);
    let (top, bottom) = (middle_y - height / 2.0, middle_y + height / 2.0);
    let radius = cell * 0.04;
    let (body_top, body_bottom) = (top + height * 0.26, top + height * 0.72);
    let body_height = body_bottom - body_top;

    let paper = [left + width * 0.20, top, right - width * 0.20, top + height * 0.34];
    image.rectangle(paper, PRINTER);
    image.rounded_rectangle([left, body_top, right, body_bottom], radius, PRINTER);
    let tray = [left + width * 0.18, top + height * 0.56, right - width * 0.18, bottom];
    image.rectangle(tray, PRINTER);

    let slot_y = body_top + body_height * 0.55;
    let slot_half = cell * 0.025;
    let slot = [left + width * 0.22, slot_y - slot_half, right - width * 0.12, slot_y + slot_half];
    image.rounded_rectangle(slot, radius, FLOOR);
    let lamp_radius = cell * 0.035;
    let (lamp_x, lamp_y) = (left + width * 0.18, body_top + body_height * 0.36);
    let lamp = [lamp_x - lamp_radius, lamp_y - lamp_radius, lamp_x + lamp_radius, lamp_y + lamp_radius];
    image.ellipse(lamp, FLOOR);
}
