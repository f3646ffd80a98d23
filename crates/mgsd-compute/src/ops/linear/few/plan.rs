//! How a product of few rows is dealt to the blocks of a GPU.

/// Rows up to which the kernels are used. Beyond, the library's products are as fast or faster.
const MOST_ROWS: usize = 32;
/// Shared memory of a block: at most that of a multiprocessor, and so much that there is room for one block only. With
/// two, some multiprocessors would get two blocks of the next kernel while others get none.
const SHARED: std::ops::RangeInclusive<usize> = 120_000..=232_448;
/// Columns of a step.
const STEP: usize = 64;
/// Bytes of a tile (16 rows of weights) in one step.
const TILE: usize = 2048;

/// One product: `tiles` tiles of weights, `width` columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem {
    pub rows: usize,
    pub width: usize,
    pub tiles: usize,
    pub gated: bool,
    pub norm: bool,
}

/// The kernel's sizes and those of its launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Rows of x, rounded up.
    rows: usize,
    pub warps: usize,
    stages: usize,
    gated: bool,
    norm: bool,
    /// Rounds of tiles of a block.
    pub passes: usize,
    /// Blocks that share the columns of the same tiles: a cluster.
    pub split: usize,
    pub blocks: usize,
    pub shared: usize,
}

impl Plan {
    /// ROWS, WARPS, STAGES, GATED and NORM.
    pub(super) fn macros(&self) -> [u8; 5] {
        [self.rows as u8, self.warps as u8, self.stages as u8, self.gated as u8, self.norm as u8]
    }
}

/// Tiles of layers with these numbers of outputs; `None` if the kernels cannot serve them.
pub(super) fn tiles(outputs: &[usize], gated: bool) -> Option<usize> {
    if outputs.iter().any(|&outputs| outputs == 0 || !outputs.is_multiple_of(8)) {
        return None;
    }
    // A gated tile is eight rows of either layer.
    let tiles = |&outputs: &usize| outputs.div_ceil(if gated { 8 } else { 16 });
    Some(if gated { tiles(&outputs[0]) } else { outputs.iter().map(tiles).sum() })
}

impl Problem {
    /// The plan with the least expected time, if the kernels can serve this at all.
    pub(super) fn plan(&self, multiprocessors: usize) -> Option<Plan> {
        if self.rows == 0
            || self.rows > MOST_ROWS
            || self.tiles == 0
            || self.width == 0
            || !self.width.is_multiple_of(STEP)
        {
            return None;
        }
        let choices = [4, 8, 12].into_iter().flat_map(|warps| (1..=8).map(move |split| (warps, split)));
        let plans = choices.filter_map(|(warps, split)| self.with(warps, split, multiprocessors));
        plans.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, plan)| plan)
    }

    /// Expected microseconds and the plan for blocks of `warps` warps in clusters of `split`.
    fn with(&self, warps: usize, split: usize, multiprocessors: usize) -> Option<(f64, Plan)> {
        let chunks = self.width / STEP;
        // Clusters lie within groups of 16 or 18 multiprocessors: on an H200 17 of six fit, not 22.
        let clusters = match split {
            1 | 2 => multiprocessors / split,
            _ => multiprocessors * 77 / (100 * split),
        };
        let groups = self.tiles.div_ceil(warps);
        let passes = groups.div_ceil(clusters.max(1));
        if split > chunks || clusters == 0 || (split > 1 && passes > 1) {
            return None;
        }
        let rows = self.rows.next_power_of_two().max(8);
        let steps = chunks.div_ceil(split) * passes;
        let (step, x_step) = (warps * TILE, rows * STEP * 2);
        // One step of x more than of weights, two numbers for each row, the scale of the norm.
        let other = x_step + rows * 8 + if self.norm { chunks.div_ceil(split) * STEP * 4 } else { 0 };
        let stages = (SHARED.end().checked_sub(other)? / (step + x_step)).min(8);
        if stages < 3 {
            return None;
        }
        // Measured on an H200: a step takes 0.4 µs at least, a multiprocessor takes in 35 kB a µs, all together 4.2 MB;
        // adding up the sums of a cluster takes 1.5 µs.
        let own = steps as f64 * ((step + x_step) as f64 / 35e3).max(0.4);
        let all = (self.tiles * chunks * TILE) as f64 / 4.2e6;
        let time = own.max(all) + if split > 1 { 1.5 } else { 0.0 };
        let blocks = groups.div_ceil(passes) * split;
        let shared = (stages * (step + x_step) + other).max(*SHARED.start());
        let Self { gated, norm, .. } = *self;
        Some((time, Plan { rows, warps, stages, gated, norm, passes, split, blocks, shared }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rows: usize, width: usize, outputs: &[usize], gated: bool) -> Option<Plan> {
        let tiles = tiles(outputs, gated)?;
        Problem { rows, width, tiles, gated, norm: true }.plan(132)
    }

    #[test]
    fn every_tile_and_every_column_is_covered_by_blocks_that_run_at_the_same_time() {
        for rows in [1, 8, 9, 32] {
            for (width, outputs, gated) in [
                (2560, vec![4096, 1024, 1024], false),
                (4096, vec![2560], false),
                (9728, vec![2560], false),
                (2560, vec![9728, 9728], true),
                (64, vec![8], false),
                (2560, vec![16, 16, 16], false),
                (2560, vec![151_936], false),
            ] {
                let plan = plan(rows, width, &outputs, gated).expect("these shapes are served");
                let tiles = tiles(&outputs, gated).unwrap_or_default();
                assert!(plan.blocks / plan.split * plan.passes * plan.warps >= tiles, "{plan:?}");
                assert!(plan.blocks <= 132 && plan.split <= width / STEP && SHARED.contains(&plan.shared), "{plan:?}");
                assert!(plan.split == 1 || plan.passes == 1, "{plan:?}");
                assert!(plan.rows >= rows && plan.warps.is_multiple_of(4) && plan.stages >= 3, "{plan:?}");
            }
        }
    }

    #[test]
    fn other_shapes_are_left_to_the_library() {
        assert_eq!(plan(33, 2560, &[2560], false), None);
        assert_eq!(plan(8, 2561, &[2560], false), None);
        assert_eq!(plan(8, 2560, &[2561], false), None);
        assert_eq!(plan(0, 2560, &[2560], false), None);
    }
}
