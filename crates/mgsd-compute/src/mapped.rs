//! A file in memory without being read: pages come in when they are touched.

use std::{fs::File, io, path::Path};

use memmap2::Mmap;

/// A read-only view of a whole file.
///
/// Weights stay on the disk until an operation reads them, and several processes share one copy of them. The file
/// must not be cut short or rewritten in place while the view lives; files of this workspace are replaced by renaming,
/// which leaves an existing view intact.
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps the file at `path`. An empty file gives an empty view.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only and private to this value. Changing the file from outside while it is mapped
        // is excluded by the contract above, as for every program that maps its model weights.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map })
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
