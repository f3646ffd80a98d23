//! `mgsd launch`: the same command several times on this machine.

use crate::interrupt;
use anyhow::Context;
use mgsd_train::world::PORT_ABOVE;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Start a command once for each GPU of this machine, or several times on its CPU; the processes share the work (train and
/// bench gpu).
///
/// Example: mgsd launch --gpus 2 train sft recipes/sft-qwen3-vl-4b.toml
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("count").required(true))]
pub struct Args {
    /// How many GPUs, and processes.
    #[arg(long, value_name = "N", group = "count", value_parser = super::at_least_one)]
    gpus: Option<usize>,
    /// How many processes on the CPU, which share its cores: gives no speed on one machine, but tries a run of several.
    #[arg(long, value_name = "N", group = "count", value_parser = super::at_least_one)]
    processes: Option<usize>,
    /// The command of mgsd and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// `global`: flags that every process gets.
pub fn run(args: &Args, global: &[String]) -> anyhow::Result<()> {
    let count = args.gpus.or(args.processes).unwrap_or(1);
    anyhow::ensure!(
        args.command.first().is_some_and(|name| name == "train" || name == "bench"),
        "{:?} cannot be shared by several processes; expected train or bench gpu",
        args.command.first().map_or("", String::as_str)
    );
    if args.gpus.is_some() {
        let there = mgsd_compute::cuda::Cuda::count();
        let there = there.map_err(|why| anyhow::anyhow!("--gpus: {why}; --processes {count} shares the CPU"))?;
        anyhow::ensure!(there >= count, "--gpus is {count}, but the driver shows {there}");
    }
    let program = std::env::current_exe().context("the path of this program")?;
    // Where the processes meet.
    let port = mgsd_compute::free_port().context("a free port")?;
    let mut children: Vec<Child> = Vec::with_capacity(count);
    for rank in 0..count {
        let mut command = Command::new(&program);
        command.args(global).args(&args.command);
        if args.processes.is_some() {
            command.args(["--device", "cpu"]);
        }
        let variables = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", count), ("LOCAL_WORLD_SIZE", count)];
        for (name, value) in variables {
            command.env(name, value.to_string());
        }
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.saturating_sub(PORT_ABOVE).to_string());
        set_apart(&mut command);
        let child = command.spawn().with_context(|| format!("starting process {rank}"))?;
        children.push(child);
    }
    watch(children)
}

/// How long the others of a process that has failed may take to end by themselves.
const GRACE: Duration = Duration::from_secs(10);

/// Waits for all. When one fails the others are given [`GRACE`], since they would wait for it for ever; signals are passed
/// on.
fn watch(mut children: Vec<Child>) -> anyhow::Result<()> {
    let signals = interrupt::count()?;
    let mut passed_on = 0;
    let mut failed: Option<(ExitStatus, Instant)> = None;
    while !children.is_empty() {
        let mut running = Vec::with_capacity(children.len());
        for mut child in children {
            match child.try_wait().context("waiting for a process")? {
                None => running.push(child),
                Some(status) if !status.success() => failed = failed.or(Some((status, Instant::now()))),
                Some(_) => {}
            }
        }
        while passed_on < signals.load(Ordering::SeqCst) {
            running.iter().for_each(stop);
            passed_on += 1;
        }
        if failed.is_some_and(|(_, since)| since.elapsed() > GRACE) {
            for child in &mut running {
                // It may have ended meanwhile.
                let _ = child.kill();
                let _ = child.wait();
            }
            break;
        }
        children = running;
        std::thread::sleep(Duration::from_millis(50));
    }
    match failed {
        None => Ok(()),
        Some((status, _)) => anyhow::bail!("a process ended with {status}, and with it the run"),
    }
}

/// Ctrl-C on a terminal reaches only the launcher, which passes it on once; and nobody outlives it.
#[cfg(unix)]
fn set_apart(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        let die_with_the_launcher = || {
            // SAFETY: a call of the system that changes this process alone; allowed between fork and exec.
            match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure allocates nothing and takes no lock.
        unsafe { command.pre_exec(die_with_the_launcher) };
    }
}

/// Asks a process to stop after its step.
#[cfg(unix)]
fn stop(child: &Child) {
    // SAFETY: the process was not waited for to its end yet, so the number is still its own.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
}

#[cfg(not(unix))]
fn set_apart(_: &mut Command) {}

#[cfg(not(unix))]
fn stop(_: &Child) {}
