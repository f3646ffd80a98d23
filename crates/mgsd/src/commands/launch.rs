//! `mgsd launch`: the same command once for each GPU of this machine.

use anyhow::Context;
use mgsd_train::world::PORT_ABOVE;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::Duration;

/// Start a command once for each GPU of this machine; the processes share the work (train and bench gpu).
///
/// Example: mgsd launch --gpus 2 train sft recipes/sft-qwen3-vl-4b.toml
#[derive(clap::Args)]
pub struct Args {
    /// How many GPUs, and processes.
    #[arg(long)]
    gpus: usize,
    /// The command of mgsd and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.gpus > 0, "--gpus is 0, expected at least 1");
    anyhow::ensure!(
        args.command.first().is_some_and(|name| name == "train" || name == "bench"),
        "{:?} cannot be shared by several processes; expected train or bench gpu",
        args.command.first().map_or("", String::as_str)
    );
    let there = mgsd_compute::cuda::Cuda::count().map_err(anyhow::Error::msg)?;
    anyhow::ensure!(there >= args.gpus, "--gpus is {}, but the driver shows {there}", args.gpus);
    let program = std::env::current_exe().context("the path of this program")?;
    // A port that was free a moment ago, where the processes meet.
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("a free port")?.port();
    let mut children: Vec<Child> = Vec::with_capacity(args.gpus);
    for rank in 0..args.gpus {
        let mut command = Command::new(&program);
        command.args(&args.command);
        for (name, value) in [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", args.gpus)] {
            command.env(name, value.to_string());
        }
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.saturating_sub(PORT_ABOVE).to_string());
        let child = command.spawn().with_context(|| format!("starting process {rank}"))?;
        children.push(child);
    }
    // When one fails the others would wait for it for ever.
    let mut failed = None;
    while !children.is_empty() {
        let mut running = Vec::with_capacity(children.len());
        for mut child in children {
            match child.try_wait().context("waiting for a process")? {
                None => running.push(child),
                Some(status) if !status.success() => failed = failed.or(Some(status)),
                Some(_) => {}
            }
        }
        if failed.is_some() {
            for child in &mut running {
                // It may have ended meanwhile.
                let _ = child.kill();
                let _ = child.wait();
            }
            break;
        }
        children = running;
        std::thread::sleep(Duration::from_millis(100));
    }
    match failed {
        None => Ok(()),
        Some(status) => anyhow::bail!("a process ended with {status}; the others were stopped"),
    }
}
