//! A plan drawn over the picture of its board.

use crate::score::benchmark::{InvalidReason, score_plan};
use crate::score::{BenchmarkCase, BenchmarkScore};
use crate::{Action, Board, Plan, Position, RgbImage};

type Point = (f32, f32);
type Color = [u8; 3];

const CASING: Color = [255, 255, 255];
const PATH: Color = [220, 0, 150];
const FAILURE: Color = [230, 20, 20];

/// Draws the way that a plan walks by the benchmark's rules: a line from the start, a ring where the
/// printer changes hands, a dot at the end, and a red cross where the plan fails.
pub fn draw_plan(board: &Board, plan: &Plan, image: &mut RgbImage) {
    let score = score_plan(&BenchmarkCase::from_board(board), plan);
    let cell = image.width.min(image.height) as f32 / board.side() as f32;
    let middle = |p: Position| ((p.col as f32 + 0.5) * cell, (p.row as f32 + 0.5) * cell);
    let points: Vec<Point> = score.path.cells().into_iter().map(middle).collect();
    let width = (cell * 0.045).max(0.75);
    for (color, half) in [(CASING, width * 1.9), (PATH, width)] {
        for ends in points.windows(2) {
            stroke(image, ends[0], ends[1], half, color);
        }
    }
    for (i, action) in plan.actions().iter().enumerate().take(score.steps_executed) {
        if let (Action::Pick | Action::Drop, Some(at)) = (action, points.get(i + 1)) {
            ring(image, *at, cell * 0.17, width);
        }
    }
    if let Some(end) = points.last() {
        disc(image, *end, width * 3.4, CASING);
        disc(image, *end, width * 2.4, PATH);
    }
    if let Some(at) = failure(board, plan, &score, cell) {
        cross(image, at, (cell * 0.2).max(3.0), width * 1.3);
    }
}

/// Where the cross goes: into the hole, between the cell left and the one not reached, or onto the cell of a
/// wrong PICK or DROP; on the last cell when the plan ends short of its aim.
fn failure(board: &Board, plan: &Plan, score: &BenchmarkScore, cell: f32) -> Option<Point> {
    if score.success {
        return None;
    }
    let at = ((score.final_coord.col as f32 + 0.5) * cell, (score.final_coord.row as f32 + 0.5) * cell);
    let failed = score.steps_executed.checked_sub(1).and_then(|i| plan.actions().get(i));
    let blocked = !matches!(score.invalid_reason, None | Some(InvalidReason::FellIntoHole));
    let Some(Action::Move(direction)) = failed.filter(|_| blocked) else { return Some(at) };
    let way = cell * 0.5;
    let (dx, dy) = match direction {
        crate::Direction::Left => (-way, 0.0),
        crate::Direction::Down => (0.0, way),
        crate::Direction::Right => (way, 0.0),
        crate::Direction::Up => (0.0, -way),
    };
    // On the border of the picture the cross would be cut in half.
    let inside = |v: f32| v.clamp(cell * 0.2, (board.side() as f32 - 0.2) * cell);
    Some((inside(at.0 + dx), inside(at.1 + dy)))
}

fn cross(image: &mut RgbImage, (x, y): Point, arm: f32, half: f32) {
    for (color, half) in [(CASING, half * 1.8), (FAILURE, half)] {
        stroke(image, (x - arm, y - arm), (x + arm, y + arm), half, color);
        stroke(image, (x - arm, y + arm), (x + arm, y - arm), half, color);
    }
}

fn disc(image: &mut RgbImage, (cx, cy): Point, radius: f32, color: Color) {
    paint(image, (cx - radius, cy - radius, cx + radius, cy + radius), color, |x, y| radius - (x - cx).hypot(y - cy));
}

fn ring(image: &mut RgbImage, (cx, cy): Point, radius: f32, half: f32) {
    for (color, half) in [(CASING, half * 1.9), (PATH, half)] {
        let far = radius + half;
        paint(image, (cx - far, cy - far, cx + far, cy + far), color, |x, y| {
            half - ((x - cx).hypot(y - cy) - radius).abs()
        });
    }
}

/// A line with round ends; `half` is half its width.
fn stroke(image: &mut RgbImage, (ax, ay): Point, (bx, by): Point, half: f32, color: Color) {
    let (dx, dy) = (bx - ax, by - ay);
    let length2 = (dx * dx + dy * dy).max(f32::MIN_POSITIVE);
    let bounds = (ax.min(bx) - half, ay.min(by) - half, ax.max(bx) + half, ay.max(by) + half);
    paint(image, bounds, color, |x, y| {
        let along = (((x - ax) * dx + (y - ay) * dy) / length2).clamp(0.0, 1.0);
        half - (x - ax - along * dx).hypot(y - ay - along * dy)
    });
}

/// Mixes a colour in by how deep a pixel's centre lies in a shape (half a pixel each side of the edge fades).
fn paint(image: &mut RgbImage, bounds: (f32, f32, f32, f32), color: Color, depth: impl Fn(f32, f32) -> f32) {
    let range = |low: f32, high: f32, size: usize| {
        ((low - 1.0).max(0.0) as usize).min(size)..((high + 2.0).max(0.0) as usize).min(size)
    };
    for y in range(bounds.1, bounds.3, image.height) {
        for x in range(bounds.0, bounds.2, image.width) {
            let cover = (depth(x as f32 + 0.5, y as f32 + 0.5) + 0.5).clamp(0.0, 1.0);
            if cover > 0.0 {
                let i = (y * image.width + x) * 3;
                for (byte, wanted) in image.pixels[i..i + 3].iter_mut().zip(color) {
                    let old = f32::from(*byte);
                    *byte = (old + (f32::from(wanted) - old) * cover + 0.5) as u8;
                }
            }
        }
    }
}
