//! Weighted sum of four table rows per output row: the vision tower's bilinear position embedding.

use crate::{Tensor, Write, check, math, par};

/// Four (row, weight) pairs for one output row.
pub type Taps = [(u32, f32); 4];

/// Tasks of the backward pass: each owns the table rows whose number leaves its remainder.
const BUCKETS: usize = 16;

/// `out[i] (=|+=) Σ_j weight_ij table[row_ij]`; `table: [positions, width]` (F32 or Bf16), `out: [taps.len(), width]`.
pub fn forward(out: &mut Tensor, table: &Tensor, taps: &[Taps], write: Write) {
    let width = table.cols();
    check_taps("interpolate::forward", taps, table.rows());
    match write {
        Write::Set => out.resize(taps.len(), width),
        Write::Add => check::shape("interpolate::forward", "out", out, taps.len(), width),
    }
    let table = table.values();
    let out = par::Out::new(out.as_mut_slice());
    par::row_blocks(taps.len(), width, |first, count| {
        par::with_scratch(width, |from| {
            for (row, taps) in taps.iter().enumerate().skip(first).take(count) {
                // SAFETY: each row is written by one task.
                let out = unsafe { out.slice(row * width, width) };
                if write == Write::Set {
                    out.fill(0.0);
                }
                for (source, weight) in *taps {
                    table.read(source as usize * width, from);
                    math::add_scaled(out, from, weight);
                }
            }
        });
    });
}

/// `dtable[row_ij] += weight_ij dout[i]`
pub fn backward(dtable: &mut Tensor, dout: &Tensor, taps: &[Taps]) {
    let width = dtable.cols();
    check_taps("interpolate::backward", taps, dtable.rows());
    check::shape("interpolate::backward", "dout", dout, taps.len(), width);
    let dout = dout.as_slice();
    let dtable = par::Out::new(dtable.as_mut_slice());
    par::tasks(BUCKETS, |bucket| {
        for (row, taps) in taps.iter().enumerate() {
            for &(source, weight) in taps {
                if source as usize % BUCKETS == bucket && weight != 0.0 {
                    // SAFETY: a table row belongs to one bucket, so to one task.
                    let to = unsafe { dtable.slice(source as usize * width, width) };
                    math::add_scaled(to, &dout[row * width..(row + 1) * width], weight);
                }
            }
        }
    });
}

fn check_taps(op: &str, taps: &[Taps], rows: usize) {
    for (i, (row, _)) in taps.iter().enumerate().flat_map(|(i, four)| four.map(|tap| (i, tap))) {
        assert!((row as usize) < rows, "{op}: taps[{i}] names row {row} of a table of {rows} rows");
    }
}
