//! Generic pictures for pretraining: coloured shapes on a grid, and cells with walls between them, each with a question.
//!
//! They teach a small model what the real base models already know of pictures (colours, shapes, positions on a grid,
//! counting, which sides are closed). No task board is among them, and nothing is planned.

use mgsd_tasks::RgbImage;
use mgsd_tasks::rng::Pcg64;

/// One picture with a question about it and the right answer.
#[derive(Clone, Debug)]
pub struct Sample {
    /// A square picture.
    pub image: RgbImage,
    /// The user's text, `<image>` where the picture goes.
    pub question: String,
    /// What the model should say.
    pub answer: String,
}

type Rgb = [u8; 3];

const COLOURS: [(&str, Rgb); 8] = [
    ("red", [220, 40, 40]),
    ("green", [40, 170, 60]),
    ("blue", [50, 80, 220]),
    ("yellow", [240, 220, 40]),
    ("pink", [240, 120, 190]),
    ("cyan", [60, 210, 220]),
    ("orange", [245, 140, 30]),
    ("grey", [130, 130, 130]),
];
const SHAPES: [(&str, Shape); 4] =
    [("square", Shape::Square), ("disc", Shape::Disc), ("cross", Shape::Cross), ("triangle", Shape::Triangle)];
const BACKGROUNDS: [Rgb; 7] =
    [[20, 20, 20], [250, 250, 250], [200, 220, 240], [90, 90, 90], [235, 220, 190], [0, 0, 0], [225, 235, 250]];
const LINES: [Rgb; 3] = [[128, 128, 128], [60, 60, 60], [190, 200, 220]];
const WALLS: [Rgb; 5] = [[220, 60, 60], [30, 30, 30], [60, 60, 200], [250, 250, 250], [0, 0, 0]];
/// Sides of the grids drawn where nobody asks for others.
pub const SIDES: [u32; 2] = [3, 6];
/// Share of pictures with shapes; the rest have walls.
const SHAPES_SHARE: f64 = 0.55;

#[derive(Clone, Copy)]
enum Shape {
    Square,
    Disc,
    Cross,
    Triangle,
}

/// The picture and question of a seed; `image_size` is the side in pixels, the grid has `least` to `most` cells a side.
pub fn sample(seed: u64, image_size: usize, [least, most]: [u32; 2]) -> Sample {
    let mut random = Draw(Pcg64::new(seed));
    let side = least + random.below(most - least + 1);
    let mut canvas = Canvas::new(image_size, side as usize, random.pick(&BACKGROUNDS));
    if random.chance(SHAPES_SHARE) { shapes(&mut random, canvas) } else { walls(&mut random, &mut canvas) }
}

fn shapes(random: &mut Draw, mut canvas: Canvas) -> Sample {
    let side = canvas.side;
    let density = random.pick(&[0.2, 0.35, 0.5]);
    let mut placed = Vec::new();
    for row in 0..side {
        for col in 0..side {
            if random.chance(density) {
                let (colour, shape) = (random.pick(&COLOURS), random.pick(&SHAPES));
                canvas.shape(shape.1, row, col, colour.1);
                placed.push((row, col, colour.0, shape.0));
            }
        }
    }
    if random.chance(0.5) {
        canvas.grid(random.pick(&LINES));
    }
    let wanted = random.pick(&COLOURS).0;
    let of_colour = || placed.iter().filter(|item| item.2 == wanted);
    let kind = random.0.next_f64();
    let (question, answer) = if kind < 0.45 {
        let items: String =
            placed.iter().map(|(row, col, colour, shape)| format!("\n({row},{col}) {colour} {shape}")).collect();
        (include_str!("../prompts/shapes/list.txt").to_string(), format!("1. {side}x{side}{items}"))
    } else if kind < 0.85 {
        let cells: Vec<String> = of_colour().map(|item| format!("({},{})", item.0, item.1)).collect();
        let cells = if cells.is_empty() { "none".to_string() } else { cells.join("; ") };
        let question = include_str!("../prompts/shapes/find.txt").replace("{colour}", wanted);
        (question, format!("1. {side}x{side}\n2. {cells}"))
    } else {
        let question = include_str!("../prompts/shapes/count.txt").replace("{colour}", wanted);
        (question, of_colour().count().to_string())
    };
    Sample { image: canvas.image, question, answer }
}

fn walls(random: &mut Draw, canvas: &mut Canvas) -> Sample {
    let side = canvas.side;
    let colour = random.pick(&WALLS);
    let thick = 1 + random.below(5) as usize;
    // open[cell] lists the sides in the order up, right, down, left.
    let mut open = vec![[false; 4]; side * side];
    for row in 0..side {
        for col in 0..side {
            let cell = row * side + col;
            if col + 1 < side && random.chance(0.55) {
                open[cell][1] = true;
                open[cell + 1][3] = true;
            } else {
                canvas.wall_right(row, col, thick, colour);
            }
            if row + 1 < side && random.chance(0.55) {
                open[cell][2] = true;
                open[cell + side][0] = true;
            } else {
                canvas.wall_below(row, col, thick, colour);
            }
        }
    }
    canvas.frame(thick, colour);
    let (paint, shape) = (random.pick(&COLOURS), random.pick(&SHAPES));
    let (row, col) = (random.below(side as u32) as usize, random.below(side as u32) as usize);
    canvas.shape(shape.1, row, col, paint.1);
    let mut answer = format!("1. {side}x{side}\n2. ({row},{col}) {} {}\n4.", paint.0, shape.0);
    for (cell, sides) in open.iter().enumerate() {
        let words: Vec<&str> = ["up", "right", "down", "left"]
            .iter()
            .zip(sides)
            .filter(|(_, open)| **open)
            .map(|(word, _)| *word)
            .collect();
        let words = if words.is_empty() { "none".to_string() } else { words.join(", ") };
        answer.push_str(&format!("\n({},{}): {words}", cell / side, cell % side));
    }
    Sample { image: canvas.image.clone(), question: include_str!("../prompts/shapes/walls.txt").to_string(), answer }
}

