//! One file per command.

pub mod bench;
pub mod data;
pub mod demo;
pub mod eval;
pub mod merge;
pub mod model;
pub mod report;
pub mod serve;
pub mod tasks;
pub mod train;

use anyhow::Context;

/// Sets the number of worker threads for the whole program.
pub fn threads(jobs: Option<usize>) -> anyhow::Result<()> {
    let Some(jobs) = jobs else { return Ok(()) };
    anyhow::ensure!(jobs > 0, "--jobs is 0, expected a number of threads from 1");
    mgsd_compute::set_threads(jobs);
    rayon::ThreadPoolBuilder::new().num_threads(jobs).build_global().context("cannot start the worker threads")
}

/// Where a model runs.
#[derive(clap::Args)]
pub struct Device {
    /// Device to run on. This version runs on the CPU.
    #[arg(long, default_value = "cpu", value_name = "cpu")]
    device: String,
}

impl Device {
    /// Refuses what this version cannot do.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.device == "cpu",
            "--device is {:?}: this version of mgsd runs on the CPU only; leave the flag out or give --device cpu",
            self.device
        );
        Ok(())
    }
}
