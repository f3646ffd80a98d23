//! From messages to what the model reads: token ids with image places, and the images' patches.

use std::{path::Path, sync::Arc};

use crate::{
    chat::{ChatTemplate, GenerationPrompt, Message},
    config::{Config, read_json},
    error::{Error, Result},
    image::{ImageProcessor, PixelLimits},
    patches::{Grid, ImagePatches},
    tokenizer::Tokenizer,
};

/// One sequence for the model: token ids, and the images that its image tokens stand for, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    /// Token ids; each image takes as many image tokens as its grid has merged patches.
    pub ids: Vec<u32>,
    /// The images in order of appearance.
    pub images: Vec<Arc<ImagePatches>>,
}

impl Prompt {
    /// Patches of all images.
    pub fn patches(&self) -> usize {
        self.images.iter().map(|image| image.grid.t * image.grid.h * image.grid.w).sum()
    }

    /// The grids of the images in order.
    pub fn grids(&self) -> Vec<Grid> {
        self.images.iter().map(|image| image.grid).collect()
    }
}

/// A whole conversation to learn from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// The conversation, all turns included.
    pub prompt: Prompt,
    /// For each token whether it is to be learnt: the assistant's words, the token that ends the turn, and the line
    /// end after it.
    pub labelled: Vec<bool>,
}

/// Tokenizer, chat template and image processor of one model folder.
pub struct Processor {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template.
    pub template: ChatTemplate,
    /// The image processor.
    pub images: ImageProcessor,
    image_token_id: u32,
}

impl Processor {
    /// Opens the processor of a model folder; `limits` replace the folder's bounds on pixels where given.
    pub fn open(dir: &Path, limits: PixelLimits) -> Result<Self> {
        let config = Config::open(dir)?;
        let images = ImageProcessor::open(dir, limits)?;
        let (layout, vision) = (images.layout(), &config.vision);
        for (name, own, model) in [
            ("patch_size", layout.patch_size, vision.patch_size),
            ("temporal_patch_size", layout.temporal_patch_size, vision.temporal_patch_size),
            ("merge_size", layout.merge_size, vision.spatial_merge_size),
        ] {
            if own != model {
                return Err(Error::Folder {
                    path: dir.into(),
                    problem: format!("has a processor with {name} {own}, but config.json says {model}"),
                });
            }
        }
        let tokenizer = Tokenizer::open(dir)?;
        check_marks(dir, &tokenizer, &config)?;
        Ok(Self { tokenizer, template: ChatTemplate::open(dir)?, images, image_token_id: config.image_token_id })
    }

    /// The sequence after which the assistant is to speak.
    pub fn prompt(&self, messages: &[Message]) -> Result<Prompt> {
        let text = self.template.render(messages, GenerationPrompt::Add)?;
        let ids = self.tokenizer.encode(&text)?;
        let images = self.load_images(messages)?;
        Ok(Prompt { ids: self.expand(&ids, &images)?, images })
    }

