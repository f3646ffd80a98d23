//! How the products of a decoding step are dealt to the blocks of a GPU.

use crate::cuda::{DECODE, Tiles};

/// Numbers of a head.
pub(super) const HEAD: usize = 128;
/// Positions of a piece of keys and values.
pub(super) const KEYS: usize = 48;
/// Threads of a block: twelve warps that multiply, four that ask.
pub(super) const THREADS: usize = 512;
/// Counters of blocks: those through with a phase, those that have left.
pub(super) const COUNTERS: usize = 2;

/// Rows that are served.
const MOST_ROWS: usize = 32;
/// Rows of weights in a slot, adapters included, and its bytes.
const SLOT_ROWS: usize = 192;
const SLOT: usize = SLOT_ROWS * STEP * 2;
/// Columns of a slot.
const STEP: usize = Tiles::COLUMNS;
/// Shared memory of a block.
const SHARED: usize = 232_448;
/// Slots for x.
const X_SLOTS: usize = 8;
/// Slots under way at a time.
const AHEAD: usize = 2;
/// Units that share the columns of the same tiles, and slots that a unit has sums for.
const MOST_SPLIT: usize = 8;
const MOST_STEPS: usize = 4;

/// The sizes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub rows: usize,
    pub hidden: usize,
    pub q_out: usize,
    pub kv_out: usize,
    pub inter: usize,
    /// Of the adapters; 0: there are none.
    pub rank: usize,
}

/// One product.
#[derive(Clone, Copy, Debug)]
struct Problem<'a> {
    width: usize,
    outputs: &'a [usize],
    gated: bool,
    /// Rows of the adapters' first halves together.
    low: usize,
}

/// How a product is cut: tiles of `height` rows of weights, `per` of them in a slot, `tiles` in a unit, whose columns
/// `split` units share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    height: usize,
    per: usize,
    tiles: usize,
    split: usize,
    groups: usize,
}

/// The kernel's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    sizes: Sizes,
    /// Rows, rounded up.
    pub rows: usize,
    pub blocks: usize,
    /// q, k, v; o; gate, up; down.
    cuts: [Cut; 4],
}

impl Plan {
    /// The plan with the least expected time on so many multiprocessors, if the kernel serves these sizes.
    pub(super) fn of(sizes: &Sizes, multiprocessors: usize) -> Option<Self> {
        let &Sizes { rows, hidden, q_out, kv_out, inter, rank } = sizes;
        let whole = |width: usize| width > 0 && width.is_multiple_of(STEP) && width <= u16::MAX as usize;
        let heads = q_out.is_multiple_of(HEAD) && kv_out.is_multiple_of(HEAD) && q_out.is_multiple_of(kv_out.max(1));
        if rows == 0
            || rows > MOST_ROWS
            || ![hidden, q_out, kv_out, inter].into_iter().all(whole)
            || !heads
            || q_out / kv_out > 16
            || !rank.is_multiple_of(8)
        {
            return None;
        }
        let padded = rows.next_power_of_two().max(8);
        let cut = |width, outputs: &[usize], gated| {
            Problem { width, outputs, gated, low: rank * outputs.len() }.cut(padded, multiprocessors)
        };
        let cuts = [
            cut(hidden, &[q_out, kv_out, kv_out], false)?,
            cut(q_out, &[hidden], false)?,
            cut(hidden, &[inter, inter], true)?,
            cut(inter, &[hidden], false)?,
        ];
        let mut cuts: [Cut; 4] = cuts;
        if let Ok(text) = std::env::var("MGSD_PLAN") {
            for (index, part) in text.split(';').enumerate() {
                let n: Vec<usize> = part.split(',').filter_map(|x| x.parse().ok()).collect();
                if let [height, per, tiles, split] = n[..] {
                    let outputs: Vec<usize> = [vec![q_out, kv_out, kv_out], vec![hidden], vec![inter, inter], vec![hidden]][index].clone();
                    let groups = Problem { width: 0, outputs: &outputs, gated: index == 2, low: 0 }.groups(tiles, height);
                    cuts[index] = Cut { height, per, tiles, split, groups };
                }
            }
        }
        let units = cuts.iter().map(|cut| cut.groups * cut.split).max().unwrap_or(1);
        let blocks = units.max((rows * kv_out / HEAD).min(multiprocessors));
        let blocks = std::env::var("MGSD_BLOCKS").ok().and_then(|b| b.parse().ok()).unwrap_or(blocks);
        let plan = Self { sizes: *sizes, rows: padded, blocks, cuts };
        (plan.slots() >= 2).then_some(plan)
    }

