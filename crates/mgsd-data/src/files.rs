//! Reading and writing whole files: errors carry the path, and a written file is either old or complete.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{DataError, Result};

/// The bytes of a file.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| DataError::io(path, "read", source))
}

/// The text of a file, which must be UTF-8; without the mark that some editors put in front of it.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let text = String::from_utf8(read_bytes(path)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        DataError::format(path, format!("byte {at}"), "not UTF-8 text; save the file as UTF-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}

/// Creates a folder and its parents.
pub(crate) fn create_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|source| DataError::io(path, "create the folder", source))
}

/// Entries of a folder, sorted by name.
pub(crate) fn list(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(path).map_err(|source| DataError::io(path, "list", source))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| DataError::io(path, "list", source))?;
        paths.push(entry.path());
    }
    paths.sort();
    Ok(paths)
}

/// Writes a file by way of a temporary name beside it: synced, then renamed.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// Like [`write`], the content coming from a function.
pub(crate) fn write_with(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        create_folder(folder)?;
    }
    let fail = |source| DataError::io(path, "write", source);
    let Some(target) = mgsd_tasks::files::replaceable(path) else {
        return File::create(path).and_then(|mut file| fill(&mut file)).map_err(fail);
    };
    let temporary = temporary_name(&target);
    let written = File::create(&temporary).and_then(|mut file| {
        fill(&mut file)?;
        file.sync_all()
    });
    if let Err(source) = written.and_then(|()| std::fs::rename(&temporary, &target)) {
        // The error that counts is the first one; a leftover temporary file is only untidy.
        let _ = std::fs::remove_file(&temporary);
        return Err(fail(source));
    }
    Ok(())
}

/// A name beside `path` that no other writer of this or another process uses.
fn temporary_name(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}-{count}.tmp", std::process::id()))
}