    /// A conversation with all assistant turns labelled. An error if there is none.
    ///
    /// The parts to be learnt are tokenised apart from what stands before them, because a response is made that way:
    /// token by token after a prompt that was complete.
    pub fn example(&self, messages: &[Message]) -> Result<Example> {
        let images = self.load_images(messages)?;
        let text = self.template.render(messages, GenerationPrompt::Omit)?;
        let mut ids = Vec::new();
        let mut labelled = Vec::new();
        let mut done = 0;
        let mut take = |end: usize, label: bool| -> Result<()> {
            let Some(piece) = text.get(done..end) else {
                return Err(Error::Prompt(format!(
                    "the chat template {} writes earlier turns differently when later ones follow, so that the \
                     assistant's words cannot be told apart; train on one assistant turn a conversation",
                    self.template.origin()
                )));
            };
            ids.extend(self.tokenizer.encode(piece)?);
            labelled.resize(ids.len(), label);
            done = end;
            Ok(())
        };
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            let opened = self.template.render(&messages[..index], GenerationPrompt::Add)?;
            let closed = self.template.render(&messages[..=index], GenerationPrompt::Omit)?;
            // An end beyond the text is refused above.
            let (start, end) = match text.starts_with(&opened) && text.starts_with(&closed) {
                true => (opened.len(), closed.len()),
                false => (usize::MAX, usize::MAX),
            };
            take(start, false)?;
            take(end, true)?;
        }
        take(text.len(), false)?;
        if !labelled.contains(&true) {
            return Err(Error::Prompt("the conversation has no assistant turn to learn from".into()));
        }
        let expanded = self.expand(&ids, &images)?;
        let labelled = self.expand_labels(&ids, &labelled, &images);
        Ok(Example { prompt: Prompt { ids: expanded, images }, labelled })
    }

    /// Puts as many image tokens in the place of each as the image's grid needs. An error if the text has more or
    /// fewer places than there are images.
    pub fn expand(&self, ids: &[u32], images: &[Arc<ImagePatches>]) -> Result<Vec<u32>> {
        let places = ids.iter().filter(|&&id| id == self.image_token_id).count();
        if places != images.len() {
            return Err(Error::Prompt(format!(
                "the text has {places} places for images, but {} images were given; each image needs one \
                 image token, and text must not contain it",
                images.len()
            )));
        }
        Ok(self.spread(ids, images).collect())
    }

    fn expand_labels(&self, ids: &[u32], labelled: &[bool], images: &[Arc<ImagePatches>]) -> Vec<bool> {
        let mut grids = images.iter();
        let repeat = |(&id, &label): (&u32, &bool)| std::iter::repeat_n(label, self.length(id, &mut grids));
        ids.iter().zip(labelled).flat_map(repeat).collect()
    }

    fn spread(&self, ids: &[u32], images: &[Arc<ImagePatches>]) -> impl Iterator<Item = u32> {
        let mut images = images.iter();
        ids.iter().flat_map(move |&id| std::iter::repeat_n(id, self.length(id, &mut images)))
    }

    /// How many tokens one token becomes.
    fn length<'a>(&self, id: u32, images: &mut impl Iterator<Item = &'a Arc<ImagePatches>>) -> usize {
        if id != self.image_token_id {
            return 1;
        }
        images.next().map_or(1, |image| image.grid.tokens(self.images.layout().merge_size))
    }

    fn load_images(&self, messages: &[Message]) -> Result<Vec<Arc<ImagePatches>>> {
        messages.iter().flat_map(Message::images).map(|source| self.images.load(source)).collect()
    }
}

/// Makes sure that the tokenizer and the model mean the same by the marks around and for pictures, and by the end of a
/// turn. A tokenizer of another model may well have a vocabulary of the same size.
fn check_marks(dir: &Path, tokenizer: &Tokenizer, config: &Config) -> Result<()> {
    let wrong = |mark: &str, says: String| Error::Tokenizer {
        path: tokenizer.origin().into(),
        problem: format!(
            "{}, but {says}; expected tokenizer and configuration of the same model: copy both from the folder that the \
             weights come from",
            tokenizer
                .token_id(mark)
                .map_or_else(|| format!("has no token {mark}"), |id| format!("{mark} has the id {id}")),
        ),
    };
    for (mark, field, id) in [
        ("<|image_pad|>", "image_token_id", config.image_token_id),
        ("<|vision_start|>", "vision_start_token_id", config.vision_start_token_id),
        ("<|vision_end|>", "vision_end_token_id", config.vision_end_token_id),
    ] {
        if tokenizer.token_id(mark) != Some(id) {
            return Err(wrong(mark, format!("{} says {field} {id}", dir.join("config.json").display())));
        }
    }
    let (named, ends) = (end_mark(dir)?, &config.eos_token_ids);
    match named.filter(|mark| !tokenizer.token_id(mark).is_some_and(|id| ends.is_empty() || ends.contains(&id))) {
        Some(mark) => {
            let settings = ["generation_config.json", "config.json"].map(|name| dir.join(name).display().to_string());
            let says = format!(
                "{} names it as eos_token, and {} say eos_token_id {ends:?}",
                dir.join("tokenizer_config.json").display(),
                settings.join(" and ")
            );
            Err(wrong(&mark, says))
        }
        None => Ok(()),
    }
}

/// The token that ends a turn as `tokenizer_config.json` names it, if there is such a file and it does.
fn end_mark(dir: &Path) -> Result<Option<String>> {
    let path = dir.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let root = read_json(&path)?;
    let mark = &root["eos_token"];
    Ok(mark.as_str().or_else(|| mark["content"].as_str()).map(str::to_string))
}