    /// In the order of [`DECODE`].
    pub(super) fn macros(&self) -> [u16; DECODE.len()] {
        let Sizes { hidden, q_out, kv_out, inter, rank, .. } = self.sizes;
        let ahead = std::env::var("MGSD_AHEAD").ok().and_then(|b| b.parse().ok()).unwrap_or(AHEAD);
        let sizes = [self.rows, self.blocks, self.slots(), X_SLOTS, ahead, hidden, q_out, kv_out, inter, rank];
        let cuts = self.cuts.iter().flat_map(|cut| [cut.height, cut.per, cut.tiles, cut.split]);
        let mut all = [0; DECODE.len()];
        all.iter_mut().zip(sizes.into_iter().chain(cuts)).for_each(|(to, from)| *to = from as u16);
        all
    }

    /// Rows of the tiles of a matrix: q, k, v, o, gate, up, down.
    pub(super) fn height(&self, matrix: usize) -> usize {
        self.cuts[[0, 0, 0, 1, 2, 2, 3][matrix]].height
    }

    /// Query heads a key-value head.
    fn grouped(&self) -> usize {
        self.sizes.q_out / self.sizes.kv_out
    }

    /// Shared memory behind the ring of weights: x, or what attention finds; barriers; numbers of rows.
    fn beside(&self) -> usize {
        let x = X_SLOTS * self.rows * STEP * 2;
        let queries = 16 * (HEAD * 2 + 16);
        let found = queries + 12 * self.grouped() * (HEAD * 4 + 8);
        x.max(found).next_multiple_of(64) + 1024 + 2 * 128
    }

    fn slots(&self) -> usize {
        SHARED.saturating_sub(self.beside()) / SLOT
    }

    pub(super) fn shared(&self) -> usize {
        self.beside() + self.slots() * SLOT
    }

    /// Numbers that units of a product write.
    pub(super) fn sums(&self) -> usize {
        let sums = |cut: &Cut| cut.groups * cut.split * (cut.tiles / cut.per) * SLOT_ROWS * self.rows;
        self.cuts.iter().map(sums).sum()
    }

    /// Sums of squares: for each sixteen outputs that are added to the stream, as units cut them.
    pub(super) fn squares(&self) -> usize {
        let strips = |cut: &Cut| cut.groups * cut.tiles * cut.height.div_ceil(16);
        strips(&self.cuts[1]).max(strips(&self.cuts[3])).max(self.sizes.hidden / 16) * self.rows
    }

    /// What blocks find of heads whose first pieces are another's: a sum, and twice as many highest scores and totals.
    pub(super) fn joined(&self) -> usize {
        self.blocks * self.grouped() * HEAD * 2
    }
}

