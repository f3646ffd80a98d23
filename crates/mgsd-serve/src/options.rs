//! How a server is set up.

use crate::engine::Capacity;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// Folder of the model: tokenizer, chat template and image processor are read from it.
    pub model: PathBuf,
    /// The model's name to clients.
    pub name: String,
    /// Key that requests must bring.
    pub api_key: Option<String>,
    /// Answers under way and waiting.
    pub capacity: Capacity,
    /// Bounds on what one request may ask for.
    pub limits: Limits,
    /// Whether pictures are fetched whose URL a request gives.
    pub remote: Option<RemotePictures>,
    /// Bounds of the picture that reaches the vision tower.
    pub pixels: mgsd_model::image::PixelLimits,
    /// Texts around the boards of the page: `standard`, `compact`, or a folder.
    pub prompts: String,
    /// How the page's boards are drawn.
    pub pictures: mgsd_tasks::RenderOptions,
    /// How long answers under way may go on once the server is being stopped.
    pub drain: Duration,
}

/// How pictures are fetched. Without it the server asks nobody for anything.
#[derive(Clone, Copy, Debug)]
pub struct RemotePictures {
    /// Which addresses may be asked.
    pub reach: Reach,
    /// How long all pictures of one request together may take.
    pub time: Duration,
}

/// Addresses that pictures may be fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those of the public internet alone: nothing of this machine, of its network, or of any other private one.
    Public,
    /// All.
    Anywhere,
}

/// Bounds on one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the body.
    pub body: usize,
    /// Bytes of all bodies that are being read or prepared.
    pub all_bodies: usize,
    /// Pictures.
    pub pictures: usize,
    /// Pixels of one picture.
    pub pixels: usize,
    /// Tokens of one answer.
    pub tokens: usize,
    /// Open connections.
    pub connections: usize,
}

impl Default for Limits {
    /// 32 MiB of body, 256 MiB of bodies, 16 pictures of 16 megapixels, answers as long as the context, 1024 connections.
    fn default() -> Self {
        Self {
            body: 32 << 20,
            all_bodies: 256 << 20,
            pictures: 16,
            pixels: 16 << 20,
            tokens: usize::MAX,
            connections: 1024,
        }
    }
}

impl Default for Capacity {
    /// Slots and context as the model suggests, a queue of 1024 answers, 2 GiB of pictures.
    fn default() -> Self {
        Self { slots: None, context: None, queue: 1024, picture_bytes: 2 << 30 }
    }
}
