//! Moving rows: image tokens into the text stream, labelled positions out of it.

use crate::{Tensor, Write, check, math, par};

/// `out[i] = x[index[i]]`
pub fn gather(out: &mut Tensor, x: &Tensor, index: &[u32]) {
    check_index("rows::gather", index, x.rows());
    let cols = x.cols();
    out.resize(index.len(), cols);
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

fn check_index(op: &str, index: &[u32], rows: usize) {
    if let Some((i, row)) = index.iter().enumerate().find(|(_, row)| **row as usize >= rows) {
        panic!("{op}: index[{i}] = {row} is outside {rows} rows");
    }
}
