//! Table lookup. `table: [vocab, width]` (F32 or Bf16), `out: [ids.len(), width]`.

use crate::{Tensor, check, math, par};

/// Tasks of the backward pass: each owns the table rows whose number leaves its remainder.
const BUCKETS: usize = 16;

/// `out[i] = table[ids[i]]`
pub fn forward(out: &mut Tensor, ids: &[u32], table: &Tensor) {
    let width = table.cols();
    check_ids("embedding::forward", ids, table.rows());
    out.resize(ids.len(), width);
    let values = table.values();
    let out = par::Out::new(out.as_mut_slice());
    par::row_blocks(ids.len(), width, |first, count| {
        for (row, &id) in ids.iter().enumerate().skip(first).take(count) {
            // SAFETY: each row is written by one task.
            let out = unsafe { out.slice(row * width, width) };
            values.read(id as usize * width, out);
        }
    });
}

/// `dtable[id] += dout[row]`; rows whose id is `skip` (image placeholders, replaced after lookup) are left out.
pub fn backward(dtable: &mut Tensor, ids: &[u32], dout: &Tensor, skip: Option<u32>) {
    let width = dtable.cols();
    check_ids("embedding::backward", ids, dtable.rows());
    check::shape("embedding::backward", "dout", dout, ids.len(), width);
    let dout = dout.as_slice();
    let dtable = par::Out::new(dtable.as_mut_slice());
    par::tasks(BUCKETS, |bucket| {
        for (row, &id) in ids.iter().enumerate() {
            if id as usize % BUCKETS == bucket && Some(id) != skip {
                // SAFETY: an id belongs to one bucket, so to one task.
                let to = unsafe { dtable.slice(id as usize * width, width) };
                math::add_scaled(to, &dout[row * width..(row + 1) * width], 1.0);
            }
        }
    });
}

fn check_ids(op: &str, ids: &[u32], vocab: usize) {
    if let Some((row, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
        panic!("{op}: ids[{row}] = {id} is outside the table's {vocab} rows");
    }
}
