//! The command line of theriac; see its README.

#![allow(clippy::print_stdout, clippy::print_stderr)] // a program

mod attack;
mod convert;
mod evaluate;
mod gate;
mod inspect;
mod page;
mod subject;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

// Attacks allocate and free the same sizes over and over.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Adversarial robustness of neural networks: a verdict, not a number.
#[derive(Parser)]
#[command(name = "theriac", version)]
struct Options {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// What every command takes.
#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// Results as JSON on the standard output.
    #[arg(long, global = true)]
    json: bool,
    /// Seed of all random numbers.
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Threads; results do not depend on it. By default one for each core.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// cpu, cuda:N or metal:N.
    #[arg(long, global = true, default_value = "cpu")]
    device: String,
    /// What to log: error, warn, info, debug, or as in RUST_LOG.
    #[arg(long, global = true, default_value = "warn", value_name = "LEVEL")]
    log: String,
}

#[derive(Subcommand)]
enum Command {
    /// Measures robust accuracy, checks it, and writes a report.
    Evaluate(Box<evaluate::Options>),
    /// Joins the shards of one evaluation and writes their report.
    Merge(evaluate::MergeOptions),
    /// Attacks images and keeps the result.
    Attack(Box<attack::Options>),
    /// Says what is in a weights file.
    Inspect(inspect::Options),
    /// Turns a state dict of PyTorch (as safetensors) into a weights file of ours.
    Convert(convert::Options),
    /// Passes or fails an evaluation, for continuous integration.
    Gate(gate::Options),
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Ended by Ctrl-C, as shells count it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let Options { command, common } = Options::parse();
    match run(command, &common) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command, common: &Common) -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_new(&common.log)
        .map_err(|error| anyhow::anyhow!("--log {}: {error}", common.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    if let Some(threads) = common.threads {
        anyhow::ensure!(threads > 0, "--threads 0: give at least 1");
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()?;
    }
    match command {
        Command::Evaluate(options) => evaluate::run(&options, common),
        Command::Merge(options) => evaluate::merge(&options, common),
        Command::Attack(options) => attack::run(&options, common),
        Command::Inspect(options) => inspect::run(&options, common),
        Command::Convert(options) => convert::run(&options, common),
        Command::Gate(options) => gate::run(&options, common),
        Command::Completions { shell } => {
            let mut command = Options::command();
            clap_complete::generate(shell, &mut command, "theriac", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}
