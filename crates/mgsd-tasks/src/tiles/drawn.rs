//! Our own FrozenLake tiles: shapes on a unit square, sampled many times a pixel.

use super::outline;

type Point = (f32, f32);
type Color = [u8; 3];

/// Samples along each side of a pixel.
const SAMPLES: usize = 5;

enum Shape {
    /// Centre and radii.
    Ellipse(Point, Point),
    /// Corners, in order around it; no dents.
    Polygon(&'static [Point]),
    /// Two ends and half the width; the ends are round.
    Stroke(Point, Point, f32),
    /// Left top, right bottom, radius of the corners.
    RoundBox(Point, Point, f32),
}

use Shape::{Ellipse, Polygon, RoundBox, Stroke};

impl Shape {
    fn contains(&self, x: f32, y: f32) -> bool {
        match self {
            Ellipse((cx, cy), (rx, ry)) => ((x - cx) / rx).powi(2) + ((y - cy) / ry).powi(2) <= 1.0,
            Polygon(corners) => {
                let side = |i: usize| {
                    let ((ax, ay), (bx, by)) = (corners[i], corners[(i + 1) % corners.len()]);
                    (bx - ax) * (y - ay) - (by - ay) * (x - ax)
                };
                (0..corners.len()).all(|i| side(i) >= 0.0) || (0..corners.len()).all(|i| side(i) <= 0.0)
            }
            Stroke((ax, ay), (bx, by), half) => {
                let (dx, dy) = (bx - ax, by - ay);
                let along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clamp(0.0, 1.0);
                (x - ax - along * dx).powi(2) + (y - ay - along * dy).powi(2) <= half * half
            }
            RoundBox((x0, y0), (x1, y1), r) => {
                let dx = (x0 + r - x).max(x - (x1 - r)).max(0.0);
                let dy = (y0 + r - y).max(y - (y1 - r)).max(0.0);
                dx * dx + dy * dy <= r * r
            }
        }
    }
}

const ICE: Color = [222, 238, 250];
const GLINT: Color = [244, 250, 255];

/// Light streaks on the ice.
const ICE_SHAPES: &[(Shape, Color)] = &[
    (Stroke((0.14, 0.34), (0.34, 0.14), 0.022), GLINT),
    (Stroke((0.20, 0.44), (0.28, 0.36), 0.018), GLINT),
    (Stroke((0.66, 0.88), (0.88, 0.66), 0.022), GLINT),
    (Stroke((0.74, 0.64), (0.82, 0.56), 0.018), GLINT),
];

/// Dark water in a broken rim.
const HOLE_SHAPES: &[(Shape, Color)] = &[
    (Stroke((0.50, 0.50), (0.09, 0.26), 0.014), [150, 186, 216]),
    (Stroke((0.50, 0.50), (0.86, 0.12), 0.014), [150, 186, 216]),
    (Stroke((0.50, 0.50), (0.92, 0.78), 0.014), [150, 186, 216]),
    (Stroke((0.50, 0.50), (0.18, 0.91), 0.014), [150, 186, 216]),
    (Ellipse((0.50, 0.51), (0.37, 0.33)), [150, 186, 216]),
    (Ellipse((0.50, 0.53), (0.33, 0.29)), [12, 42, 92]),
    (Ellipse((0.50, 0.57), (0.26, 0.20)), [24, 70, 134]),
    (Stroke((0.36, 0.55), (0.48, 0.55), 0.018), [96, 150, 206]),
    (Stroke((0.52, 0.64), (0.62, 0.64), 0.018), [96, 150, 206]),
];

/// A present with a ribbon and a bow.
const GOAL_SHAPES: &[(Shape, Color)] = &[
    (Ellipse((0.50, 0.87), (0.34, 0.05)), [176, 202, 224]),
    (RoundBox((0.19, 0.45), (0.81, 0.87), 0.03), [30, 140, 72]),
    (RoundBox((0.14, 0.33), (0.86, 0.49), 0.03), [42, 172, 92]),
    (RoundBox((0.43, 0.33), (0.57, 0.87), 0.005), [255, 206, 46]),
    (Ellipse((0.37, 0.24), (0.15, 0.10)), [255, 206, 46]),
    (Ellipse((0.63, 0.24), (0.15, 0.10)), [255, 206, 46]),
    (Ellipse((0.36, 0.24), (0.07, 0.04)), [42, 122, 72]),
    (Ellipse((0.64, 0.24), (0.07, 0.04)), [42, 122, 72]),
    (Ellipse((0.50, 0.28), (0.07, 0.065)), [232, 172, 20]),
];

/// A low wooden stool and the elf on it.
const START_SHAPES: &[(Shape, Color)] = &[
    (Ellipse((0.50, 0.92), (0.34, 0.04)), [176, 202, 224]),
    (Stroke((0.27, 0.84), (0.24, 0.93), 0.025), [112, 72, 38]),
    (Stroke((0.73, 0.84), (0.76, 0.93), 0.025), [112, 72, 38]),
    (RoundBox((0.17, 0.80), (0.83, 0.87), 0.03), [158, 104, 58]),
    // Legs and boots.
    (Stroke((0.43, 0.66), (0.43, 0.76), 0.045), [92, 58, 30]),
    (Stroke((0.57, 0.66), (0.57, 0.76), 0.045), [92, 58, 30]),
    (RoundBox((0.33, 0.74), (0.48, 0.81), 0.03), [60, 36, 20]),
    (RoundBox((0.52, 0.74), (0.67, 0.81), 0.03), [60, 36, 20]),
    // Arms, coat, belt.
    (Stroke((0.37, 0.52), (0.27, 0.63), 0.05), [186, 30, 38]),
    (Stroke((0.63, 0.52), (0.73, 0.63), 0.05), [186, 30, 38]),
    (Ellipse((0.26, 0.65), (0.05, 0.05)), [250, 214, 178]),
    (Ellipse((0.74, 0.65), (0.05, 0.05)), [250, 214, 178]),
    (Polygon(&[(0.39, 0.46), (0.61, 0.46), (0.68, 0.71), (0.32, 0.71)]), [214, 40, 48]),
    (Polygon(&[(0.355, 0.585), (0.645, 0.585), (0.66, 0.635), (0.34, 0.635)]), [60, 36, 20]),
    (RoundBox((0.46, 0.575), (0.54, 0.645), 0.01), [255, 206, 46]),
    // Ears, face.
    (Polygon(&[(0.35, 0.33), (0.22, 0.29), (0.35, 0.42)]), [250, 214, 178]),
    (Polygon(&[(0.65, 0.33), (0.78, 0.29), (0.65, 0.42)]), [250, 214, 178]),
    (Ellipse((0.50, 0.37), (0.17, 0.15)), [250, 214, 178]),
    (Ellipse((0.435, 0.37), (0.025, 0.032)), [40, 30, 30]),
    (Ellipse((0.565, 0.37), (0.025, 0.032)), [40, 30, 30]),
    (Stroke((0.46, 0.445), (0.54, 0.445), 0.012), [196, 96, 84]),
    // Pointed hat with a brim and a bobble.
    (Polygon(&[(0.32, 0.29), (0.68, 0.29), (0.54, 0.06)]), [214, 40, 48]),
    (RoundBox((0.29, 0.25), (0.71, 0.32), 0.034), [255, 255, 255]),
    (Ellipse((0.545, 0.075), (0.055, 0.055)), [255, 255, 255]),
];

/// The four cells, in the order of their kinds, as RGB pictures.
pub(super) fn cells(side: usize) -> [Vec<u8>; 4] {
    [&[][..], HOLE_SHAPES, GOAL_SHAPES, START_SHAPES].map(|shapes| {
        let layers: Vec<&(Shape, Color)> = if std::ptr::eq(shapes, HOLE_SHAPES) {
            shapes.iter().collect()
        } else {
            ICE_SHAPES.iter().chain(shapes).collect()
        };
        let mut cell = draw(side, &layers);
        outline(&mut cell, side);
        cell
    })
}

fn draw(side: usize, layers: &[&(Shape, Color)]) -> Vec<u8> {
    let step = 1.0 / (side * SAMPLES) as f32;
    let color_at =
        |x: f32, y: f32| layers.iter().rev().find(|(shape, _)| shape.contains(x, y)).map_or(ICE, |(_, color)| *color);
    let mut pixels = Vec::with_capacity(side * side * 3);
    for y in 0..side {
        for x in 0..side {
            let mut sums = [0_u32; 3];
            for sample in 0..SAMPLES * SAMPLES {
                let at = |pixel: usize, i: usize| ((pixel * SAMPLES + i) as f32 + 0.5) * step;
                let color = color_at(at(x, sample % SAMPLES), at(y, sample / SAMPLES));
                for c in 0..3 {
                    sums[c] += u32::from(color[c]);
                }
            }
            let count = (SAMPLES * SAMPLES) as u32;
            pixels.extend(sums.map(|sum| ((sum + count / 2) / count) as u8));
        }
    }
    pixels
}
