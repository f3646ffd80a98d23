//! Drawing with whole pixels, by the rules that the published pictures follow.
//!
//! Coordinates are floats that are cut towards zero; boxes include their last row and column; what
//! lies outside the picture is not drawn.

use crate::RgbImage;

type Color = [u8; 3];

/// Corners of a box: left, top, right, bottom.
pub(crate) type Box4 = [f64; 4];

fn cut(value: f64) -> i64 {
    value as i64
}

impl RgbImage {
    /// Fills columns `x0..=x1` of rows `y0..=y1`.
    pub(crate) fn fill_cells(&mut self, x0: i64, y0: i64, x1: i64, y1: i64, color: Color) {
        let clip = |v: i64, size: usize| v.clamp(0, size as i64) as usize;
        let (x0, x1) = (clip(x0, self.width), clip(x1 + 1, self.width));
        let (y0, y1) = (clip(y0, self.height), clip(y1 + 1, self.height));
        if x0 >= x1 {
            return;
        }
        let flat = color[0] == color[1] && color[1] == color[2];
        for y in y0..y1 {
            let row = &mut self.pixels[(y * self.width + x0) * 3..(y * self.width + x1) * 3];
            if flat {
                row.fill(color[0]);
            } else {
                row.as_chunks_mut().0.fill(color);
            }
        }
    }

    /// A filled rectangle.
    pub(crate) fn rectangle(&mut self, [x0, y0, x1, y1]: Box4, color: Color) {
        self.fill_cells(cut(x0), cut(y0), cut(x1), cut(y1), color);
    }

    /// A horizontal line; an even width leans downwards.
    pub(crate) fn horizontal_line(&mut self, x0: f64, x1: f64, y: f64, width: i64, color: Color) {
        let (before, after) = ((width - 1) / 2, width / 2);
        self.fill_cells(cut(x0), cut(y) - before, cut(x1), cut(y) + after, color);
    }

    /// A vertical line; an even width leans to the right.
    pub(crate) fn vertical_line(&mut self, x: f64, y0: f64, y1: f64, width: i64, color: Color) {
        let (before, after) = ((width - 1) / 2, width / 2);
        self.fill_cells(cut(x) - before, cut(y0), cut(x) + after, cut(y1), color);
    }

    /// A filled ellipse in a box.
    pub(crate) fn ellipse(&mut self, corners: Box4, color: Color) {
        self.ellipse_part(corners, color, |_| true, |_| true);
    }

    /// The part of an ellipse whose doubled coordinates, counted from its centre, are kept.
    fn ellipse_part(
        &mut self,
        corners: Box4,
        color: Color,
        keep_column: impl Fn(i64) -> bool,
        keep_row: impl Fn(i64) -> bool,
    ) {
        let [x0, y0, x1, y1] = corners.map(cut);
        let (a, b) = (x1 - x0, y1 - y0);
        if a < 0 || b < 0 {
            return;
        }
        for (i, x) in half_widths(a, b).into_iter().enumerate() {
            let y = b % 2 + 2 * i as i64;
            let mut columns = (-x..=x).step_by(2).filter(|c| keep_column(*c));
            let Some(first) = columns.next() else { continue };
            let last = columns.last().unwrap_or(first);
            for row in [-y, y] {
                if keep_row(row) {
                    let at = y0 + (row + b) / 2;
                    self.fill_cells(x0 + (first + a) / 2, at, x0 + (last + a) / 2, at, color);
                }
            }
        }
    }

