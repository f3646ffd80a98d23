//! How a product of few rows is dealt to the blocks of a GPU.

use crate::cuda::{FEW, LARGEST_CLUSTER, Tiles};

/// Rows up to which the kernels are used. Beyond, the library's products are as fast or faster.
const MOST_ROWS: usize = 32;
/// Columns of a tile.
const STEP: usize = Tiles::COLUMNS;
/// What a block may use of a multiprocessor's shared memory (227 KiB), without and with a norm: a block of one kind and
/// one of the other find room side by side, so that the next kernel's weights are on their way before this one ends. So do
/// two blocks of decoding attention (75,136 bytes each with what the driver takes) and one without a norm.
const SHARED: [usize; 2] = [82_100, 145_000];
/// What a block may use if it needs more.
const ALL_SHARED: usize = 232_448;
/// Sums that a thread keeps in registers, without and with those of adapters.
const MOST_SUMS: [usize; 2] = [96, 144];
/// Tiles in the ring.
const MOST_STAGES: usize = 16;
/// Groups of four warps that multiply in a block, without and with a norm: registers, too, are for two kernels.
const MOST_WARPGROUPS: [usize; 2] = [2, 3];

/// One product: layers with these numbers of outputs, `width` columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem<'a> {
    pub rows: usize,
    pub width: usize,
    pub outputs: &'a [usize],
    pub gated: bool,
    pub norm: bool,
    /// Rows of the adapters' first halves together, a multiple of 8.
    pub low: usize,
}

/// The kernel's sizes and those of its launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Rows of x, rounded up.
    pub rows: usize,
    /// Groups of four warps that multiply.
    groups: usize,
    /// Times 64 rows of a tile that each of them multiplies.
    slices: usize,
    /// Rows of weights in a tile.
    pub height: usize,
    /// Tiles of a block.
    tiles: usize,
    stages: usize,
    gated: bool,
    norm: bool,
    low: usize,
    /// Blocks that share the columns of the same tiles: a cluster.
    pub split: usize,
    pub blocks: usize,
    /// Where in shared memory the kernel keeps numbers of each row and its barriers.
    pub fixed: usize,
    pub shared: usize,
}

impl Plan {
    pub(super) fn macros(&self) -> [usize; FEW.len()] {
        let Self { rows, groups, slices, height, split, tiles, stages, gated, norm, low, .. } = *self;
        [rows, groups, slices, height, split, tiles, stages, gated as usize, norm as usize, low]
    }

    /// Threads of a block: those that multiply, and a warp that copies.
    pub(super) fn threads(&self) -> usize {
        self.groups * 128 + 32
    }
}

