//! One mapped safetensors file: its header, checked, and the bytes of its tensors.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use mgsd_compute::MappedFile;
use rayon::prelude::*;
use serde_json::Value;

use crate::error::{Error, Result};

/// The number types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit brain floats.
    Bf16,
    /// 64-bit signed integers.
    I64,
}

impl StoredDtype {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            StoredDtype::F32 => 4,
            StoredDtype::F16 | StoredDtype::Bf16 => 2,
            StoredDtype::I64 => 8,
        }
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            StoredDtype::F32 => "F32",
            StoredDtype::F16 => "F16",
            StoredDtype::Bf16 => "BF16",
            StoredDtype::I64 => "I64",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [StoredDtype::F32, StoredDtype::F16, StoredDtype::Bf16, StoredDtype::I64]
            .into_iter()
            .find(|dtype| dtype.name() == name)
    }
}

/// Where a tensor lies in its file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub dtype: StoredDtype,
    pub shape: Vec<usize>,
    /// Bytes from the start of the file.
    pub start: usize,
    pub end: usize,
}

pub(crate) struct MappedTensors {
    pub path: PathBuf,
    pub map: Arc<MappedFile>,
    pub entries: BTreeMap<String, Entry>,
}

impl MappedTensors {
    /// Maps a file and checks its header: every tensor lies within the file and is as long as its shape says.
    pub fn open(path: &Path) -> Result<Self> {
        let map = MappedFile::open(path).map_err(|source| Error::Read { path: path.into(), source })?;
        let damaged = |problem: String| Error::WeightsFile { path: path.into(), problem };
        let bytes = map.bytes();
        let cut_short = |needed: u64| {
            damaged(format!(
                "is cut short: {} bytes, but its header asks for {needed}; copy or download it again",
                bytes.len()
            ))
        };
        let Some(length) = bytes.first_chunk::<8>() else { return Err(cut_short(8)) };
        let header_end = u64::from_le_bytes(*length).saturating_add(8);
        if header_end > 8 + 100_000_000 {
            return Err(damaged(format!("is not a safetensors file (its header would have {} bytes)", header_end - 8)));
        }
        let Some(header) = bytes.get(8..header_end as usize) else { return Err(cut_short(header_end)) };
        let header: Value = serde_json::from_slice(header)
            .map_err(|problem| damaged(format!("is not a safetensors file (its header is not JSON: {problem})")))?;
        let Some(header) = header.as_object() else {
            return Err(damaged("is not a safetensors file (its header is not an object)".into()));
        };
        let mut entries = BTreeMap::new();
        for (name, value) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            let entry = read_entry(value, header_end).map_err(|problem| Error::Tensor {
                path: path.into(),
                name: name.clone(),
                problem,
            })?;
            if entry.end > bytes.len() {
                return Err(cut_short(entry.end as u64));
            }
            entries.insert(name.clone(), entry);
        }
        Ok(Self { path: path.into(), map: Arc::new(map), entries })
    }

    pub fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.map.bytes()[entry.start..entry.end]
    }

    pub fn wrong(&self, name: &str, problem: String) -> Error {
        Error::Tensor { path: self.path.clone(), name: name.into(), problem }
    }

    pub fn read_f32(&self, name: &str, entry: &Entry) -> Result<Vec<f32>> {
        let bytes = self.bytes(entry);
        let mut out = vec![0.0f32; bytes.len() / entry.dtype.bytes()];
        match entry.dtype {
            StoredDtype::F32 => bytemuck::cast_slice_mut(&mut out).copy_from_slice(bytes),
            StoredDtype::Bf16 => convert(bytes, &mut out, |pair| half::bf16::from_le_bytes(pair).to_f32()),
            StoredDtype::F16 => convert(bytes, &mut out, |pair| half::f16::from_le_bytes(pair).to_f32()),
            StoredDtype::I64 => return Err(self.wrong(name, "holds I64; expected F32, F16 or BF16".into())),
        }
        if cfg!(target_endian = "big") && entry.dtype == StoredDtype::F32 {
            out.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().swap_bytes()));
        }
        Ok(out)
    }

    pub fn read_i64(&self, entry: &Entry) -> Vec<i64> {
        let (chunks, _) = self.bytes(entry).as_chunks::<8>();
        chunks.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect()
    }
}

fn convert(bytes: &[u8], out: &mut [f32], from: impl Fn([u8; 2]) -> f32 + Sync) {
    let (pairs, _) = bytes.as_chunks::<2>();
    out.par_chunks_mut(1 << 16).zip(pairs.par_chunks(1 << 16)).for_each(|(out, pairs)| {
        out.iter_mut().zip(pairs).for_each(|(out, pair)| *out = from(*pair));
    });
}

fn read_entry(value: &Value, header_end: u64) -> std::result::Result<Entry, String> {
    let dtype = value["dtype"].as_str().unwrap_or("no type");
    let dtype = StoredDtype::from_name(dtype)
        .ok_or_else(|| format!("holds {dtype}; supported: F32, F16, BF16, I64 (quantised checkpoints are not)"))?;
    let numbers = |key: &str| -> std::result::Result<Vec<u64>, String> {
        let list = value[key].as_array().and_then(|list| list.iter().map(Value::as_u64).collect());
        list.ok_or_else(|| format!("has {key} {}; expected a list of whole numbers", value[key]))
    };
    let shape = numbers("shape")?;
    let offsets = numbers("data_offsets")?;
    let &[start, end] = offsets.as_slice() else {
        return Err(format!("has data_offsets {offsets:?}; expected start and end"));
    };
    let length = shape.iter().try_fold(dtype.bytes() as u64, |product, &side| product.checked_mul(side));
    if length.is_none() || end.checked_sub(start) != length {
        return Err(format!("of shape {shape:?} and type {} does not fit data_offsets {offsets:?}", dtype.name()));
    }
    let place = |offset: u64| offset.checked_add(header_end).and_then(|at| usize::try_from(at).ok());
    match (place(start), place(end)) {
        (Some(start), Some(end)) => {
            Ok(Entry { dtype, shape: shape.iter().map(|&side| side as usize).collect(), start, end })
        }
        _ => Err(format!("has data_offsets {offsets:?} beyond any file")),
    }
}
