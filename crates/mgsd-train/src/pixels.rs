//! The picture limits of a recipe in the files of a trained model, so that whoever loads it shows pictures of the sizes it
//! was trained with.

use crate::error::{Result, TrainError};
use crate::files;
use crate::recipe::Images;
use serde_json::Value;
use std::path::Path;

/// Writes `images` to the image processor's settings in a model folder; limits that are not given stay.
pub(crate) fn write(folder: &Path, images: Images) -> Result<()> {
    for (name, section) in [("preprocessor_config.json", None), ("processor_config.json", Some("image_processor"))] {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path, "cannot be read"))?;
        let mut root: Value =
            serde_json::from_str(&text).map_err(|error| TrainError::file(&path, format!("not JSON: {error}")))?;
        let settings = match section {
            Some(section) => root.get_mut(section),
            None => Some(&mut root),
        };
        if settings.is_some_and(|settings| set(settings, images)) {
            files::write_atomically(&path, format!("{root:#}\n").as_bytes())?;
        }
    }
    Ok(())
}

/// Sets both limits, under the names that are there; whether anything changed.
fn set(settings: &mut Value, images: Images) -> bool {
    let before = settings.clone();
    for (pixels, own, edge) in
        [(images.min_pixels, "min_pixels", "shortest_edge"), (images.max_pixels, "max_pixels", "longest_edge")]
    {
        let Some(pixels) = pixels else { continue };
        if let Some(value) = settings.get_mut(own).filter(|value| !value.is_null()) {
            *value = pixels.into();
        }
        if let Some(value) = settings.get_mut("size").and_then(|size| size.get_mut(edge)) {
            *value = pixels.into();
        }
    }
    *settings != before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_replace_those_that_are_there_and_nothing_else() {
        let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let (old, new) = (
            r#"{"a": 1, "min_pixels": null, "max_pixels": 9, "size": {"longest_edge": 9, "shortest_edge": 4}}"#,
            r#"{"a": 1, "min_pixels": null, "max_pixels": 8, "size": {"longest_edge": 8, "shortest_edge": 4}}"#,
        );
        let mut settings = parse(old);
        assert!(!set(&mut settings, Images::default()));
        assert!(set(&mut settings, Images { min_pixels: None, max_pixels: Some(8) }));
        assert_eq!(settings, parse(new));
        assert!(!set(&mut settings, Images { min_pixels: Some(4), max_pixels: Some(8) }), "as it is");
    }
}
