//! Writing the weights of a model folder.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::StoredDtype;
use crate::{
    config::WeightDtype,
    error::{Error, Result},
};

/// The name and shape under which a tensor is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The Hugging Face name.
    pub name: String,
    /// The original shape, of any number of dimensions.
    pub shape: Vec<usize>,
}

/// Writes a model's tensors one after another, so that only one needs to be in memory.
///
/// What is to come is said at the start; the tensors then arrive in that order. Nothing is visible under its final
/// name before [`finish`](Self::finish), so that a write that fails leaves an older checkpoint as it was.
pub struct CheckpointWriter {
    dir: PathBuf,
    dtype: WeightDtype,
    shards: Vec<Vec<TensorSpec>>,
    /// Position of the next tensor: shard, and tensor within it.
    next: (usize, usize),
    out: Option<BufWriter<File>>,
    scratch: Vec<u8>,
}

impl CheckpointWriter {
    /// Begins a checkpoint in `dir` (made if missing). Tensors go to one file if they fit into `shard_bytes`
    /// ([`super::SHARD_BYTES`]), else to numbered shards with an index.
    pub fn create(dir: &Path, specs: Vec<TensorSpec>, dtype: WeightDtype, shard_bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|source| Error::Write { path: dir.into(), source })?;
        let mut shards: Vec<Vec<TensorSpec>> = Vec::new();
        let mut filled = 0;
        for spec in specs {
            let bytes = spec.shape.iter().product::<usize>() as u64 * stored(dtype).bytes() as u64;
            match shards.last_mut() {
                Some(shard) if filled + bytes <= shard_bytes => {
                    filled += bytes;
                    shard.push(spec);
                }
                _ => {
                    filled = bytes;
                    shards.push(vec![spec]);
                }
            }
        }
        Ok(Self { dir: dir.into(), dtype, shards, next: (0, 0), out: None, scratch: Vec::new() })
    }

    /// Writes the next tensor; `name` and the number of `values` must be what was announced.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let (shard, index) = self.next;
        let Some(spec) = self.shards.get(shard).and_then(|shard| shard.get(index)) else {
            return Err(Error::Model(format!("tensor {name} is written, but no more tensors were announced")));
        };
        let product: usize = spec.shape.iter().product();
        if spec.name != name || product != values.len() {
            return Err(Error::Model(format!(
                "tensor {name} with {} numbers is written, but {} of shape {:?} was announced here",
                values.len(),
                spec.name,
                spec.shape
            )));
        }
        let path = self.temporary(shard);
        let failed = |source| Error::Write { path: path.clone(), source };
        if self.out.is_none() {
            let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(failed)?);
            let dtype = stored(self.dtype);
            let header =
                header(self.shards[shard].iter().map(|spec| (spec.name.as_str(), dtype, spec.shape.as_slice())));
            out.write_all(&header).map_err(failed)?;
            self.out = Some(out);
        }
        let Some(out) = self.out.as_mut() else { unreachable!("opened above") };
        match self.dtype {
            WeightDtype::F32 => write_f32(out, values).map_err(failed)?,
            WeightDtype::Bf16 => {
                for part in values.chunks(1 << 16) {
                    self.scratch.clear();
                    self.scratch.extend(part.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()));
                    out.write_all(&self.scratch).map_err(failed)?;
                }
            }
        }
        self.next.1 += 1;
        if self.next.1 == self.shards[shard].len() {
            self.next = (shard + 1, 0);
            let out = self.out.take().map(BufWriter::into_inner);
            if let Some(file) = out.transpose().map_err(|broken| failed(broken.into_error()))? {
                file.sync_all().map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Gives the files their names, the index last, and removes weights of an older layout. An error if tensors that
    /// were announced have not come.
    pub fn finish(mut self) -> Result<()> {
        if let Some(spec) = self.shards.get(self.next.0).and_then(|shard| shard.get(self.next.1)) {
            return Err(Error::Model(format!("the checkpoint is not complete: tensor {} was not written", spec.name)));
        }
        let index = self.dir.join("model.safetensors.index.json");
        let mut kept = vec![index.clone()];
        for shard in 0..self.shards.len() {
            let path = self.dir.join(self.shard_name(shard));
            std::fs::rename(self.temporary(shard), &path)
                .map_err(|source| Error::Write { path: path.clone(), source })?;
            kept.push(path);
        }
        if self.shards.len() > 1 {
            let text = serde_json::to_vec_pretty(&self.index())
                .map_err(|source| Error::Json { path: index.clone(), source })?;
            write_atomically(&index, |out| out.write_all(&text))?;
        } else {
            kept.remove(0);
        }
        remove_other_weights(&self.dir, &kept)?;
        sync_dir(&self.dir);
        self.shards.clear();
        Ok(())
    }

    fn index(&self) -> Value {
        let dtype_bytes = stored(self.dtype).bytes();
        let mut map = Map::new();
        let mut total = 0;
        for (shard, specs) in self.shards.iter().enumerate() {
            for spec in specs {
                total += spec.shape.iter().product::<usize>() * dtype_bytes;
                map.insert(spec.name.clone(), self.shard_name(shard).into());
            }
        }
        json!({ "metadata": { "total_size": total }, "weight_map": map })
    }

    fn shard_name(&self, shard: usize) -> String {
        match self.shards.len() {
            1 => "model.safetensors".into(),
            shards => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
        }
    }

    fn temporary(&self, shard: usize) -> PathBuf {
        self.dir.join(format!(".{}.{}.tmp", self.shard_name(shard), std::process::id()))
    }
}

impl Drop for CheckpointWriter {
    /// Takes away what an unfinished checkpoint has left.
    fn drop(&mut self) {
        self.out = None;
        for shard in 0..self.shards.len() {
            // Most were never begun; one that cannot be removed does no harm under its temporary name.
            let _ = std::fs::remove_file(self.temporary(shard));
        }
    }
}

/// Copies the files of a model folder that are neither weights nor hidden (configuration, tokenizer, templates) byte
/// for byte from `from` to `to`. A file that cannot be copied is an error.
pub fn copy_folder_files(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(|source| Error::Write { path: to.into(), source })?;
    let listing = std::fs::read_dir(from).map_err(|source| Error::Read { path: from.into(), source })?;
    for item in listing {
        let item = item.map_err(|source| Error::Read { path: from.into(), source })?;
        let path = item.path();
        let name = item.file_name().to_string_lossy().into_owned();
        let weights = [".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf"];
        if !path.is_file() || name.starts_with('.') || weights.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        write_atomically(&to.join(&name), |out| out.write_all(&bytes))?;
    }
    Ok(())
}

/// Writes a file under a temporary name beside `path`, syncs it, then renames it: a reader sees the old file or the
/// new one, never a part.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let attempt = || -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        write(&mut out)?;
        out.into_inner().map_err(|broken| broken.into_error())?.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    attempt().map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        Error::Write { path: path.into(), source }
    })
}

