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
        Write::Set => out.place(table, taps.len(), width),
        Write::Add => check::shape("interpolate::forward", "out", out, taps.len(), width),
    }
    if let Some(gpu) = out.gpu() {
        assert!(width.is_multiple_of(8), "interpolate on a GPU: rows of {width} numbers; a multiple of 8 is expected");
        let rows: Vec<u32> = taps.iter().flatten().map(|tap| tap.0).collect();
        let weights: Vec<f32> = taps.iter().flatten().map(|tap| tap.1).collect();
        let args = [
            out.pointer().into(),
            table.pointer_f32().into(),
            gpu.list(&rows).into(),
            gpu.list(&weights).into(),
            width.into(),
            (write == Write::Add).into(),
        ];
        return gpu.launch(
            out.kernel("interpolate", "forward"),
            [taps.len() as u32, 1, 1],
            cuda_block(width),
            0,
            &args,
        );
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
    if let Some(gpu) = dout.gpu() {
        let used = taps.iter().enumerate().flat_map(|(row, four)| four.map(|(to, weight)| (to, row as u32, weight)));
        let mut used: Vec<(u32, u32, f32)> = used.filter(|(_, _, weight)| *weight != 0.0).collect();
        used.sort_by_key(|(to, row, _)| (*to, *row));
        let mut starts: Vec<u32> =
            (0..used.len() as u32).filter(|&at| at == 0 || used[at as usize].0 != used[at as usize - 1].0).collect();
        let targets: Vec<u32> = starts.iter().map(|&at| used[at as usize].0).collect();
        starts.push(used.len() as u32);
        let sources: Vec<u32> = used.iter().map(|(_, row, _)| *row).collect();
        let weights: Vec<f32> = used.iter().map(|(_, _, weight)| *weight).collect();
        let args = [
            dtable.pointer_f32().into(),
            dout.pointer().into(),
            gpu.list(&targets).into(),
            gpu.list(&starts).into(),
            gpu.list(&sources).into(),
            gpu.list(&weights).into(),
            width.into(),
        ];
        let grid = [targets.len() as u32, 1, 1];
        return gpu.launch(dout.kernel("interpolate", "backward"), grid, cuda_block(width), 0, &args);
    }
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

/// Threads of a block on a GPU that serves a row.
fn cuda_block(width: usize) -> [u32; 2] {
    [width.div_ceil(8).next_multiple_of(32).min(256) as u32, 1]
}

fn check_taps(op: &str, taps: &[Taps], rows: usize) {
    for (i, (row, _)) in taps.iter().enumerate().flat_map(|(i, four)| four.map(|tap| (i, tap))) {
        assert!((row as usize) < rows, "{op}: taps[{i}] names row {row} of a table of {rows} rows");
    }
}