    /// A filled polygon without holes or dents.
    pub(crate) fn polygon(&mut self, vertices: &[(f64, f64)], color: Color) {
        let vertices: Vec<(i64, i64)> = vertices.iter().map(|(x, y)| (cut(*x), cut(*y))).collect();
        let edges: Vec<((i64, i64), (i64, i64))> =
            (0..vertices.len()).map(|i| (vertices[i], vertices[(i + 1) % vertices.len()])).collect();
        let rows = || vertices.iter().map(|v| v.1);
        let (Some(top), Some(bottom)) = (rows().min(), rows().max()) else { return };
        for y in top..=bottom {
            let (mut left, mut right) = (f32::INFINITY, f32::NEG_INFINITY);
            for ((x0, y0), (x1, y1)) in &edges {
                if y0 != y1 && (*y0.min(y1)..=*y0.max(y1)).contains(&y) {
                    let slope = (x1 - x0) as f32 / (y1 - y0) as f32;
                    let x = (y - y0) as f32 * slope + *x0 as f32;
                    (left, right) = (left.min(x), right.max(x));
                }
            }
            if left <= right {
                self.fill_cells((left + 0.5).floor() as i64, y, (right - 0.5).ceil() as i64, y, color);
            }
        }
    }

    /// A filled rectangle with round corners. Unlike all else, its corners are rounded, half to even;
    /// without room for a curve it is an ellipse or a rectangle like any other.
    pub(crate) fn rounded_rectangle(&mut self, corners: Box4, radius: f64, color: Color) {
        let [x0, y0, x1, y1] = corners.map(f64::round_ties_even);
        let mut d = 2.0 * radius;
        let all_x = d >= x1 - x0 - 1.0;
        if all_x {
            d = x1 - x0;
        }
        let all_y = d >= y1 - y0 - 1.0;
        if all_y {
            d = y1 - y0;
        }
        if all_x && all_y {
            return self.ellipse(corners, color);
        }
        if d == 0.0 {
            return self.rectangle(corners, color);
        }
        let r = (d / 2.0).floor();
        let (left, right) = (|c: i64| c <= 0, |c: i64| c >= 0);
        let (top, bottom, both) = (left, right, |_: i64| true);
        if all_x {
            self.ellipse_part([x0, y0, x0 + d, y0 + d], color, both, top);
            self.ellipse_part([x0, y1 - d, x0 + d, y1], color, both, bottom);
            self.rectangle([x0, y0 + r + 1.0, x1, y1 - r - 1.0], color);
            return;
        }
        if all_y {
            self.ellipse_part([x0, y0, x0 + d, y0 + d], color, left, both);
            self.ellipse_part([x1 - d, y0, x1, y0 + d], color, right, both);
        } else {
            self.ellipse_part([x0, y0, x0 + d, y0 + d], color, left, top);
            self.ellipse_part([x1 - d, y0, x1, y0 + d], color, right, top);
            self.ellipse_part([x1 - d, y1 - d, x1, y1], color, right, bottom);
            self.ellipse_part([x0, y1 - d, x0 + d, y1], color, left, bottom);
            self.rectangle([x0, y0 + r + 1.0, x0 + r, y1 - r - 1.0], color);
            self.rectangle([x1 - r, y0 + r + 1.0, x1, y1 - r - 1.0], color);
        }
        if x1 - r - 1.0 > x0 + r + 1.0 {
            self.rectangle([x0 + r + 1.0, y0, x1 - r - 1.0, y1], color);
        }
    }
}

/// Half the width (in half pixels) of each row of an ellipse with diameters `a` and `b`, from the middle outwards.
///
/// A walk along the quarter from the right end to the bottom that always takes the neighbour
/// nearest to the curve a²y² + b²x² = a²b².
fn half_widths(a: i64, b: i64) -> Vec<i64> {
    let (a2, b2) = (a * a, b * b);
    let error = |x: i64, y: i64| (a2 * y * y + b2 * x * x - a2 * b2).abs();
    let (mut x, mut y) = (a, b % 2);
    let mut widths = vec![x];
    while y < b {
        let mut best = (error(x, y + 2), x, y + 2);
        if x > 1 {
            for (next_x, next_y) in [(x - 2, y + 2), (x - 2, y)] {
                let candidate = error(next_x, next_y);
                if candidate < best.0 {
                    best = (candidate, next_x, next_y);
                }
            }
        }
        if best.2 > y {
            widths.push(best.1);
        }
        (x, y) = (best.1, best.2);
    }
    widths
}