struct Draw(Pcg64);

impl Draw {
    fn below(&mut self, count: u32) -> u32 {
        self.0.bounded(count - 1)
    }
    fn chance(&mut self, probability: f64) -> bool {
        self.0.next_f64() < probability
    }
    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u32) as usize]
    }
}

struct Canvas {
    image: RgbImage,
    side: usize,
    cell: f32,
}

impl Canvas {
    fn new(size: usize, side: usize, background: Rgb) -> Self {
        let image = RgbImage { width: size, height: size, pixels: background.repeat(size * size) };
        Self { image, side, cell: size as f32 / side as f32 }
    }

    /// Fills the half-open box, cut at the borders.
    fn fill(&mut self, top: f32, left: f32, bottom: f32, right: f32, colour: Rgb) {
        let size = self.image.width;
        let cut = |value: f32| (value.max(0.0) as usize).min(size);
        for y in cut(top)..cut(bottom) {
            self.image.pixels[(y * size + cut(left)) * 3..(y * size + cut(right)) * 3]
                .chunks_exact_mut(3)
                .for_each(|pixel| pixel.copy_from_slice(&colour));
        }
    }

    fn shape(&mut self, shape: Shape, row: usize, col: usize, colour: Rgb) {
        let radius = self.cell * 0.32;
        let (cy, cx) = ((row as f32 + 0.5) * self.cell, (col as f32 + 0.5) * self.cell);
        match shape {
            Shape::Square => self.fill(cy - radius, cx - radius, cy + radius, cx + radius, colour),
            Shape::Cross => {
                let arm = radius / 3.0;
                self.fill(cy - radius, cx - arm, cy + radius, cx + arm, colour);
                self.fill(cy - arm, cx - radius, cy + arm, cx + radius, colour);
            }
            Shape::Disc | Shape::Triangle => {
                for y in (cy - radius) as usize..=(cy + radius) as usize {
                    let offset = y as f32 - cy;
                    let half = match shape {
                        Shape::Disc => (radius * radius - offset * offset).max(0.0).sqrt(),
                        // Apex on top, base at the bottom.
                        _ => ((offset + radius) / 2.0).max(0.0),
                    };
                    self.fill(y as f32, cx - half, y as f32 + 1.0, cx + half, colour);
                }
            }
        }
    }

    fn grid(&mut self, colour: Rgb) {
        let size = self.image.width as f32;
        for line in 0..self.side {
            let at = (line as f32 * self.cell).floor();
            self.fill(at, 0.0, at + 1.0, size, colour);
            self.fill(0.0, at, size, at + 1.0, colour);
        }
    }

    fn wall_right(&mut self, row: usize, col: usize, thick: usize, colour: Rgb) {
        let (x, thick) = ((col + 1) as f32 * self.cell, thick as f32);
        self.fill(row as f32 * self.cell, x - thick, (row + 1) as f32 * self.cell, x + thick, colour);
    }

    fn wall_below(&mut self, row: usize, col: usize, thick: usize, colour: Rgb) {
        let (y, thick) = ((row + 1) as f32 * self.cell, thick as f32);
        self.fill(y - thick, col as f32 * self.cell, y + thick, (col + 1) as f32 * self.cell, colour);
    }

    fn frame(&mut self, thick: usize, colour: Rgb) {
        let (size, thick) = (self.image.width as f32, thick as f32);
        self.fill(0.0, 0.0, thick, size, colour);
        self.fill(size - thick, 0.0, size, size, colour);
        self.fill(0.0, 0.0, size, thick, colour);
        self.fill(0.0, size - thick, size, size, colour);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_sample_and_another_seed_another() {
        let (first, again, other) = (sample(7, 128, SIDES), sample(7, 128, SIDES), sample(8, 128, SIDES));
        assert_eq!((&first.image.pixels, &first.answer), (&again.image.pixels, &again.answer));
        assert_ne!(first.image.pixels, other.image.pixels);
    }

    #[test]
    fn a_picture_of_many_colours_has_at_least_the_pixels_its_answer_names() {
        for seed in 0..200 {
            let sample = sample(seed, 128, SIDES);
            let Some(items) = sample.answer.strip_prefix("1. ").filter(|_| sample.question.ends_with("list")) else {
                continue;
            };
            let side: usize = items[..1].parse().expect("a side");
            for line in items.lines().skip(1) {
                let words: Vec<&str> = line.split(' ').collect();
                let colour = COLOURS.iter().find(|(name, _)| *name == words[1]).expect("a colour").1;
                let cell: Vec<usize> =
                    words[0].trim_matches(['(', ')']).split(',').map(|n| n.parse().expect("a number")).collect();
                let step = 128.0 / side as f32;
                let (y, x) = ((cell[0] as f32 + 0.5) * step, (cell[1] as f32 + 0.5) * step);
                let at = (y as usize * 128 + x as usize) * 3;
                assert_eq!(sample.image.pixels[at..at + 3], colour, "seed {seed} {line}");
            }
        }
    }
}
