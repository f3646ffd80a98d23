//! Small safetensors files read and written whole: traces, adapters, training states.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use super::{
    StoredDtype,
    file::MappedTensors,
    write::{header, write_atomically, write_f32, write_i64},
};
use crate::error::Result;

/// An N-dimensional array, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// As many numbers as the shape's product.
    pub values: Values,
}

/// The numbers of an [`Array`].
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Real numbers.
    F32(Vec<f32>),
    /// Whole numbers.
    I64(Vec<i64>),
}

impl Array {
    /// An array of real numbers.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Self {
        Self { shape: shape.to_vec(), values: Values::F32(values) }
    }

    /// An array of whole numbers.
    pub fn i64(shape: &[usize], values: Vec<i64>) -> Self {
        Self { shape: shape.to_vec(), values: Values::I64(values) }
    }

    /// The numbers, if they are real.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.values {
            Values::F32(values) => Some(values),
            Values::I64(_) => None,
        }
    }

    /// The numbers, if they are whole.
    pub fn as_i64(&self) -> Option<&[i64]> {
        match &self.values {
            Values::I64(values) => Some(values),
            Values::F32(_) => None,
        }
    }

    fn dtype(&self) -> StoredDtype {
        match self.values {
            Values::F32(_) => StoredDtype::F32,
            Values::I64(_) => StoredDtype::I64,
        }
    }

    fn len(&self) -> usize {
        match &self.values {
            Values::F32(values) => values.len(),
            Values::I64(values) => values.len(),
        }
    }
}

/// All tensors of a safetensors file; F16 and BF16 become F32.
pub fn read_arrays(path: &Path) -> Result<BTreeMap<String, Array>> {
    let file = MappedTensors::open(path)?;
    let read = |(name, entry): (&String, &super::file::Entry)| {
        let values = match entry.dtype {
            StoredDtype::I64 => Values::I64(file.read_i64(entry)),
            _ => Values::F32(file.read_f32(name, entry)?),
        };
        Ok((name.clone(), Array { shape: entry.shape.clone(), values }))
    };
    file.entries.iter().map(read).collect()
}

/// Writes `arrays` as one safetensors file, under a temporary name first. An array whose length is not its shape's
/// product is a bug of the caller and panics.
pub fn write_arrays(path: &Path, arrays: &BTreeMap<String, Array>) -> Result<()> {
    // Whole numbers first, so that each tensor is aligned to its own type.
    let mut order: Vec<_> = arrays.iter().collect();
    order.sort_by_key(|(_, array)| array.dtype() != StoredDtype::I64);
    for (name, array) in &order {
        let product: usize = array.shape.iter().product();
        assert_eq!(array.len(), product, "{name}: {} numbers for shape {:?}", array.len(), array.shape);
    }
    let header = header(order.iter().map(|(name, array)| (name.as_str(), array.dtype(), array.shape.as_slice())));
    write_atomically(path, |out| {
        out.write_all(&header)?;
        for (_, array) in &order {
            match &array.values {
                Values::F32(values) => write_f32(out, values)?,
                Values::I64(values) => write_i64(out, values)?,
            }
        }
        Ok(())
    })
}
