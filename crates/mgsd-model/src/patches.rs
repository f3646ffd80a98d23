//! From RGB bytes to the rows that the vision tower reads.

/// How many patches an image has: time steps, rows, columns (before merging 2x2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Time patches; 1 for a still image.
    pub t: usize,
    /// Rows of patches.
    pub h: usize,
    /// Columns of patches.
    pub w: usize,
}

impl Grid {
    /// Patches in all: rows of `pixel_values`.
    pub fn patches(&self) -> usize {
        self.t * self.h * self.w
    }

    /// Tokens that stand for the image in the text: patches after merging `merge` x `merge`.
    pub fn tokens(&self, merge: usize) -> usize {
        self.patches() / (merge * merge)
    }
}

/// An image as the vision tower takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct ImagePatches {
    /// `[grid.patches(), patch_len]` row-major, values in -1..1; `patch_len` is
    /// channels x temporal patch x patch x patch, 1,536 for Qwen3-VL.
    pub pixel_values: Vec<f32>,
    /// How the rows are laid out.
    pub grid: Grid,
}

/// Sizes by which an image is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchLayout {
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames in a patch; a still image is repeated over them.
    pub temporal_patch_size: usize,
    /// Side of the block of patches that becomes one token.
    pub merge_size: usize,
}

impl PatchLayout {
    /// The multiple of which both sides of a resized image are: patch size times merge size.
    pub fn factor(&self) -> usize {
        self.patch_size * self.merge_size
    }

    /// Numbers in one patch of an RGB image.
    pub fn patch_len(&self) -> usize {
        3 * self.temporal_patch_size * self.patch_size * self.patch_size
    }
}

/// Cuts an RGB image (`height * width * 3` bytes, both sides multiples of [`PatchLayout::factor`]) into patches.
///
/// Order of the rows: block row, block column, row within the block, column within the block, so that `merge_size²`
/// consecutive rows form one token. Order within a row: channel, time, y, x. `levels[channel][byte]` is the normalised
/// value of a byte.
pub fn cut(rgb: &[u8], height: usize, width: usize, layout: &PatchLayout, levels: &[[f32; 256]; 3]) -> ImagePatches {
    let PatchLayout { patch_size, temporal_patch_size, merge_size } = *layout;
    assert_eq!(rgb.len(), height * width * 3, "an image of {height}x{width} needs {} bytes", height * width * 3);
    assert!(
        height.is_multiple_of(layout.factor()) && width.is_multiple_of(layout.factor()),
        "{height}x{width} is not a multiple of {}",
        layout.factor()
    );
    let grid = Grid { t: 1, h: height / patch_size, w: width / patch_size };
    let mut pixel_values = vec![0.0; grid.patches() * layout.patch_len()];
    let mut rows = pixel_values.chunks_exact_mut(layout.patch_len());
    for block_row in 0..grid.h / merge_size {
        for block_column in 0..grid.w / merge_size {
            for row in 0..merge_size {
                for column in 0..merge_size {
                    let top = (block_row * merge_size + row) * patch_size;
                    let left = (block_column * merge_size + column) * patch_size;
                    let Some(out) = rows.next() else { unreachable!("one row a patch") };
                    let plane = patch_size * patch_size;
                    for (channel, out) in out.chunks_exact_mut(temporal_patch_size * plane).enumerate() {
                        let (first, rest) = out.split_at_mut(plane);
                        for (y, line) in first.chunks_exact_mut(patch_size).enumerate() {
                            let start = ((top + y) * width + left) * 3 + channel;
                            let source = rgb[start..].iter().step_by(3);
                            line.iter_mut().zip(source).for_each(|(out, &byte)| *out = levels[channel][byte as usize]);
                        }
                        rest.chunks_exact_mut(plane).for_each(|frame| frame.copy_from_slice(first));
                    }
                }
            }
        }
    }
    ImagePatches { pixel_values, grid }
}
