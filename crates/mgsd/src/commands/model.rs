//! `mgsd model`: checkpoints made, traced and talked to.

use super::{Device, model_folder, model_folder_of};
use crate::console::Console;
use anyhow::Context;
use mgsd_model::chat::{Message, Part};
use mgsd_model::generate::{Generator, Request};
use mgsd_model::image::{ImageSource, PixelLimits};
use mgsd_model::linear::Adapter;
use mgsd_model::model::Qwen3Vl;
use mgsd_model::processor::Processor;
use mgsd_model::sampling::Sampling;
use std::path::PathBuf;
use std::sync::Arc;

/// Make, look into and talk to Qwen3-VL checkpoints.
///
/// Example: mgsd model chat --model assets/nano --image maze.png "$(printf 'maze\nread')"
#[derive(clap::Subcommand)]
pub enum Command {
    Init(Init),
    Trace(Trace),
    Chat(Chat),
}

/// Make a checkpoint with random weights from a configuration folder.
///
/// Example: mgsd model init --config assets/nano --out runs/random --seed 1
#[derive(clap::Args)]
pub struct Init {
    /// Folder with config.json, tokenizer and processor files.
    #[arg(long)]
    config: PathBuf,
    /// Model folder to make.
    #[arg(long)]
    out: PathBuf,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Write every intermediate tensor of a conversation as safetensors, to compare with other implementations.
///
/// Example: mgsd model trace --model assets/nano --chat chat.json --out trace.safetensors --generate 24
#[derive(clap::Args)]
pub struct Trace {
    /// Model folder, or a name on the Hugging Face Hub such as Qwen/Qwen3-VL-4B-Instruct.
    #[arg(long)]
    model: PathBuf,
    /// OpenAI-style messages; image_url may be a data URL or a path, relative paths from the file's folder.
    #[arg(long)]
    chat: PathBuf,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
    /// Also generate this many tokens, greedily, end tokens ignored.
    #[arg(long, default_value_t = 0, value_name = "N")]
    generate: usize,
    #[command(flatten)]
    pixels: Pixels,
    #[command(flatten)]
    device: Device,
}

/// Ask a model once, with or without a picture.
///
/// Example: mgsd model chat --model assets/nano --image maze.png "$(printf 'maze\nread')"
#[derive(clap::Args)]
pub struct Chat {
    /// Model folder, or a name on the Hugging Face Hub such as Qwen/Qwen3-VL-4B-Instruct.
    #[arg(long)]
    model: PathBuf,
    /// Folder of a PEFT adapter that was trained on the model.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Pictures to show, in order, before the text.
    #[arg(long)]
    image: Vec<PathBuf>,
    /// What to ask; default: standard input.
    prompt: Option<String>,
    /// Longest answer in tokens.
    #[arg(long, default_value_t = 512)]
    max_new_tokens: usize,
    /// 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Only the likeliest tokens that together reach this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Only the k likeliest tokens; 0 is off.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Only tokens at least this likely relative to the likeliest.
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Above 1, tokens seen before are made less likely.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    pixels: Pixels,
    #[command(flatten)]
    device: Device,
}

/// Limits of the picture that reaches the vision tower.
#[derive(clap::Args)]
pub struct Pixels {
    /// Enlarge smaller pictures to this many pixels; default: the model folder's.
    #[arg(long)]
    min_pixels: Option<usize>,
    /// Reduce larger pictures to this many pixels; default: the model folder's.
    #[arg(long)]
    max_pixels: Option<usize>,
}

impl Pixels {
    pub fn limits(&self) -> PixelLimits {
        PixelLimits { min_pixels: self.min_pixels, max_pixels: self.max_pixels }
    }
}

/// Largest weight file, as transformers cuts them.
const SHARD_BYTES: u64 = 5_000_000_000;

pub fn run(command: Command, console: &Console) -> anyhow::Result<()> {
    match command {
        Command::Init(args) => init(&args, console),
        Command::Trace(args) => trace(&args, console),
        Command::Chat(args) => chat(&args, console),
    }
}

fn init(args: &Init, console: &Console) -> anyhow::Result<()> {
    let parameters = mgsd_model::init::write_random(&args.config, &args.out, args.seed, SHARD_BYTES)?;
    console.say(format_args!("{parameters} parameters in {}", args.out.display()));
    console.result(&serde_json::json!({"out": args.out, "parameters": parameters}))
}

fn trace(args: &Trace, console: &Console) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let path = &args.chat;
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{}: expected a JSON list of messages", path.display()))?;
    let base = path.parent().unwrap_or(std::path::Path::new("."));
    let messages = Message::list_from_json(&json, base).with_context(|| path.display().to_string())?;
    let folder = model_folder(&args.model, console)?;
    let processor = Processor::open(&folder, args.pixels.limits())?;
    let model = Qwen3Vl::for_inference(&folder, None, device)?;
    let trace = mgsd_model::trace::trace(&model, &processor.prompt(&messages)?, args.generate)?;
    mgsd_model::weights::write_arrays(&args.out, &trace)?;
    console.say(format_args!("{} tensors in {}", trace.len(), args.out.display()));
    console.result(&serde_json::json!({"out": args.out, "tensors": trace.len()}))
}

fn chat(args: &Chat, console: &Console) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None => std::io::read_to_string(std::io::stdin()).context("standard input")?,
    };
    let sampling = Sampling {
        repetition_penalty: args.repetition_penalty,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed,
    };
    if let Some(problem) = sampling.problem() {
        anyhow::bail!(problem);
    }
    let mut parts: Vec<Part> = args.image.iter().map(|path| Part::Image(ImageSource::Path(path.clone()))).collect();
    parts.push(Part::Text(prompt));
    let (folder, adapter) = (model_folder(&args.model, console)?, model_folder_of(args.adapter.as_ref(), console)?);
    let processor = Processor::open(&folder, args.pixels.limits())?;
    let model = Qwen3Vl::for_inference(&folder, adapter.as_deref(), device)?;
    let request = Request {
        prompt: Arc::new(processor.prompt(&[Message::parts("user", parts)])?),
        sampling,
        max_new_tokens: args.max_new_tokens,
        stop: model.config.eos_token_ids.clone(),
    };
    let tokens = request.prompt.ids.len();
    let mut stream = processor.tokenizer.stream();
    let stop = model.config.eos_token_ids.clone();
    let mut show = |event: mgsd_model::generate::Event| {
        if !stop.contains(&event.token) {
            console.say_piece(stream.push(event.token).unwrap_or_default());
        }
    };
    let answers = Generator::new(&model.config, 1).generate(&model, &[request], Adapter::On, &mut show)?;
    console.say("");
    let answer = &answers[0];
    console.result(&serde_json::json!({
        "answer": processor.tokenizer.decode(answer.content())?,
        "prompt_tokens": tokens,
        "tokens": answer.ids.len(),
        "finish": format!("{:?}", answer.finish).to_lowercase(),
        "log_prob": answer.log_probs.iter().sum::<f32>(),
    }))
}