impl Problem<'_> {
    /// The plan with the least expected time, if the kernels can serve this at all. `clusters`: how many clusters of one
    /// block, of two, and so on run at the same time.
    pub(super) fn plan(&self, clusters: &[usize; LARGEST_CLUSTER]) -> Option<Plan> {
        let served = |&outputs: &usize| outputs > 0 && outputs.is_multiple_of(8);
        if self.rows == 0
            || self.rows > MOST_ROWS
            || self.width == 0
            || !self.width.is_multiple_of(STEP)
            || !self.outputs.iter().all(served)
            || !self.low.is_multiple_of(8)
        {
            return None;
        }
        let with = |split: usize, tiles, budget| self.with(split, tiles, clusters[split - 1], budget);
        // Adapters change little; the tiles that are best without them were measured.
        if self.low > 0
            && let Some(plain) = (Problem { low: 0, ..*self }).plan(clusters)
            && let Some((_, plan)) = with(plain.split, plain.tiles, SHARED[self.norm as usize])
        {
            return Some(plan);
        }
        [SHARED[self.norm as usize], ALL_SHARED].into_iter().find_map(|budget| {
            let choices = (1..=LARGEST_CLUSTER).flat_map(|split| [1, 2, 3, 4, 6].map(|tiles| (split, tiles)));
            let plans = choices.filter_map(|(split, tiles)| with(split, tiles, budget));
            plans.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, plan)| plan)
        })
    }

    /// Clusters that it takes with `tiles` tiles of `height` rows each.
    fn groups(&self, tiles: usize, height: usize) -> usize {
        if self.gated {
            return self.outputs[0].div_ceil(height).div_ceil(tiles / 2);
        }
        self.outputs.iter().map(|outputs| outputs.div_ceil(height)).sum::<usize>().div_ceil(tiles)
    }

    /// Expected microseconds and the plan for clusters of `split`, of which `at_once` run at the same time.
    fn with(&self, split: usize, tiles: usize, at_once: usize, budget: usize) -> Option<(f64, Plan)> {
        let rows = self.rows.next_power_of_two().max(8);
        let chunks = self.width / STEP;
        if split > chunks || at_once == 0 || (self.gated && !tiles.is_multiple_of(2)) {
            return None;
        }
        // The lowest tiles with which all clusters run at the same time, else the highest that there are.
        let warpgroups = MOST_WARPGROUPS[self.norm as usize];
        let slices = (MOST_SUMS[0] / (rows / 2 * tiles)).min(2);
        let most = (slices * warpgroups * 64).min(Tiles::MOST_ROWS);
        let height = (8..=most).step_by(8).find(|&height| self.groups(tiles, height) <= at_once).unwrap_or(most);
        if height == 0 {
            return None;
        }
        let slices = height.div_ceil(64 * warpgroups);
        let warpgroups = height.div_ceil(64 * slices);

        // As the kernel says what lies in shared memory.
        let count = chunks.div_ceil(split);
        let (tile, x, low) = (height * STEP * 2, rows * STEP * 2, self.low * STEP * 2);
        let (front, kept) = if self.norm { (tile, count * (x + STEP * 4)) } else { (tile + x, 0) };
        let (stage, low_slices) = (front + low, self.low.div_ceil(64));
        if rows / 2 * (tiles * slices + low_slices.div_ceil(warpgroups)) > MOST_SUMS[1] {
            return None;
        }
        let row_numbers = if self.norm { (warpgroups * 16 / rows).max(1) + 1 } else { 0 };
        let sums = (tiles * warpgroups * slices + low_slices) * 64 * rows * 4 + rows * self.low * 2;
        let fixed = |stages: usize| {
            let slices_of_low = low_slices * 64 * STEP * 2;
            let low_end = if stage >= slices_of_low { stage } else { front + slices_of_low };
            let whole = (warpgroups * slices * 64 * STEP * 2).max(low_end);
            (stages * stage + kept).max((stages - 1) * stage + whole).max(sums).next_multiple_of(16)
        };
        let shared = |stages: usize| fixed(stages) + row_numbers * rows * 4 + (2 * stages + 1) * 8;
        let stages = (2..=MOST_STAGES).rev().find(|&stages| shared(stages) <= budget)?;

        let groups = self.groups(tiles, height);
        let copies = if self.norm { count } else { count * tiles };
        let bytes = (tiles * count * tile) as f64 + 0.7 * (copies * x + count * low) as f64;
        // Measured on an H200: a multiprocessor takes in 33 kB a µs if enough is under way.
        let rate = 33e3 * (((stages - 1) * tile) as f64 / 45e3).min(1.0);
        let time = groups.div_ceil(at_once) as f64
            * ((bytes + tile as f64) / rate + 1.5 + 0.15 * split as f64 + 0.02 * (tiles * count) as f64);
        let plan = Plan {
            rows,
            groups: warpgroups,
            slices,
            height,
            tiles,
            stages,
            gated: self.gated,
            norm: self.norm,
            low: self.low,
            split,
            blocks: groups * split,
            fixed: fixed(stages),
            shared: shared(stages),
        };
        Some((time, plan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An H200's.
    const CLUSTERS: [usize; LARGEST_CLUSTER] = [132, 66, 39, 30, 22, 17, 15, 15];

    fn plan(rows: usize, width: usize, outputs: &[usize], gated: bool, norm: bool, low: usize) -> Option<Plan> {
        Problem { rows, width, outputs, gated, norm, low }.plan(&CLUSTERS)
    }

    #[test]
    fn every_output_and_every_column_is_covered_by_blocks_that_fit() {
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
                for (norm, low) in [(false, 0), (true, 0), (false, 8), (true, 24), (true, 192)] {
                    let plan = plan(rows, width, &outputs, gated, norm, low).expect("these shapes are served");
                    let groups = plan.blocks / plan.split;
                    let tiles: usize = outputs.iter().map(|outputs| outputs.div_ceil(plan.height)).sum();
                    assert!(groups * plan.tiles >= tiles && !(gated && plan.tiles % 2 == 1), "{plan:?}");
                    assert!(plan.split * STEP <= width && plan.shared <= ALL_SHARED, "{plan:?}");
                    assert!(plan.rows >= rows && plan.stages >= 2, "{plan:?}");
                    assert!(
                        plan.height <= 64 * plan.groups * plan.slices && plan.height <= Tiles::MOST_ROWS,
                        "{plan:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_decoding_step_of_four_billion_parameters_runs_all_its_blocks_at_once_and_two_kernels_side_by_side() {
        for (width, outputs, gated, norm) in [
            (2560, vec![4096, 1024, 1024], false, true),
            (4096, vec![2560], false, false),
            (2560, vec![9728, 9728], true, true),
            (9728, vec![2560], false, false),
        ] {
            for rank in [0, 8, 16] {
                let low = rank * outputs.len();
                let plan = plan(32, width, &outputs, gated, norm, low).expect("these shapes are served");
                assert!(plan.blocks / plan.split <= CLUSTERS[plan.split - 1] && plan.blocks >= 110, "{plan:?}");
                assert!(plan.shared <= SHARED[norm as usize], "{plan:?}");
            }
        }
    }

    #[test]
    fn other_shapes_are_left_to_the_library() {
        assert_eq!(plan(33, 2560, &[2560], false, true, 0), None);
        assert_eq!(plan(8, 2561, &[2560], false, true, 0), None);
        assert_eq!(plan(8, 2560, &[2561], false, true, 0), None);
        assert_eq!(plan(0, 2560, &[2560], false, true, 0), None);
        assert_eq!(plan(8, 2560, &[2560], false, true, 4), None);
    }
}
