//! Moving rows: image tokens into the text stream, labelled positions out of it.
use crate::{Tensor, Write};
/// `out[i] = x[index[i]]`
pub fn gather(out: &mut Tensor, x: &Tensor, index: &[u32]) { todo!() }
/// `out[index[i]] (=|+=) x[i]`; other rows of `out` stay. Indices are distinct.
pub fn scatter(out: &mut Tensor, x: &Tensor, index: &[u32], write: Write) { todo!() }
