//! Files and folders that appear whole or not at all.

use crate::error::{Result, TrainError};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The temporary neighbour of `path`; leftovers of a killed run bear the same name and are replaced.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Writes beside, syncs, renames.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = temporary(path);
    let mut file = File::create(&beside).map_err(TrainError::io(&beside, "cannot be made"))?;
    file.write_all(bytes).map_err(TrainError::io(&beside, "cannot be written"))?;
    file.sync_all().map_err(TrainError::io(&beside, "cannot be synced"))?;
    std::fs::rename(&beside, path).map_err(TrainError::io(path, "cannot be put in place"))?;
    sync_folder(path.parent())
}

/// Fills a temporary folder with `fill`, syncs all that is in it, and renames it to `path`.
///
/// An older folder of that name is moved away first and removed last, so that at every moment one whole folder exists.
pub(crate) fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let beside = temporary(path);
    remove_folder(&beside)?;
    std::fs::create_dir_all(&beside).map_err(TrainError::io(&beside, "the folder cannot be made"))?;
    fill(&beside)?;
    sync_tree(&beside)?;
    let mut old = path.file_name().unwrap_or_default().to_os_string();
    old.push(".old");
    let old = path.with_file_name(old);
    remove_folder(&old)?;
    if path.exists() {
        std::fs::rename(path, &old).map_err(TrainError::io(path, "the older folder cannot be moved away"))?;
    }
    std::fs::rename(&beside, path).map_err(TrainError::io(path, "the folder cannot be put in place"))?;
    sync_folder(path.parent())?;
    remove_folder(&old)
}

/// Removes a folder if it is there.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    if path.exists() {
        std::fs::remove_dir_all(path).map_err(TrainError::io(path, "the folder cannot be removed"))?;
    }
    Ok(())
}

fn sync_tree(folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(TrainError::io(folder, "the folder cannot be read"))?;
    for entry in entries {
        let path = entry.map_err(TrainError::io(folder, "the folder cannot be read"))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            let file = File::open(&path).map_err(TrainError::io(&path, "cannot be opened"))?;
            file.sync_all().map_err(TrainError::io(&path, "cannot be synced"))?;
        }
    }
    sync_folder(Some(folder))
}

/// Makes renames within a folder last; systems that cannot sync folders are not asked to.
fn sync_folder(folder: Option<&Path>) -> Result<()> {
    let folder = folder.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    #[cfg(unix)]
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(TrainError::io(folder, "the folder cannot be synced"))?;
    Ok(())
}
