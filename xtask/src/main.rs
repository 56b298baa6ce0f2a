//! Development commands, run as `cargo xtask <command>`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod new;
mod page;
mod reproduce;
mod root;
mod tidy;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use theriac_tables::{Results, Scale, Store, report};

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
    /// Rewrites docs/results from the stored measurements at paper and desk scale.
    Report,
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
        Task::Report => write_results(&root),
        Task::Datasets { arguments } => datasets(&root, &arguments),
        Task::Tidy => tidy::run(&root),
        Task::New { kind, name } => new::run(&root, kind, &name),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

/// Writes `docs/results/<paper>.md` and its drawings: hand-written notes, then what was measured at
/// paper and at desk scale.
fn write_results(root: &Root) -> Result<ExitCode> {
    let dir = root.path("docs/results");
    let store = Store::open(root.store())?;
    let tables = root.tables()?;
    for paper in root::papers(&tables) {
        let notes = dir.join(format!("{paper}.notes.md"));
        let mut text = String::new();
        if notes.exists() {
            text = std::fs::read_to_string(&notes)
                .with_context(|| format!("cannot read {}", notes.display()))?;
            text.push('\n');
        }
        let mut page = report::page(paper, &[], &store, Scale::Desk)?;
        for scale in [Scale::Paper, Scale::Desk] {
            let mut measured = Vec::new();
            for table in tables.iter().filter(|table| table.paper == paper) {
                if Results::load(&store, table, scale)?.counts() != (0, 0) {
                    measured.push(table.clone());
                }
            }
            if measured.is_empty() {
                continue;
            }
            let part = report::page(paper, &measured, &store, scale)?;
            text = format!("{}\n\n{}", text.trim_end(), part.markdown);
            page.drawings.extend(part.drawings);
        }
        page.markdown = text.trim_start().to_owned();
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
