//! Table lookup. `table: [vocab, width]` (F32 or Bf16), `out: [ids.len(), width]`.
use crate::Tensor;
pub fn forward(out: &mut Tensor, ids: &[u32], table: &Tensor) { todo!() }
/// `dtable[id] += dout[row]`; rows whose id is `skip` (image placeholders, replaced after lookup) are left out.
pub fn backward(dtable: &mut Tensor, ids: &[u32], dout: &Tensor, skip: Option<u32>) { todo!() }
