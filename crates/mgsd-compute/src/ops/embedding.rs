//! Table lookup. `table: [vocab, width]` (F32 or Bf16), `out: [ids.len(), width]`.

use crate::{Tensor, check, math, par};

/// Tasks of the backward pass: each owns the table rows whose number leaves its remainder.
const BUCKETS: usize = 16;

/// `out[i] = table[ids[i]]`
pub fn forward(out: &mut Tensor, ids: &[u32], table: &Tensor) {
    let width = table.cols();
    check_ids("embedding::forward", ids, table.rows());
    out.place(table, ids.len(), width);
    if let Some(gpu) = table.gpu() {
        check::eights("embedding::forward", table);
        let args = [out.pointer().into(), table.pointer().into(), gpu.list(ids).into(), width.into()];
        let block = [width.div_ceil(8).next_multiple_of(32).min(256) as u32, 1];
        return gpu.launch(out.kernel("embedding", "forward"), [ids.len() as u32, 1, 1], block, 0, &args);
    }
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
    if let Some(gpu) = dout.gpu() {
        check::eights("embedding::backward", dout);
        // Rows of equal id stand together, so that each table row has one writer.
        let mut order: Vec<u32> = (0..ids.len() as u32).filter(|&row| Some(ids[row as usize]) != skip).collect();
        order.sort_by_key(|&row| ids[row as usize]);
        let mut starts: Vec<u32> = (0..order.len() as u32)
            .filter(|&at| at == 0 || ids[order[at as usize] as usize] != ids[order[at as usize - 1] as usize])
            .collect();
        let blocks = starts.len() as u32;
        starts.push(order.len() as u32);
        let args = [
            dtable.pointer_f32().into(),
            dout.pointer().into(),
            gpu.list(ids).into(),
            gpu.list(&order).into(),
            gpu.list(&starts).into(),
            width.into(),
        ];
        let block = [width.div_ceil(8).next_multiple_of(32).min(256) as u32, 1];
        return gpu.launch(dout.kernel("embedding", "backward"), [blocks, 1, 1], block, 0, &args);
    }
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
