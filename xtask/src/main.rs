//! Development commands, run as `cargo xtask <command>`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod new;
mod reproduce;
mod root;
mod tidy;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use theriac_tables::{Scale, Store, report};

use crate::root::Root;

/// Development commands of theriac.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Options {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Computes the papers' tables and figures and reports them beside the printed numbers.
    Reproduce(Box<reproduce::Options>),
    /// Times work on networks, beside PyTorch if there is one.
    Bench(bench::Options),
    /// Rewrites docs/results from the stored measurements.
    Report {
        /// smoke, desk or paper.
        #[arg(long, default_value_t = Scale::Desk)]
        scale: Scale,
    },
    /// Lists, fetches and verifies data sets.
    Datasets {
        /// Passed on to theriac-datasets.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Checks the rules of the workspace that neither rustc nor clippy knows.
    Tidy,
    /// Writes the skeleton of a defence or an attack.
    New {
        /// What to write.
        kind: new::Kind,
        /// Its name in lower case, words separated by hyphens.
        name: String,
    },
}

fn main() -> ExitCode {
    let root = Root::of_this_workspace();
    let done = match Options::parse().command {
        Task::Reproduce(options) => reproduce::run(&root, &options),
        Task::Bench(options) => bench::run(&root, &options),
        Task::Report { scale } => write_results(&root, scale),
        Task::Datasets { arguments } => datasets(&root, &arguments),
        Task::Tidy => tidy::run(&root),
        Task::New { kind, name } => new::run(&root, kind, &name),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

/// Writes `docs/results/<paper>.md` and its drawings; a page's hand-written notes are appended.
fn write_results(root: &Root, scale: Scale) -> Result<ExitCode> {
    let dir = root.path("docs/results");
    let store = Store::open(root.store())?;
    let tables = root.tables()?;
    for paper in root::papers(&tables) {
        let mut page = report::page(paper, &tables, &store, scale)?;
        let notes = dir.join(format!("{paper}.notes.md"));
        if notes.exists() {
            let text = std::fs::read_to_string(&notes)
                .with_context(|| format!("cannot read {}", notes.display()))?;
            page.markdown += "\n";
            page.markdown += &text;
        }
        println!("{}", page.write(&dir)?.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn datasets(root: &Root, arguments: &[String]) -> Result<ExitCode> {
    let mut cargo = root::cargo();
    cargo
        .current_dir(root.path(""))
        .args(["run", "--quiet", "-p", "theriac-datasets"]);
    // Only fetching needs the HTTP stack, which is slow to build.
    if arguments.iter().any(|word| word == "fetch") {
        cargo.args(["--features", "hub"]);
    }
    let status = cargo
        .arg("--")
        .args(arguments)
        .status()
        .context("cannot start cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
