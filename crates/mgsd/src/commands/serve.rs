//! `mgsd serve`: a model behind an OpenAI-compatible API, with a web page.

use super::model::Pixels;
use super::tasks::tile_set;
use super::{Device, model_folder, model_folder_of};
use crate::console::Console;
use crate::demo::embedded;
use crate::interrupt;
use anyhow::{Context, ensure};
use mgsd_model::model::Qwen3Vl;
use mgsd_serve::{Capacity, Limits, Models, Options, Reach, RemotePictures, Server};
use mgsd_tasks::RenderOptions;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Serve a model: OpenAI-compatible API at /v1, Prometheus at /metrics, and a page to look at boards and plans at /.
///
/// Example: mgsd serve --model runs/demo/opcd/model --teacher runs/demo/sft/model
///
/// Ctrl-C or SIGTERM: new requests get 503, answers under way go on for --drain seconds; a second signal ends at once.
#[derive(clap::Args)]
pub struct Args {
    /// Model folder, or a name on the Hugging Face Hub; default: the embedded model.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Folder of a PEFT adapter that was trained on the model, to be served on top of it.
    #[arg(long, requires = "model")]
    adapter: Option<PathBuf>,
    /// Folder of a teacher with the same vocabulary, to colour each token of an answer by its divergence from it.
    #[arg(long)]
    teacher: Option<PathBuf>,
    /// Name of the model to clients; default: its folder's name.
    #[arg(long)]
    name: Option<String>,
    /// Address to listen on; 0.0.0.0 lets other machines in.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    #[command(flatten)]
    key: Key,
    /// Answers that advance at once; default: as many as a gibibyte of cache holds, at most 32.
    #[arg(long, value_parser = super::at_least_one)]
    slots: Option<usize>,
    /// Tokens of prompt and answer together; default: the model's own limit, at most 4096.
    #[arg(long, value_parser = super::at_least_one)]
    context: Option<usize>,
    /// Longest answer in tokens; default: whatever the context leaves.
    #[arg(long, value_parser = super::at_least_one)]
    max_tokens: Option<usize>,
    /// Answers that may wait for a slot before requests are refused with 429.
    #[arg(long, default_value_t = 1024)]
    max_queue: usize,
    /// Largest request body in MiB.
    #[arg(long, default_value_t = 32)]
    max_body_mib: usize,
    /// Most pictures in one request.
    #[arg(long, default_value_t = 16)]
    max_pictures: usize,
    /// Most megapixels of one picture as it is sent; it is reduced for the model afterwards.
    #[arg(long, default_value_t = 16)]
    max_megapixels: usize,
    /// Fetch pictures that a request names by an http or https address; without it they are refused. Only addresses of
    /// the public internet are asked, for as many bytes as a body may have and for at most 20 seconds a request.
    #[arg(long)]
    allow_remote_images: bool,
    /// Fetch pictures from this machine and from private networks too: whoever may ask the model can then make this
    /// machine ask whatever it can reach.
    #[arg(long, requires = "allow_remote_images")]
    allow_private_addresses: bool,
    /// Most open connections.
    #[arg(long, default_value_t = 1024)]
    max_connections: usize,
    /// Seconds that answers under way may go on after Ctrl-C or SIGTERM.
    #[arg(long, default_value_t = 30)]
    drain: u64,
    /// Texts around the page's boards: standard, compact, or a folder; default: compact for a vocabulary below 4096
    /// tokens, else standard.
    #[arg(long)]
    prompts: Option<String>,
    /// Folder with FrozenLake tiles for the page's boards.
    #[arg(long)]
    tiles: Option<PathBuf>,
    #[command(flatten)]
    pixels: Pixels,
    #[command(flatten)]
    device: Device,
}

