//! One file per command.

pub mod bench;
pub mod data;
pub mod demo;
pub mod eval;
pub mod launch;
pub mod merge;
pub mod model;
pub mod report;
pub mod serve;
pub mod tasks;
pub mod train;

use crate::console::Console;
use anyhow::Context;
use mgsd_train::world::{Place, World};
use std::path::{Path, PathBuf};

/// Reads a flag that counts what there must be one of.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "expected a whole number from 1".to_string())
}

/// Reads one of a list of levels.
pub fn level(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected sides of grids such as 3,4".to_string())
}

/// Reads the name of a device, which need not be there.
fn device_name(text: &str) -> Result<String, String> {
    mgsd_compute::Device::check_name(text).map(|()| text.to_string())
}

/// Sets the number of worker threads for the whole program.
pub fn threads(jobs: Option<usize>) -> anyhow::Result<()> {
    let Some(jobs) = jobs else { return Ok(()) };
    mgsd_compute::set_threads(jobs);
    rayon::ThreadPoolBuilder::new().num_threads(jobs).build_global().context("cannot start the worker threads")
}

/// Refuses to run as one of several processes what would write the same files in each; `instead` says how work is shared.
pub fn alone(instead: &str) -> anyhow::Result<()> {
    match Place::from_environment(|name| std::env::var(name).ok())? {
        None => Ok(()),
        Some(Place { rank, size, .. }) => {
            anyhow::bail!("this is process {rank} of {size}, but the command is for one process; {instead}")
        }
    }
}

/// The folder that is meant by `given`: itself, or that of a model by its name on the Hugging Face Hub, which is fetched if
/// it is not in the cache.
pub fn model_folder(given: &Path, console: &Console) -> anyhow::Result<PathBuf> {
    let Some(name) = mgsd_hub::named(given) else { return Ok(given.to_path_buf()) };
    let settings = mgsd_hub::Settings::from_environment(|name| std::env::var(name).ok())?;
    let mut bar = None;
    let mut current = String::new();
    let found = mgsd_hub::folder(&name, &settings, &mut |progress| {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let bar = bar.get_or_insert_with(|| console.bar(mib(progress.total), "MiB"));
        bar.set_position(mib(progress.done));
        if current != progress.file {
            current = progress.file.to_string();
            bar.set_message(current.clone());
            if bar.is_hidden() {
                console.note(format_args!(
                    "fetching {current} of {name}: {} of {} MiB are there",
                    mib(progress.done),
                    mib(progress.total)
                ));
            }
        }
    })?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(found)
}

/// The same for what may be absent.
pub fn model_folder_of(given: Option<&PathBuf>, console: &Console) -> anyhow::Result<Option<PathBuf>> {
    given.map(|given| model_folder(given, console)).transpose()
}

/// Where a model runs.
#[derive(clap::Args)]
pub struct Device {
    /// Where the model runs: cpu, cuda or cuda:N; by default the first GPU if there is one that can be used.
    #[arg(long, default_value = "auto", value_name = "cpu|cuda|cuda:N", value_parser = device_name)]
    device: String,
}

impl Device {
    /// The device of this process and those who share its work, if it was started as one of several. Unless a GPU is
    /// named, each takes its own; without GPUs they share this machine's cores.
    pub fn join(&self) -> anyhow::Result<(mgsd_compute::Device, World)> {
        let Some(place) = Place::from_environment(|name| std::env::var(name).ok())? else {
            return Ok((self.open()?, World::alone()));
        };
        let device = match self.device.as_str() {
            "auto" if !mgsd_compute::cuda::Cuda::count().is_ok_and(|count| count > 0) => mgsd_compute::Device::Cpu,
            "auto" | "cuda" => open(&format!("cuda:{}", place.local))?,
            _ => self.open()?,
        };
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        if device.is_cpu() && mgsd_compute::threads() == cores {
            // Nobody has said how many.
            mgsd_compute::set_threads((cores / place.beside).max(1));
        }
        let world = World::join(&place, device)?;
        Ok((device, world))
    }

    /// The device, or what is missing to use it.
    pub fn open(&self) -> anyhow::Result<mgsd_compute::Device> {
        open(&self.device)
    }
}

/// Where a model runs, once or several times.
#[derive(clap::Args)]
pub struct Devices {
    /// Where the model runs: cpu, cuda or cuda:N; by default the first GPU if there is one that can be used. Several, such
    /// as cuda:0,cuda:1, hold a copy each and share the work.
    #[arg(
        long = "device",
        default_value = "auto",
        value_name = "cpu|cuda|cuda:N",
        value_delimiter = ',',
        value_parser = device_name
    )]
    devices: Vec<String>,
}

impl Devices {
    /// The devices, or what is missing to use one of them.
    pub fn open(&self) -> anyhow::Result<Vec<mgsd_compute::Device>> {
        let devices: Vec<_> = self.devices.iter().map(|device| open(device)).collect::<anyhow::Result<_>>()?;
        let mut gpus = Vec::new();
        for device in &devices {
            let mgsd_compute::Device::Cuda(gpu) = device else { continue };
            // A GPU takes work from one thread at a time.
            let names = self.devices.join(",");
            anyhow::ensure!(!gpus.contains(&gpu.ordinal()), "--device {names}: cuda:{} is named twice", gpu.ordinal());
            gpus.push(gpu.ordinal());
        }
        Ok(devices)
    }
}

fn open(device: &str) -> anyhow::Result<mgsd_compute::Device> {
    mgsd_compute::Device::parse(device).map_err(|why| anyhow::anyhow!("--device {device}: {why}"))
}