impl Problem<'_> {
    fn cut(&self, rows: usize, multiprocessors: usize) -> Option<Cut> {
        let chunks = self.width / STEP;
        let mut best: Option<(f64, Cut)> = None;
        for per in 1..=3 {
            for tiles in (1..=MOST_STEPS).map(|steps| steps * per).filter(|tiles| !self.gated || tiles % 2 == 0) {
                for split in 1..=MOST_SPLIT.min(chunks) {
                    let Some((time, cut)) = self.with(per, tiles, split, rows, multiprocessors) else { continue };
                    if best.is_none_or(|(least, _)| time < least) {
                        best = Some((time, cut));
                    }
                }
            }
        }
        best.map(|(_, cut)| cut)
    }

    fn groups(&self, tiles: usize, height: usize) -> usize {
        match self.gated {
            true => self.outputs[0].div_ceil(height).div_ceil(tiles / 2),
            false => self.outputs.iter().map(|outputs| outputs.div_ceil(height)).sum::<usize>().div_ceil(tiles),
        }
    }

    /// Expected microseconds, and the cut with the lowest tiles whose units all have a block.
    fn with(&self, per: usize, tiles: usize, split: usize, rows: usize, blocks: usize) -> Option<(f64, Cut)> {
        let step = if per > 1 { 16 } else { 8 };
        let most = SLOT_ROWS.checked_sub(self.low)? / per;
        let height = (step..=most).step_by(step).find(|&height| self.groups(tiles, height) * split <= blocks)?;
        let groups = self.groups(tiles, height);
        let count = (self.width / STEP).div_ceil(split);
        let weights = count * (tiles * height + self.low) * STEP * 2;
        let x = count * rows * STEP * 2;
        let sums = 2 * tiles * height * rows * 4;
        // Measured on an H200: a multiprocessor takes in 33 kB a µs if enough is under way.
        let rate = 33e3 * ((8 * per * height * STEP * 2) as f64 / 120e3).min(1.0);
        let time = (weights as f64 + 0.6 * (x + sums) as f64) / rate + if split > 1 { 1.0 } else { 0.0 };
        Some((time, Cut { height, per, tiles, split, groups }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B4: Sizes = Sizes { rows: 32, hidden: 2560, q_out: 4096, kv_out: 1024, inter: 9728, rank: 0 };
    const B8: Sizes = Sizes { rows: 32, hidden: 4096, q_out: 4096, kv_out: 1024, inter: 12288, rank: 0 };

    #[test]
    fn every_output_is_covered_by_units_that_each_have_a_block() {
        let small = Sizes { rows: 3, hidden: 128, q_out: 256, kv_out: 128, inter: 192, rank: 0 };
        for sizes in [B4, B8, small] {
            for (rows, rank) in [(1, 0), (8, 8), (9, 16), (32, 8), (32, 32)] {
                let plan = Plan::of(&Sizes { rows, rank, ..sizes }, 132).expect("these sizes are served");
                let products = [vec![sizes.q_out, sizes.kv_out, sizes.kv_out], vec![sizes.hidden], vec![sizes.inter]];
                let products = [products[0].clone(), products[1].clone(), products[2].clone(), products[1].clone()];
                for ((cut, outputs), sets) in plan.cuts.iter().zip(products).zip([3, 1, 2, 1]) {
                    let tiles: usize = outputs.iter().map(|outputs| outputs.div_ceil(cut.height)).sum();
                    let held = if sets == 2 { cut.tiles / 2 } else { cut.tiles };
                    assert!(cut.groups * held >= tiles && cut.groups * cut.split <= plan.blocks, "{plan:?}");
                    assert!(cut.per * cut.height + sets * rank <= SLOT_ROWS, "{plan:?}");
                    assert!(cut.height.is_multiple_of(if cut.per > 1 { 16 } else { 8 }), "{plan:?}");
                }
                assert!(plan.blocks <= 132 && plan.shared() <= SHARED && plan.slots() >= 4, "{plan:?}");
            }
        }
    }

    #[test]
    fn published_sizes_are_cut_without_much_waste() {
        for sizes in [B4, B8] {
            let plan = Plan::of(&sizes, 132).expect("these sizes are served");
            let Sizes { hidden, q_out, kv_out, inter, .. } = sizes;
            let whole = [(q_out + 2 * kv_out) * hidden, hidden * q_out, 2 * inter * hidden, hidden * inter];
            let widths = [hidden, q_out, hidden, inter];
            for ((cut, whole), width) in plan.cuts.iter().zip(whole).zip(widths) {
                let most = (width / STEP).div_ceil(cut.split) * STEP * cut.tiles * cut.height;
                assert!((most * 132) as f64 <= 1.08 * whole as f64, "{cut:?}: {most} of {whole}");
            }
        }
    }

    #[test]
    fn other_sizes_are_not_served() {
        for sizes in [
            Sizes { rows: 33, ..B4 },
            Sizes { rows: 0, ..B4 },
            Sizes { hidden: 2568, ..B4 },
            Sizes { kv_out: 96, ..B4 },
            Sizes { rank: 4, ..B4 },
            Sizes { rank: 64, ..B4 },
        ] {
            assert_eq!(Plan::of(&sizes, 132), None, "{sizes:?}");
        }
    }
}
