//! Reading the weights of a model folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use mgsd_compute::Tensor;
use serde_json::Value;

use super::{
    StoredDtype,
    file::{Entry, MappedTensors},
    matrix_shape,
};
use crate::{
    config::read_json,
    error::{Error, Result},
};

/// How a tensor is brought into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadAs {
    /// As 32-bit floats, whatever the file has: for training.
    F32,
    /// Left in the mapped file if it is stored as BF16, else as 32-bit floats: for inference without a second copy.
    MappedBf16IfPossible,
}

/// The weights of a model folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<MappedTensors>,
    tensors: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Maps the folder's weights and checks all headers; no tensor is read yet.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        if single.is_file() {
            return Self::from_files(dir, vec![MappedTensors::open(&single)?]);
        }
        if !index.is_file() {
            return Err(Error::Folder {
                path: dir.into(),
                problem: "holds neither model.safetensors nor model.safetensors.index.json; \
                          expected a model folder in Hugging Face layout"
                    .into(),
            });
        }
        let listing = read_json(&index)?;
        let wrong = |problem: String| Error::Field { path: index.clone(), field: "weight_map".into(), problem };
        let Some(map) = listing["weight_map"].as_object() else {
            return Err(wrong("is missing; expected tensor names with the shard of each".into()));
        };
        let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            if name.contains(['/', '\\']) {
                return Err(wrong(format!("names {name:?}; expected a file of the same folder")));
            }
            files.push(MappedTensors::open(&dir.join(name))?);
        }
        for (tensor, shard) in map {
            let held = files.iter().any(|file| {
                file.path.file_name().and_then(|name| name.to_str()) == shard.as_str()
                    && file.entries.contains_key(tensor)
            });
            if !held {
                return Err(wrong(format!("places {tensor} in {shard}, but that file does not hold it")));
            }
        }
        Self::from_files(dir, files)
    }

    /// The tensors of one safetensors file of any name, such as an adapter's.
    pub fn open_file(path: &Path) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("."));
        Self::from_files(dir, vec![MappedTensors::open(path)?])
    }

    fn from_files(dir: &Path, files: Vec<MappedTensors>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.entries.keys() {
                if let Some(other) = tensors.insert(name.clone(), index) {
                    let other = files[other].path.display();
                    return Err(file.wrong(name, format!("is also in {other}; each tensor must be in one file")));
                }
            }
        }
        Ok(Self { dir: dir.into(), files, tensors })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The stored shape.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.find(name)?.1.shape)
    }

    /// The stored number type.
    pub fn dtype(&self, name: &str) -> Result<StoredDtype> {
        Ok(self.find(name)?.1.dtype)
    }

    /// The tensor as a matrix ([`matrix_shape`]).
    pub fn load(&self, name: &str, load_as: LoadAs) -> Result<Tensor> {
        let (file, entry) = self.find(name)?;
        let (rows, cols) = matrix_shape(&entry.shape);
        // A BF16 tensor at an odd offset cannot be read as 16-bit numbers; no writer makes such files, but one may.
        if load_as == LoadAs::MappedBf16IfPossible && entry.dtype == StoredDtype::Bf16 && entry.start.is_multiple_of(2)
        {
            let map = Arc::clone(&file.map) as Arc<dyn AsRef<[u8]> + Send + Sync>;
            return Ok(Tensor::from_mapped_bf16(map, entry.start, rows, cols));
        }
        Ok(Tensor::from_vec(rows, cols, file.read_f32(name, entry)?))
    }

    /// [`load`](Self::load), refusing any stored shape whose matrix is not `rows` x `cols`.
    pub fn load_matrix(&self, name: &str, rows: usize, cols: usize, load_as: LoadAs) -> Result<Tensor> {
        let (file, entry) = self.find(name)?;
        if matrix_shape(&entry.shape) != (rows, cols) {
            return Err(file
                .wrong(name, format!("has shape {:?}, but the configuration asks for {rows} x {cols}", entry.shape)));
        }
        self.load(name, load_as)
    }

    /// Whether two tensors hold the same numbers.
    pub fn same(&self, one: &str, other: &str) -> Result<bool> {
        let ((file, entry), (other_file, other_entry)) = (self.find(one)?, self.find(other)?);
        if (&entry.shape, entry.dtype) == (&other_entry.shape, other_entry.dtype) {
            return Ok(file.bytes(entry) == other_file.bytes(other_entry));
        }
        Ok(entry.shape == other_entry.shape && self.read_f32(one)? == self.read_f32(other)?)
    }

    /// The numbers of a tensor, row-major, as 32-bit floats.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (file, entry) = self.find(name)?;
        file.read_f32(name, entry)
    }

    fn find(&self, name: &str) -> Result<(&MappedTensors, &Entry)> {
        let found = self.tensors.get(name).map(|&index| &self.files[index]);
        match found.and_then(|file| file.entries.get(name).map(|entry| (file, entry))) {
            Some(found) => Ok(found),
            None => Err(Error::Tensor {
                path: match self.files.as_slice() {
                    [file] => file.path.clone(),
                    _ => self.dir.clone(),
                },
                name: name.into(),
                problem: format!("is missing (there are {} others)", self.tensors.len()),
            }),
        }
    }
}
