//! Positions in time, height and width for the rotary embedding of the text decoder.

use crate::{
    config::Config,
    error::{Error, Result},
    patches::Grid,
};

/// The `[t, h, w]` position of every token, and `rope_delta`.
///
/// Text counts on, the three numbers being equal. An image that starts at position `p` gives its merged token at
/// (row, column) the position `[p, p + row, p + column]`; the token after it continues at `p + max(rows, columns)`.
/// While decoding, the position of a new token is the number of tokens before it plus `rope_delta`
/// (= highest position + 1 - number of tokens; never positive).
///
/// `grids` are those of the images in order of appearance; each run of `image_token_id` must be exactly as long as its
/// grid demands.
pub fn position_ids(ids: &[u32], grids: &[Grid], config: &Config) -> Result<(Vec<[u32; 3]>, i64)> {
    let merge = config.vision.spatial_merge_size;
    let mut positions = Vec::with_capacity(ids.len());
    let mut next = 0u32;
    let mut images = grids.iter();
    while positions.len() < ids.len() {
        let at = positions.len();
        if ids[at] != config.image_token_id {
            positions.push([next; 3]);
            next += 1;
            continue;
        }
        let run = ids[at..].iter().take_while(|&&id| id == config.image_token_id).count();
        let Some(grid) = images.next() else {
            return Err(Error::Prompt(format!(
                "image tokens at position {at}, but only {} images were given",
                grids.len()
            )));
        };
        if grid.t != 1 {
            return Err(Error::Prompt(format!("an image of {} time patches; videos are not supported", grid.t)));
        }
        let (rows, columns) = (grid.h / merge, grid.w / merge);
        if run != rows * columns {
            return Err(Error::Prompt(format!(
                "{run} image tokens at position {at}, but the image of {}x{} patches needs {}",
                grid.h,
                grid.w,
                rows * columns
            )));
        }
        for row in 0..rows as u32 {
            positions.extend((0..columns as u32).map(|column| [next, next + row, next + column]));
        }
        next += rows.max(columns) as u32;
    }
    let left = images.count();
    if left > 0 {
        return Err(Error::Prompt(format!(
            "{} images were given, but the text has places for {}",
            grids.len(),
            grids.len() - left
        )));
    }
    Ok((positions, i64::from(next) - ids.len() as i64))
}
