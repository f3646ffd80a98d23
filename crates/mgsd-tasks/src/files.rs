//! Instances and pictures on disk.

use crate::{Error, Instance, RenderOptions, Result};
use rayon::prelude::*;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file so that it is there whole or not at all: to a temporary name in the same folder, which is made if it is not
/// there, synced, then renamed.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
    }
    write_renamed(path, bytes, true)
}

/// The file that another may take the place of when `path` is written: behind links. `None`: a device or a pipe, which is
/// written to as it is.
pub fn replaceable(path: &Path) -> Option<PathBuf> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() && !found.is_dir() => None,
        Ok(_) => Some(std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())),
        Err(_) => Some(path.to_owned()),
    }
}

fn write_renamed(path: &Path, bytes: &[u8], synced: bool) -> Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let fail = |source| Error::Io { path: path.to_owned(), source };
    let Some(path) = replaceable(path) else { return std::fs::write(path, bytes).map_err(fail) };
    let temporary = path.with_extension(format!("tmp{}-{number}", std::process::id()));
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        if synced {
            file.sync_all()?;
        }
        std::fs::rename(&temporary, &path)
    };
    write().map_err(|e| {
        // Best effort: what counts is the first error.
        let _ = std::fs::remove_file(&temporary);
        fail(e)
    })
}

/// Where the text of an instance lies below a dataset's root: `Maze/level4/text/0007.txt`.
pub fn text_path(instance: &Instance) -> PathBuf {
    numbered(instance, "text", "txt")
}

/// Where the picture of an instance lies below a dataset's root: `Maze/level4/image/0007.png`.
pub fn image_path(instance: &Instance) -> PathBuf {
    numbered(instance, "image", "png")
}

fn numbered(instance: &Instance, kind: &str, extension: &str) -> PathBuf {
    Path::new(instance.task().dir_name())
        .join(format!("level{}", instance.level()))
        .join(kind)
        .join(format!("{:04}.{extension}", instance.index))
}

/// Says which of these boards, and of those that `left_out` names, already has a text file below `root` that is another board's:
/// written beside it, a board would get a picture that is not its own, and what was left out would be there.
///
/// # Errors
/// [`Error::Occupied`] with the first such file; when a file cannot be read.
pub fn check_free(root: &Path, instances: &[Instance], left_out: &[Instance]) -> Result<()> {
    let check = |instance: &Instance, wanted: Option<String>| {
        let path = root.join(text_path(instance));
        match std::fs::read_to_string(&path) {
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::Io { path, source }),
            Ok(found) if Some(&found) == wanted.as_ref() => Ok(()),
            Ok(_) => Err(Error::Occupied { path }),
        }
    };
    instances.par_iter().try_for_each(|instance| check(instance, Some(instance.to_text())))?;
    left_out.par_iter().try_for_each(|instance| check(instance, None))
}

/// Reads an instance text file.
///
/// # Errors
/// When the file cannot be read, or a field is wrong; both name the file.
pub fn read_instance(path: &Path) -> Result<Instance> {
    let fail = |source| Error::Io { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(fail)?;
    Instance::parse(&text).map_err(|e| match e {
        Error::Field { field, problem } => Error::Field { field: format!("{}: {field}", path.display()), problem },
        other => Error::Field { field: path.display().to_string(), problem: other.to_string() },
    })
}

/// Writes text files, and pictures when `images` says how, in parallel. `written` is called after each instance.
///
/// # Errors
/// When a folder or file cannot be written.
pub fn write_instances(
    root: &Path,
    instances: &[Instance],
    images: Option<&RenderOptions>,
    written: impl Fn() + Sync,
) -> Result<()> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for instance in instances {
        let paths = [Some(text_path(instance)), images.map(|_| image_path(instance))];
        for path in paths.into_iter().flatten() {
            let folder = path.parent().map(|parent| root.join(parent)).unwrap_or_default();
            if !folders.contains(&folder) {
                std::fs::create_dir_all(&folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
                folders.push(folder);
            }
        }
    }
    instances.par_iter().try_for_each(|instance| {
        write_renamed(&root.join(text_path(instance)), instance.to_text().as_bytes(), false)?;
        if let Some(options) = images {
            let png = instance.board.render(options)?.to_png()?;
            write_renamed(&root.join(image_path(instance)), &png, false)?;
        }
        written();
        Ok(())
    })?;
    // One flush a folder instead of one a file: thousands of small files would take minutes, and a board that a power
    // cut spoils is made again from its seed.
    for folder in &folders {
        sync_folder(folder)?;
    }
    Ok(())
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<()> {
    let fail = |source| Error::Io { path: folder.to_owned(), source };
    std::fs::File::open(folder).and_then(|file| file.sync_all()).map_err(fail)
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> Result<()> {
    Ok(())
}
