//! From a conversation to a prompt that the engine takes without complaint.

use super::request::Truncate;
use crate::reply::{ApiError, Reply};
use mgsd_model::batch::Batch;
use mgsd_model::chat::Message;
use mgsd_model::config::Config;
use mgsd_model::image::ImageSource;
use mgsd_model::processor::{Processor, Prompt};

/// Makes sure that the engine can run a prompt, and that `context` leaves room for an answer.
pub fn check_prompt(prompt: &Prompt, config: &Config, context: usize) -> Reply<()> {
    if prompt.ids.len() >= context {
        return Err(ApiError::too_long(prompt.ids.len(), context));
    }
    Batch::new(config).push(prompt).map_err(|error| ApiError::invalid("messages", error.to_string()))?;
    Ok(())
}

/// Patches that the pictures of a conversation will be cut into, before any is.
pub fn patches(messages: &[Message], processor: &Processor) -> Reply<usize> {
    let grid = |picture: &ImageSource| match picture {
        ImageSource::Rgb(picture) => processor.images.grid(picture.height, picture.width).map(|grid| grid.patches()),
        ImageSource::Patches(patches) => Ok(patches.grid.patches()),
        // Pictures of requests are decoded by now.
        ImageSource::Path(_) | ImageSource::Bytes(_) => Ok(0),
    };
    let patches: Result<Vec<usize>, _> = messages.iter().flat_map(Message::images).map(grid).collect();
    Ok(patches.map_err(|error| ApiError::invalid("messages", error.to_string()))?.into_iter().sum())
}

/// Bytes that a prompt's pictures take until its answers have ended.
pub fn held_bytes(prompt: &Prompt) -> usize {
    prompt.images.iter().map(|image| size_of_val(image.pixel_values.as_slice())).sum()
}

/// Keeps the end of a prompt. Pictures that lie before the cut go with their tokens; a cut through one is refused.
pub fn truncate(prompt: &mut Prompt, keep: Truncate, config: &Config, context: usize) -> Reply<()> {
    let keep = match keep {
        Truncate::Last(tokens) => tokens,
        Truncate::ToFit => context - 1,
    };
    let Some(cut) = prompt.ids.len().checked_sub(keep).filter(|cut| *cut > 0) else { return Ok(()) };
    let ids = &prompt.ids;
    let is_image = |at: usize| ids[at] == config.image_token_id;
    // A picture's tokens and the mark before them stay together.
    let through = is_image(cut) && (is_image(cut - 1) || ids[cut - 1] == config.vision_start_token_id);
    if through {
        let message = format!("truncate_prompt_tokens keeps {keep} of {} tokens and cuts through a picture", ids.len());
        return Err(ApiError::invalid("truncate_prompt_tokens", message));
    }
    let gone = (0..cut).filter(|&at| is_image(at) && (at == 0 || !is_image(at - 1))).count();
    prompt.images.drain(..gone);
    prompt.ids.drain(..cut);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config() -> Config {
        Config::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano")).expect("the embedded model")
    }

    fn prompt(config: &Config) -> Prompt {
        let (start, pad, end) = (config.vision_start_token_id, config.image_token_id, config.vision_end_token_id);
        let grid = mgsd_model::patches::Grid { t: 1, h: 2, w: 4 };
        let image = mgsd_model::patches::ImagePatches { pixel_values: vec![0.0; 8 * 1536], grid };
        Prompt { ids: vec![1, start, pad, pad, end, 2, 3], images: vec![image.into()] }
    }

    #[test]
    fn a_cut_keeps_pictures_whole() {
        let config = config();
        let cut = |keep: usize| {
            let mut prompt = prompt(&config);
            truncate(&mut prompt, Truncate::Last(keep), &config, 100)?;
            check_prompt(&prompt, &config, 100)?;
            Ok::<_, ApiError>((prompt.ids.len(), prompt.images.len()))
        };
        assert_eq!(cut(9), Ok((7, 1)));
        assert_eq!(cut(6), Ok((6, 1)));
        assert!(cut(5).is_err() && cut(4).is_err());
        assert_eq!(cut(3), Ok((3, 0)));
        assert_eq!(cut(1), Ok((1, 0)));
    }

    #[test]
    fn to_fit_leaves_room_for_one_token() {
        let config = config();
        let mut prompt = Prompt { ids: (0..20).collect(), images: vec![] };
        truncate(&mut prompt, Truncate::ToFit, &config, 8).expect("cut");
        assert_eq!(prompt.ids, (13..20).collect::<Vec<u32>>());
        check_prompt(&prompt, &config, 8).expect("fits");
        assert_eq!(check_prompt(&prompt, &config, 7).expect_err("full").code, "context_length_exceeded");
    }
}