/// The length and JSON of a safetensors header, padded so that the data begin at a multiple of 64 bytes.
pub(super) fn header<'a>(tensors: impl Iterator<Item = (&'a str, StoredDtype, &'a [usize])>) -> Vec<u8> {
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut start = 0;
    for (name, dtype, shape) in tensors {
        let end = start + shape.iter().product::<usize>() * dtype.bytes();
        map.insert(name.into(), json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [start, end] }));
        start = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize((text.len() + 8).next_multiple_of(64) - 8, b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.append(&mut text);
    out
}

pub(super) fn write_f32(out: &mut impl io::Write, values: &[f32]) -> io::Result<()> {
    if cfg!(target_endian = "little") {
        return out.write_all(bytemuck::cast_slice(values));
    }
    values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

pub(super) fn write_i64(out: &mut impl io::Write, values: &[i64]) -> io::Result<()> {
    values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

fn stored(dtype: WeightDtype) -> StoredDtype {
    match dtype {
        WeightDtype::F32 => StoredDtype::F32,
        WeightDtype::Bf16 => StoredDtype::Bf16,
    }
}

/// Weights of an earlier save in another layout would shadow the new ones.
fn remove_other_weights(dir: &Path, kept: &[PathBuf]) -> Result<()> {
    let listing = std::fs::read_dir(dir).map_err(|source| Error::Read { path: dir.into(), source })?;
    for path in listing.filter_map(|item| item.ok().map(|item| item.path())) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let shard = name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors");
        let ours = shard || name == "model.safetensors" || name == "model.safetensors.index.json";
        if ours && !kept.contains(&path) {
            std::fs::remove_file(&path).map_err(|source| Error::Write { path: path.clone(), source })?;
        }
    }
    Ok(())
}

/// Makes the renames themselves durable where the system can do that.
fn sync_dir(dir: &Path) {
    if let Ok(dir) = File::open(dir) {
        // Not every file system syncs folders; the files' contents are safe already.
        let _ = dir.sync_all();
    }
}
