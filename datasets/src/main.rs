//! `theriac-datasets`: lists, fetches and verifies data sets, and makes the embedded samples.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a command-line program

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use theriac_datasets::{Description, Event, Options, Sample, Split, embedded};

/// Data sets of theriac: where they are, how to get them, whether they are whole.
#[derive(Parser)]
#[command(name = "theriac-datasets", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    places: Places,
}

#[derive(Args)]
struct Places {
    /// Folder with one folder per data set; the files must be there [env: THERIAC_DATA]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Folder for downloads [default: datasets/store of the workspace]
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Never open the network
    #[arg(long, global = true)]
    offline: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Show each data set, its licence and where it is on this machine
    List,
    /// Find data sets, or download them into the store
    Fetch {
        /// Names of data sets
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// All of them
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// Compare the SHA-256 of every local file (of the named data sets, or of all)
    Verify {
        /// Names of data sets
        names: Vec<String>,
    },
    /// Make the embedded samples again from the full data, which must be local
    Sample {
        /// Folder to write to
        #[arg(long, value_name = "DIR", default_value = "datasets/samples")]
        out: PathBuf,
        /// Write nothing; compare the samples built into this program with the full data
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(Cli { command, places }: Cli) -> anyhow::Result<()> {
    let env = Options::from_env();
    let options = Options {
        data_dir: places.data_dir.or(env.data_dir),
        store: places.store.or(env.store),
        offline: places.offline,
        endpoint: env.endpoint,
    };
    match command {
        Command::List => list(&options),
        Command::Fetch { names, .. } => fetch(&chosen(&names)?, &options),
        Command::Verify { names } => verify(&chosen(&names)?, &options, !names.is_empty()),
        Command::Sample { out, check: false } => sample(&out, &options),
        Command::Sample { check: true, .. } => check_samples(&options),
    }
}

/// The named descriptions, or all if none is named.
fn chosen(names: &[String]) -> anyhow::Result<Vec<Description>> {
    if names.is_empty() {
        return Ok(Description::list()?);
    }
    Ok(names
        .iter()
        .map(|name| Description::load(name))
        .collect::<Result<_, _>>()?)
}

fn list(options: &Options) -> anyhow::Result<()> {
    for about in Description::list()? {
        let [train, test] = Split::ALL.map(|split| about.count(split));
        let [c, h, w] = about.shape;
        println!("{}: {}", about.name, about.title);
        println!("  images   {train} train + {test} test of {c} x {h} x {w}");
        println!("  licence  {}", about.licence);
        println!("  home     {}", about.homepage);
        if let Some(size) = about.sample {
            println!(
                "  sample   {} train + {} test, embedded",
                size.train, size.test
            );
        }
        let place = match about.locate(options) {
            Ok(Some(files)) => match files.files.first().and_then(|file| file.path.parent()) {
                Some(folder) => folder.display().to_string(),
                None => "no files".to_owned(),
            },
            Ok(None) => format!("not here; `cargo xtask datasets fetch {}`", about.name),
            Err(problem) => problem.to_string(),
        };
        println!("  place    {place}");
    }
    Ok(())
}

fn fetch(chosen: &[Description], options: &Options) -> anyhow::Result<()> {
    for about in chosen {
        let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
            "  {bytes}/{total_bytes} [{wide_bar}] {bytes_per_sec} {eta}",
        )?);
        let files = about.resolve(options, &mut |event| match event {
            Event::Begin { file, bytes } => {
                bar.reset();
                bar.set_length(bytes);
                bar.suspend(|| println!("{}: downloading {file} ({bytes} bytes)", about.name));
            }
            Event::Advance { bytes } => bar.inc(bytes),
            Event::End => bar.finish_and_clear(),
            Event::Convert { split } => println!("{}: unpacking the {split} split", about.name),
            Event::Stored { path } => println!("{}: stored {}", about.name, path.display()),
        });
        bar.finish_and_clear();
        for file in files?.files {
            println!("{}: {}", about.name, file.path.display());
        }
    }
    Ok(())
}

/// Checks every file and reports all that are wrong, not only the first. A data set that is not
/// here is a failure only if it was asked for by name.
fn verify(chosen: &[Description], options: &Options, named: bool) -> anyhow::Result<()> {
    let (mut whole, mut wrong) = (0, 0);
    for about in chosen {
        // Options::data_dir need not have all data sets when all are asked for.
        let absent = options
            .data_dir
            .as_ref()
            .is_some_and(|dir| !dir.join(&about.name).is_dir());
        let files = match about.locate(options) {
            _ if absent && !named => None,
            Ok(files) => files,
            Err(problem) => {
                eprintln!("{problem}");
                wrong += 1;
                continue;
            }
        };
        let Some(files) = files else {
            println!("{}: not here", about.name);
            wrong += usize::from(named);
            continue;
        };
        for file in &files.files {
            match file.verify() {
                Ok(()) => {
                    println!("{}: {} is whole", about.name, file.path.display());
                    whole += 1;
                }
                Err(problem) => {
                    eprintln!("{problem}");
                    wrong += 1;
                }
            }
        }
    }
    ensure!(wrong == 0, "{wrong} of {} checks failed", whole + wrong);
    Ok(())
}

/// Descriptions with a sample, and the sample taken anew from the full data.
fn samples(options: &Options) -> anyhow::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for about in Description::list()?
        .iter()
        .filter(|about| about.sample.is_some())
    {
        let Some(files) = about.locate(options)? else {
            bail!(
                "a sample is taken from the full `{}`: {}",
                about.name,
                about.remedy()
            );
        };
        samples.push(Sample::take(about, &files)?);
    }
    Ok(samples)
}

fn sample(out: &Path, options: &Options) -> anyhow::Result<()> {
    for sample in samples(options)? {
        for path in sample.save(out)? {
            println!("{}", path.display());
        }
    }
    Ok(())
}

fn check_samples(options: &Options) -> anyhow::Result<()> {
    for sample in samples(options)? {
        let name = &sample.name;
        ensure!(
            embedded(name)? == sample,
            "{name}: the embedded sample is not of this data"
        );
        println!("{name}: the embedded sample is the stated part of the full data");
    }
    Ok(())
}
