//! The cache on disk.
//!
//! `blobs/ETAG` holds each file's bytes, `snapshots/COMMIT/FILE` points to them, `refs/REVISION` holds the commit that a
//! branch or tag was at.

use crate::error::{Error, Result};
use crate::name::Name;
use std::fs::File;
use std::path::{Path, PathBuf};

/// One model's part of the cache.
pub(crate) struct Repo {
    folder: PathBuf,
    locks: PathBuf,
}

impl Repo {
    pub(crate) fn new(cache: &Path, name: &Name) -> Self {
        let folder = format!("models--{}", name.repo.replace('/', "--"));
        Self { locks: cache.join(".locks").join(&folder), folder: cache.join(folder) }
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The folder of a revision, if everything that a model or an adapter needs is in it.
    pub(crate) fn whole(&self, revision: &str) -> Option<PathBuf> {
        let noted = std::fs::read_to_string(self.folder.join("refs").join(revision));
        let commit = noted.map_or_else(|_| revision.to_string(), |commit| commit.trim().to_string());
        let folder = self.snapshot(&commit);
        is_whole(&folder).then_some(folder)
    }

    /// Notes the commit of a revision.
    pub(crate) fn note(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make_folder_of(&path)?;
        let new = path.with_extension("new");
        std::fs::write(&new, commit).and_then(|()| std::fs::rename(&new, &path)).map_err(Error::cache(&path))
    }

    /// Makes `file` of a snapshot point to its bytes.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        if path.exists() {
            return Ok(());
        }
        make_folder_of(&path)?;
        // One that points nowhere.
        let _ = std::fs::remove_file(&path);
        let up = "../".repeat(2 + file.matches('/').count());
        #[cfg(unix)]
        let made = std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), &path);
        #[cfg(not(unix))]
        let made = std::fs::hard_link(self.blob(etag), &path).map(|()| drop(up));
        made.map_err(Error::cache(&path))
    }

    /// Waits until no other process holds the lock of this name; until the file is dropped none does. That of a file's bytes
    /// has the name of its entity tag, as in the Python library.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let path = self.locks.join(format!("{name}.lock"));
        make_folder_of(&path)?;
        let file = File::options().create(true).append(true).open(&path).map_err(Error::cache(&path))?;
        file.lock().map_err(Error::cache(&path))?;
        Ok(file)
    }
}

pub(crate) fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(Error::cache(folder))
}

/// Whether the files are there that a model, or an adapter, cannot be without, but for a model's weights. transformers 5
/// writes the picture settings into processor_config.json alone; a tokenizer may lie in the two files of its first form.
pub(crate) fn has_what_it_needs(has: &dyn Fn(&str) -> bool) -> bool {
    if has("adapter_config.json") {
        return has("adapter_model.safetensors");
    }
    let tokenizer = has("tokenizer.json") || (has("vocab.json") && has("merges.txt"));
    has("config.json") && tokenizer && (has("preprocessor_config.json") || has("processor_config.json"))
}

/// Whether a folder has all that, and a model's weights.
fn is_whole(folder: &Path) -> bool {
    let has = |file: &str| folder.join(file).is_file();
    let shards = || {
        let index = std::fs::read(folder.join("model.safetensors.index.json")).ok()?;
        let index: serde_json::Value = serde_json::from_slice(&index).ok()?;
        Some(index.get("weight_map")?.as_object()?.values().all(|file| file.as_str().is_some_and(has)))
    };
    has_what_it_needs(&has) && (has("adapter_config.json") || has("model.safetensors") || shards() == Some(true))
}
