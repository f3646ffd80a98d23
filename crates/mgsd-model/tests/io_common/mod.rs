//! What the tests of files, texts and pictures share.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use sha2::Digest as _;

/// A path below the stored data.
pub fn data(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(below)
}

/// A stored JSON file.
pub fn json(below: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(data(below)).unwrap()).unwrap()
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Copies a stored model folder to a temporary one that a test may change.
pub fn copy_of(model: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for item in std::fs::read_dir(data(model)).unwrap() {
        let item = item.unwrap();
        std::fs::copy(item.path(), dir.path().join(item.file_name())).unwrap();
    }
    dir
}
