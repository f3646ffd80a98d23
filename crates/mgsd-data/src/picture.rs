//! Pictures as the data files refer to them: a path, a data URL, bare base64, or embedded bytes.

use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::{DataError, Result, files};

/// A picture of a row: its encoded bytes (PNG, JPEG) when embedded, its path otherwise.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Picture {
    /// The encoded file, when it is embedded.
    pub bytes: Option<Vec<u8>>,
    /// File name or path; beside embedded bytes it is only a name.
    pub path: Option<String>,
}

impl std::fmt::Debug for Picture {
    /// Says how many bytes there are instead of listing them.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Picture")
            .field("bytes", &self.bytes.as_ref().map(Vec::len))
            .field("path", &self.path)
            .finish()
    }
}

impl Picture {
    /// Finds the picture that `reference`, written in a file of `folder`, names: a path (looked for below `folder`,
    /// then below the working directory; the file is not read yet), a data URL, or bare base64.
    pub fn locate(reference: &str, folder: &Path) -> Result<Picture> {
        if let Some(rest) = reference.strip_prefix("data:image/") {
            let (kind, bytes) = decode_data_url(rest).map_err(|problem| {
                DataError::missing(
                    folder,
                    format!("broken data URL of a picture: {problem}; expected data:image/<kind>;base64,<data>"),
                )
            })?;
            return Ok(Picture { bytes: Some(bytes), path: Some(format!("image.{kind}")) });
        }
        if let Some(found) = find(reference, folder) {
            return Ok(Picture { bytes: None, path: Some(found.to_string_lossy().into_owned()) });
        }
        if let Ok(bytes) = STANDARD.decode(reference.trim())
            && is_picture(&bytes)
        {
            return Ok(Picture { bytes: Some(bytes), path: None });
        }
        Err(not_found(reference, folder))
    }

    /// The encoded bytes: the embedded ones, or those of the file at `path`, looked for as in [`Picture::locate`].
    pub fn load(&self, folder: &Path) -> Result<Vec<u8>> {
        match (&self.bytes, &self.path) {
            (Some(bytes), _) => Ok(bytes.clone()),
            (None, Some(path)) => {
                let found = find(path, folder).ok_or_else(|| not_found(path, folder))?;
                files::read_bytes(&found)
            }
            (None, None) => {
                Err(DataError::missing(folder, "a picture with neither bytes nor path; write the rows again"))
            }
        }
    }

    /// The same picture with its bytes embedded; of a path only the file name stays. An error when it is none.
    pub fn embedded(&self, folder: &Path) -> Result<Picture> {
        if self.bytes.is_some() {
            return Ok(self.clone());
        }
        let path = Path::new(self.path.as_deref().unwrap_or_default());
        let bytes = self.load(folder)?;
        check(&bytes).map_err(|problem| DataError::format(path, "picture", problem))?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Picture { bytes: Some(bytes), path: name })
    }
}

/// Kind and bytes of a data URL behind `data:image/`.
fn decode_data_url(rest: &str) -> Result<(&str, Vec<u8>), String> {
    let (kind, data) = rest.split_once(";base64,").ok_or_else(|| "no \";base64,\" in it".to_string())?;
    let bytes = STANDARD.decode(data.trim()).map_err(|error| format!("not base64 ({error})"))?;
    Ok((kind, bytes))
}

/// The file a path names: as it is when absolute, else below `folder`, else below the working directory.
fn find(path: &str, folder: &Path) -> Option<PathBuf> {
    [folder.join(path), PathBuf::from(path)].into_iter().find(|candidate| candidate.is_file())
}

/// The error for a picture that is nowhere.
fn not_found(reference: &str, folder: &Path) -> DataError {
    let shown: String = reference.chars().take(120).collect();
    DataError::missing(
        folder,
        format!(
            "picture \"{shown}\" was not found below this folder nor below the working directory; \
             paths are relative to the file that names them"
        ),
    )
}

/// Whether the bytes of a file are a picture that others can be given: a PNG that is whole, or what begins like another kind.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    match bytes.starts_with(b"\x89PNG") {
        true => crate::benchmarks::png::decode(bytes).map(|_| ()),
        false if is_picture(bytes) => Ok(()),
        false => Err(format!("{} bytes that are no PNG, JPEG, WebP, GIF or BMP file; make it again", bytes.len())),
    }
}

/// Whether the bytes begin like a PNG, JPEG, WebP, GIF or BMP file.
fn is_picture(bytes: &[u8]) -> bool {
    const HEADS: [&[u8]; 5] = [b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM"];
    HEADS.iter().any(|head| bytes.starts_with(head))
}

/// How a file in `folder` refers to `file`: relative where the two share a folder, absolute otherwise.
pub fn reference(file: &Path, folder: &Path) -> String {
    let absolute = |path: &Path| {
        std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_path_buf())
    };
    let (file, folder) = (absolute(file), absolute(folder));
    let shared = file.components().zip(folder.components()).take_while(|(left, right)| left == right).count();
    // Sharing no more than the root says nothing about moving together.
    if shared < 2 {
        return file.to_string_lossy().into_owned();
    }
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    let relative: PathBuf = up.chain(file.components().skip(shared)).collect();
    relative.to_string_lossy().replace('\\', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_relative_to_the_file_that_holds_it() {
        let base = Path::new("/somewhere/run");
        assert_eq!(reference(&base.join("data/a.png"), base), "data/a.png");
        assert_eq!(reference(&base.join("data/a.png"), &base.join("out/x")), "../../data/a.png");
        assert_eq!(reference(Path::new("/elsewhere/a.png"), base), "/elsewhere/a.png");
    }

    #[test]
    fn a_data_url_brings_its_bytes_and_a_name_for_its_kind() {
        let picture = Picture::locate("data:image/jpeg;base64,/9j/", Path::new(".")).unwrap();
        assert_eq!(picture.path.as_deref(), Some("image.jpeg"));
        assert_eq!(picture.bytes.as_deref(), Some(&b"\xff\xd8\xff"[..]));
    }

    #[test]
    fn a_missing_picture_is_named_in_the_error() {
        let error = Picture::locate("no/such.png", Path::new("/nowhere")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no/such.png") && text.contains("/nowhere"), "{text}");
    }
}
