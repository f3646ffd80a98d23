//! Weighted sum of four table rows per output row: the vision tower's bilinear position embedding.
use crate::{Tensor, Write};
/// Four (row, weight) pairs for one output row.
pub type Taps = [(u32, f32); 4];
pub fn forward(out: &mut Tensor, table: &Tensor, taps: &[Taps], write: Write) { todo!() }
pub fn backward(dtable: &mut Tensor, dout: &Tensor, taps: &[Taps]) { todo!() }
