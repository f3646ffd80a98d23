//! The command line: flags in, calls out. Each command is a file in `commands`; what it does lives in the crates below.

mod commands;
mod console;
mod demo;
mod interrupt;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Teach vision-language models to plan from pictures.
///
/// Makes visual planning boards, trains Qwen3-VL to read them and to plan from them (perception SFT, then on-policy
/// context distillation from a teacher that sees the symbolic state), and measures what was gained.
#[derive(Parser)]
#[command(name = "mgsd", version, propagate_version = true)]
#[command(after_help = "Begin with `mgsd demo`: the whole method on the embedded model, in minutes.")]
struct Cli {
    /// Print one JSON object as the last line of standard output where a result is reported.
    #[arg(long, global = true)]
    json: bool,
    /// Threads to use; default: all cores.
    #[arg(long, global = true, value_name = "N", value_parser = commands::at_least_one)]
    jobs: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(commands::demo::Args),
    #[command(subcommand)]
    Tasks(commands::tasks::Command),
    #[command(subcommand)]
    Data(commands::data::Command),
    #[command(subcommand)]
    Model(commands::model::Command),
    Train(commands::train::Args),
    Launch(commands::launch::Args),
    Merge(commands::merge::Args),
    #[command(subcommand)]
    Eval(commands::eval::Command),
    Report(commands::report::Args),
    Serve(commands::serve::Args),
    Bench(commands::bench::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let console = console::Console::new(cli.json);
    losses_in_words();
    // What is launched gets the flags of the launcher.
    let global: Vec<String> = [cli.json.then(|| "--json".into()), cli.jobs.map(|jobs| format!("--jobs={jobs}"))]
        .into_iter()
        .flatten()
        .collect();
    match commands::threads(cli.jobs).and_then(|()| run(cli.command, &global, &console)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", on_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// What a computation cannot go on without (a GPU's memory or library, another process) ends the program with its message
/// alone.
fn losses_in_words() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or_default();
        let begins = ["GPU", "CUDA", "cuBLASLt", "NVRTC", "NCCL", "process of rank"];
        if begins.iter().any(|begin| message.starts_with(begin)) {
            eprintln!("error: {message}");
            std::process::exit(1);
        }
        usual(info);
    }));
}

/// The chain of causes on one line: what failed, then why. A cause that an error has quoted itself is not said twice.
fn on_one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| {
        if said.is_empty() {
            cause
        } else if said.contains(&cause) {
            said
        } else {
            format!("{said}: {cause}")
        }
    })
}

fn run(command: Command, global: &[String], console: &console::Console) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => commands::demo::run(&args, console),
        Command::Tasks(command) => commands::tasks::run(command, console),
        Command::Data(command) => commands::data::run(command, console),
        Command::Model(command) => commands::model::run(command, console),
        Command::Train(args) => commands::train::run(&args, console),
        Command::Launch(args) => commands::launch::run(&args, global),
        Command::Merge(args) => commands::merge::run(&args, console),
        Command::Eval(command) => commands::eval::run(command, console),
        Command::Report(args) => commands::report::run(&args, console),
        Command::Serve(args) => commands::serve::run(&args, console),
        Command::Bench(args) => commands::bench::run(&args, console),
    }
}