/// Where the key comes from that requests must bring.
#[derive(clap::Args)]
#[group(multiple = false)]
struct Key {
    /// Key that requests must bring as "Authorization: Bearer KEY". Other users of this machine can see it in the list
    /// of processes; the two flags below keep it out of there.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Environment variable that holds the key.
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,
    /// File that holds the key.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

impl Key {
    fn read(&self) -> anyhow::Result<Option<String>> {
        let (source, key) = if let Some(key) = &self.api_key {
            ("--api-key".to_string(), key.clone())
        } else if let Some(name) = &self.api_key_env {
            let key = std::env::var(name);
            (format!("--api-key-env {name}"), key.with_context(|| format!("--api-key-env: {name} is not set"))?)
        } else if let Some(path) = &self.api_key_file {
            let place = format!("--api-key-file {}", path.display());
            let key = std::fs::read_to_string(path).with_context(|| place.clone())?;
            (place, key)
        } else {
            return Ok(None);
        };
        let key = key.trim().to_string();
        ensure!(!key.is_empty(), "{source} gives an empty key; expected at least one character");
        Ok(Some(key))
    }
}

/// A model folder that is removed again if it was made for the occasion.
struct Folder {
    path: PathBuf,
    /// What clients call it.
    name: String,
    temporary: bool,
}

impl Folder {
    fn of(args: &Args, console: &Console) -> anyhow::Result<Self> {
        let Some(given) = &args.model else {
            let path = std::env::temp_dir().join(format!("mgsd-embedded-{}", std::process::id()));
            return Ok(Self { path: embedded::write_model(&path)?, name: "nano".into(), temporary: true });
        };
        let whole = given.canonicalize().unwrap_or_else(|_| given.clone());
        let name = whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        Ok(Self { path: model_folder(given, console)?, name, temporary: false })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary {
            // Left over in the temporary folder at worst.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// How long the pictures of one request may take to arrive.
const FETCH_TIME: Duration = Duration::from_secs(20);
/// Below this many tokens a vocabulary cannot hold the standard prompts in a sensible number of tokens.
const SMALL_VOCABULARY: usize = 4096;

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let model = Folder::of(args, console)?;
    let config = mgsd_model::config::Config::open(&model.path)?;
    let compact = config.text.vocab_size < SMALL_VOCABULARY;
    let prompts = args.prompts.clone().unwrap_or_else(|| if compact { "compact" } else { "standard" }.into());
    let api_key = args.key.read()?;
    let open = !args.host.is_loopback() && api_key.is_none();
    let defaults = Limits::default();
    let options = Options {
        address: SocketAddr::new(args.host, args.port),
        model: model.path.clone(),
        name: args.name.clone().unwrap_or_else(|| model.name.clone()),
        api_key,
        capacity: Capacity { slots: args.slots, context: args.context, queue: args.max_queue, ..Capacity::default() },
        limits: Limits {
            body: args.max_body_mib << 20,
            all_bodies: defaults.all_bodies.max(args.max_body_mib << 20),
            pictures: args.max_pictures,
            pixels: args.max_megapixels << 20,
            tokens: args.max_tokens.unwrap_or(defaults.tokens),
            connections: args.max_connections,
        },
        remote: args.allow_remote_images.then_some(RemotePictures {
            reach: if args.allow_private_addresses { Reach::Anywhere } else { Reach::Public },
            time: FETCH_TIME,
        }),
        pixels: args.pixels.limits(),
        prompts,
        pictures: RenderOptions { image_size: 256, tiles: tile_set(args.tiles.as_deref())? },
        drain: Duration::from_secs(args.drain),
    };
    let stop = interrupt::install("taking no more requests; once more to stop at once")?;
    let path = model.path.clone();
    let (adapter, teacher) =
        (model_folder_of(args.adapter.as_ref(), console)?, model_folder_of(args.teacher.as_ref(), console)?);
    let load = move || {
        let model = Qwen3Vl::for_inference(&path, adapter.as_deref(), device)?;
        let teacher = teacher.map(|teacher| Qwen3Vl::for_inference(&teacher, None, device));
        Ok(Models { model, teacher: teacher.transpose()? })
    };
    let server = Server::start(&options, Box::new(load))?;
    if open {
        console.note("warning: other machines can use this server without a key; --api-key-env NAME asks for one");
    }
    announce(&server, &options, console)?;
    while !stop.load(Ordering::Relaxed) {
        if let Some(failure) = server.failure() {
            return Err(failure.into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // A second signal ends the program itself.
    let whole = server.stop(&AtomicBool::new(false));
    ensure!(whole, "answers were still under way after {} seconds and were given up; see --drain", args.drain);
    Ok(())
}

fn announce(server: &Server, options: &Options, console: &Console) -> anyhow::Result<()> {
    let (address, info) = (server.address(), server.info());
    console.say(format_args!(
        "{} ({:.1} M parameters{}) at http://{address}/v1, page at http://{address}/; {} answers at once, {} tokens each",
        options.name,
        info.parameters as f64 / 1e6,
        if info.teacher.is_some() { ", with a teacher" } else { "" },
        info.slots,
        info.context,
    ));
    console.result(&serde_json::json!({
        "url": format!("http://{address}"),
        "model": options.name,
        "parameters": info.parameters,
        "slots": info.slots,
        "context": info.context,
        "teacher": info.teacher.is_some(),
    }))
}
