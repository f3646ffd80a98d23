//! What the tests of the network share: stored cases, and comparison with them.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mgsd_compute::{Device, Dtype, Tensor};
use mgsd_model::model::{Purpose, Qwen3Vl};
use mgsd_model::patches::{Grid, ImagePatches};
use mgsd_model::processor::Prompt;
use mgsd_model::weights::{Array, read_arrays};

pub type Arrays = BTreeMap<String, Array>;

/// The stored data of this crate, and the complete set beside the repository where there is one.
pub fn roots() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let full = here.join("../../../shared/qwen3vl");
    [Some(here.join("tests/data")), full.is_dir().then_some(full)].into_iter().flatten().collect()
}

pub fn arrays(path: PathBuf) -> Arrays {
    read_arrays(&path).unwrap_or_else(|error| panic!("{error}"))
}

/// Where the network runs: `MGSD_TEST_DEVICE`, the CPU without it.
pub fn device() -> Device {
    Device::of_tests()
}

pub fn model(root: &Path, name: &str) -> Qwen3Vl {
    let mut model = Qwen3Vl::load(&root.join(name), Purpose::Training).unwrap_or_else(|error| panic!("{error}"));
    let device = device();
    if !device.is_cpu() {
        model.move_to(device, Dtype::F32);
    }
    model
}

pub fn floats<'a>(arrays: &'a Arrays, name: &str) -> &'a [f32] {
    arrays[name].as_f32().unwrap_or_else(|| panic!("{name} is not of floats"))
}

pub fn integers<'a>(arrays: &'a Arrays, name: &str) -> &'a [i64] {
    arrays[name].as_i64().unwrap_or_else(|| panic!("{name} is not of integers"))
}

/// Largest difference, and largest value expected.
pub fn difference(found: &[f32], expected: &[f32]) -> (f32, f32) {
    assert_eq!(found.len(), expected.len(), "lengths");
    assert!(found.iter().all(|v| v.is_finite()), "every number must be finite");
    let most = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0f32, f32::max);
    let far = most(&mut found.iter().zip(expected).map(|(f, e)| (f - e).abs()));
    (far, most(&mut expected.iter().map(|e| e.abs())))
}

pub fn assert_near(name: &str, found: &[f32], expected: &[f32], absolute: f32) {
    let (far, _) = difference(found, expected);
    assert!(far <= absolute, "{name}: differs by {far}, allowed {absolute}");
}

pub fn assert_relative(name: &str, found: &[f32], expected: &[f32], part: f32) {
    let (far, most) = difference(found, expected);
    assert!(
        far <= part * most,
        "{name}: differs by {far}, that is {} of the largest value, allowed {part}",
        far / most
    );
}

/// The rows of a padded batch, and where each token lies in the padded `[rows, length]` grid.
pub struct Rows {
    pub prompts: Vec<Prompt>,
    pub places: Vec<usize>,
    pub length: usize,
}

/// Rebuilds the sequences of a padded batch stored under `prefix` (such as `in.`).
pub fn rows(arrays: &Arrays, prefix: &str, vision_start: u32) -> Rows {
    let name = |part: &str| format!("{prefix}{part}");
    let length = arrays[&name("input_ids")].shape[1];
    let ids = integers(arrays, &name("input_ids"));
    let mask = integers(arrays, &name("attention_mask"));
    let mut images = images(arrays, prefix).into_iter();
    let (mut prompts, mut places) = (Vec::new(), Vec::new());
    for row in 0..ids.len() / length {
        let kept: Vec<usize> = (row * length..(row + 1) * length).filter(|&at| mask[at] == 1).collect();
        let ids: Vec<u32> = kept.iter().map(|&at| ids[at] as u32).collect();
        // A generated marker is no picture: markers count only while pictures are left for the row.
        let count = ids.iter().filter(|&&id| id == vision_start).count();
        prompts.push(Prompt { images: images.by_ref().take(count).collect(), ids });
        places.extend(kept);
    }
    Rows { prompts, places, length }
}

fn images(arrays: &Arrays, prefix: &str) -> Vec<Arc<ImagePatches>> {
    let Some(grids) = arrays.get(&format!("{prefix}image_grid_thw")) else {
        return Vec::new();
    };
    let pixels = &arrays[&format!("{prefix}pixel_values")];
    let width = pixels.shape[1];
    let mut rest = pixels.as_f32().expect("pixel values are floats");
    let grids = grids.as_i64().expect("grids are integers").chunks_exact(3);
    grids
        .map(|g| {
            let grid = Grid { t: g[0] as usize, h: g[1] as usize, w: g[2] as usize };
            let (mine, others) = rest.split_at(grid.patches() * width);
            rest = others;
            Arc::new(ImagePatches { pixel_values: mine.to_vec(), grid })
        })
        .collect()
}

impl Rows {
    /// The rows of a padded `[rows, length, width]` array that hold tokens, in packed order.
    pub fn packed(&self, array: &Array) -> Vec<f32> {
        let values = array.as_f32().expect("floats");
        let width = values.len() / (array.shape[0] * array.shape[1]);
        self.places.iter().flat_map(|&at| values[at * width..(at + 1) * width].iter().copied()).collect()
    }
}

/// Left columns of a matrix of `width` columns.
pub fn left_half(values: &[f32], width: usize) -> Vec<f32> {
    values.chunks_exact(width).flat_map(|row| row[..width / 2].iter().copied()).collect()
}

pub fn tensor(values: &[f32], cols: usize) -> Tensor {
    Tensor::from_vec(values.len() / cols, cols, values.to_vec()).to_device(device(), Dtype::F32)
}
