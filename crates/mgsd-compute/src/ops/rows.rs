//! Moving rows: image tokens into the text stream, labelled positions out of it.

use crate::{Tensor, Write, check, math, par};

/// `out[i] = x[index[i]]`
pub fn gather(out: &mut Tensor, x: &Tensor, index: &[u32]) {
    check_index("rows::gather", index, x.rows());
    let cols = x.cols();
    out.place(x, index.len(), cols);
    if let Some(gpu) = x.gpu() {
        let args = [out.pointer().into(), x.pointer().into(), gpu.list(index).into(), cols.into()];
        return gpu.launch(x.kernel("rows", "gather"), [index.len() as u32, 1, 1], threads(cols), 0, &args);
    }
    let x = x.values();
    let out = par::Out::new(out.as_mut_slice());
    par::row_blocks(index.len(), cols, |first, count| {
        for (row, &source) in index.iter().enumerate().skip(first).take(count) {
            // SAFETY: each row is written by one task.
            let out = unsafe { out.slice(row * cols, cols) };
            x.read(source as usize * cols, out);
        }
    });
}

/// `out[index[i]] (=|+=) x[i]`; other rows of `out` stay. Indices are distinct.
pub fn scatter(out: &mut Tensor, x: &Tensor, index: &[u32], write: Write) {
    check_index("rows::scatter", index, out.rows());
    check::shape("rows::scatter", "x", x, index.len(), out.cols());
    let cols = x.cols();
    if let Some(gpu) = x.gpu() {
        check::eights("rows::scatter", x);
        let (add, index_at) = (write == Write::Add, gpu.list(index));
        let args = [out.pointer().into(), x.pointer().into(), index_at.into(), cols.into(), add.into()];
        return gpu.launch(x.kernel("rows", "scatter"), [index.len() as u32, 1, 1], threads(cols), 0, &args);
    }
    let x = x.as_slice();
    // One thread: were the indices not distinct, more would race. It is a copy of few rows.
    let out = out.as_mut_slice();
    for (x, &row) in x.chunks_exact(cols.max(1)).zip(index) {
        let out = &mut out[row as usize * cols..(row as usize + 1) * cols];
        match write {
            Write::Set => out.copy_from_slice(x),
            Write::Add => math::add_scaled(out, x, 1.0),
        }
    }
}

/// `x: [rows, parts * width]` to as many matrices `[rows, width]`.
pub fn split_columns<const PARTS: usize>(parts: [&mut Tensor; PARTS], x: &Tensor) {
    let (rows, width) = (x.rows(), x.cols() / PARTS);
    assert!(x.cols() == width * PARTS, "rows::split_columns: {} columns into {PARTS} parts", x.cols());
    for (index, part) in parts.into_iter().enumerate() {
        part.place(x, rows, width);
        copy_columns(part, 0, x, index * width, width);
    }
}

/// The inverse of [`split_columns`].
pub fn join_columns<const PARTS: usize>(x: &mut Tensor, parts: [&Tensor; PARTS]) {
    let [first, ..] = &parts[..] else { return };
    let (rows, width) = (first.rows(), first.cols());
    x.place(first, rows, PARTS * width);
    for (index, part) in parts.into_iter().enumerate() {
        check::shape("rows::join_columns", "part", part, rows, width);
        copy_columns(x, index * width, part, 0, width);
    }
}

/// `to[:, to_start..][..width] = from[:, from_start..][..width]`
fn copy_columns(to: &mut Tensor, to_start: usize, from: &Tensor, from_start: usize, width: usize) {
    let (rows, to_cols, from_cols) = (to.rows(), to.cols(), from.cols());
    if let Some(gpu) = from.gpu() {
        assert!(width.is_multiple_of(8), "rows on a GPU: {width} columns to copy; a multiple of 8 is expected");
        let args = [
            to.pointer().into(),
            from.pointer().into(),
            rows.into(),
            width.into(),
            to_cols.into(),
            to_start.into(),
            from_cols.into(),
            from_start.into(),
        ];
        return gpu.flat(to.kernel("rows", "copy_columns"), rows * width, 8, &args);
    }
    let from = from.as_slice();
    let out = par::Out::new(to.as_mut_slice());
    par::row_blocks(rows, width, |first, count| {
        for row in first..first + count {
            // SAFETY: these columns of a row are written by one task.
            let to = unsafe { out.slice(row * to_cols + to_start, width) };
            to.copy_from_slice(&from[row * from_cols + from_start..][..width]);
        }
    });
}

/// Threads of a block that copies a row of `cols` numbers.
fn threads(cols: usize) -> [u32; 2] {
    [cols.div_ceil(8).next_multiple_of(32).min(256) as u32, 1]
}

fn check_index(op: &str, index: &[u32], rows: usize) {
    if let Some((i, row)) = index.iter().enumerate().find(|(_, row)| **row as usize >= rows) {
        panic!("{op}: index[{i}] = {row} is outside {rows} rows");
    }
}
