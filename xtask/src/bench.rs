//! `cargo xtask bench`: the same work here and in PyTorch, round by round.
//!
//! Both sides are started once for each workload and then do one round after the other in turn, so
//! that whatever else the machine does meets both. What is reported is the median of the ratios of
//! a round, not the ratio of two medians taken at different times.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use theriac_tables::aligned;

use crate::root::{self, Root};

/// The work of `tests/examples/pace.rs`, with what is compared.
const WORKLOADS: [(&str, What, &str); 9] = [
    (
        "lenet-train",
        What::Time,
        "LeNet (32, 64, fc 1024), 5 training steps, batch 128",
    ),
    ("lenet-pgd", What::Time, "LeNet, PGD-40, 1,000 images"),
    (
        "resnet20-adversarial",
        What::Time,
        "ResNet-20, PGD-7 adversarial training step, batch 128",
    ),
    (
        "resnet18-eval-128",
        What::Time,
        "ResNet-18, evaluation, batch 128",
    ),
    (
        "resnet18-eval-32",
        What::Time,
        "ResNet-18, evaluation, batch 32",
    ),
    (
        "resnet20-adversarial",
        What::Memory,
        "ResNet-20 adversarial training, peak memory",
    ),
    (
        "resnet20-attack",
        What::Memory,
        "ResNet-20 PGD-7, peak memory",
    ),
    (
        "atda-bim-epoch",
        What::Time,
        "ATDA CNN, BIM(10)-Adv, 10,000 images",
    ),
    (
        "first-result",
        What::Process,
        "whole process, PGD-40 on 100 images",
    ),
];

/// Seconds of a long round.
const LONG: f64 = 10.0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Time,
    Memory,
    /// From starting the process to its result.
    Process,
}

/// Times the kernels, and work on networks, beside PyTorch if there is one.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A Python with PyTorch and torchattacks.
    #[arg(long, value_name = "PYTHON")]
    against_pytorch: Option<PathBuf>,
    /// Only work on networks whose title contains this, and no kernels.
    #[arg(long)]
    only: Option<String>,
    /// Rounds after the first, which is not counted if it is short.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// After this many seconds of a workload, no more than three rounds.
    #[arg(long, default_value_t = 120.0)]
    seconds: f64,
    /// Threads of each side.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

pub(crate) fn run(root: &Root, options: &Options) -> Result<ExitCode> {
    let program = build(root)?;
    if options.only.is_none() {
        kernels(root, options)?;
    }
    let heads = [
        "workload",
        "rounds",
        "ours",
        "PyTorch",
        "ours / PyTorch",
        "ours / channels last",
        "ours / torchattacks",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for (name, what, title) in WORKLOADS {
        let only = options.only.as_deref().unwrap_or_default();
        if title.contains(only) {
            eprintln!("{title}");
            rows.push(row(root, options, &program, name, what, title)?);
        }
    }
    println!("{}", aligned(&rows));
    Ok(ExitCode::SUCCESS)
}

fn kernels(root: &Root, options: &Options) -> Result<()> {
    let status = root::cargo()
        .current_dir(root.path(""))
        .args(["bench", "--workspace", "--bench", "kernels", "--"])
        .args(["--threads", &options.threads.to_string()])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the benchmark of the kernels failed");
    }
    Ok(())
}

fn row(
    root: &Root,
    options: &Options,
    program: &Path,
    name: &str,
    what: What,
    title: &str,
) -> Result<Vec<String>> {
    let file = root.path("target").join(format!("pace-{name}.safetensors"));
    let threads = options.threads.to_string();
    let mut ours = Command::new(program);
    ours.args([name, &threads]).arg(&file);
    let mut sides = vec![ours];
    let mut variants = vec![None, Some("channels_last")];
    if name == "lenet-pgd" {
        variants.push(Some("torchattacks"));
    }
    for variant in variants {
        if let Some(python) = &options.against_pytorch {
            let mut theirs = Command::new(python);
            theirs
                .arg(root.path("tests/benches/pace.py"))
                .args([name, &threads])
                .arg(&file)
                .args(variant);
            sides.push(theirs);
        }
    }
    let measured = match what {
        What::Process => processes(&mut sides, options)?,
        _ => alternate(&mut sides, what, options)?,
    };
    let rounds = measured.first().map_or(0, Vec::len);
    let mut cells = vec![title.to_owned(), rounds.to_string()];
    for values in measured.iter().take(2) {
        cells.push(text(median(values.clone()), what));
    }
    for theirs in measured.iter().skip(1) {
        let ratios = measured[0].iter().zip(theirs).map(|(a, b)| a / b);
        cells.push(format!("{:.2}", median(ratios.collect())));
    }
    Ok(cells)
}

fn text(value: f64, what: What) -> String {
    match what {
        What::Memory => format!("{value:.0} MiB"),
        _ => format!("{:.0} ms", 1e3 * value),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// One side at work.
struct Side {
    child: Child,
    commands: ChildStdin,
    lines: BufReader<ChildStdout>,
}

/// What a round told.
struct Told {
    seconds: f64,
    loss: f64,
    peak: f64,
}

impl Side {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let (Some(commands), Some(lines)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{command:?} has no standard input or output");
        };
        let mut side = Self {
            child,
            commands,
            lines: BufReader::new(lines),
        };
        let line = side.line()?;
        if line.trim() != "ready" {
            bail!("{command:?} said {line:?} instead of \"ready\"");
        }
        Ok(side)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("a side ended early; what it said stands above");
        }
        Ok(line)
    }

    fn round(&mut self) -> Result<Told> {
        self.commands.write_all(b"go\n")?;
        self.commands.flush()?;
        let line = self.line()?;
        let told: serde_json::Value =
            serde_json::from_str(&line).with_context(|| format!("not a report: {line:?}"))?;
        let number = |key: &str| {
            let value = told.get(key).and_then(serde_json::Value::as_f64);
            value.with_context(|| format!("no number {key:?} in {line:?}"))
        };
        Ok(Told {
            seconds: number("seconds")?,
            loss: number("loss")?,
            peak: number("peak")?,
        })
    }

    fn end(mut self) -> Result<()> {
        drop(self.commands);
        self.child.wait()?;
        Ok(())
    }
}

/// Whether another round is due after `done` of them.
fn more(done: usize, started: Instant, options: &Options) -> bool {
    let least = if started.elapsed().as_secs_f64() < options.seconds {
        options.rounds
    } else {
        options.rounds.min(3)
    };
    done < least
}

/// Seconds from the start of each process to its result.
fn processes(commands: &mut [Command], options: &Options) -> Result<Vec<Vec<f64>>> {
    let mut values = vec![Vec::new(); commands.len()];
    let started = Instant::now();
    while more(values[0].len(), started, options) {
        for (command, values) in commands.iter_mut().zip(&mut values) {
            let started = Instant::now();
            let mut side = Side::start(command)?;
            side.round()?;
            values.push(started.elapsed().as_secs_f64());
            side.end()?;
        }
    }
    Ok(values)
}

/// Rounds of all sides in turn: what each measured.
fn alternate(commands: &mut [Command], what: What, options: &Options) -> Result<Vec<Vec<f64>>> {
    // Ours first: it writes the weights that the others read.
    let mut sides = commands
        .iter_mut()
        .map(Side::start)
        .collect::<Result<Vec<_>>>()?;
    let mut values = vec![Vec::new(); sides.len()];
    let mut warm = false;
    let started = Instant::now();
    while more(values[0].len(), started, options) {
        let told = sides
            .iter_mut()
            .map(Side::round)
            .collect::<Result<Vec<_>>>()?;
        for theirs in &told {
            // Sign steps and training amplify rounding; the same work still ends close by.
            let apart = (told[0].loss - theirs.loss).abs() / theirs.loss.abs().max(1e-3);
            if apart.is_nan() || apart > 0.02 {
                bail!("losses disagree: {} and {}", told[0].loss, theirs.loss);
            }
        }
        let measured = told.iter().map(|told| match what {
            What::Memory => told.peak,
            _ => told.seconds,
        });
        let measured: Vec<f64> = measured.collect();
        eprintln!("  {measured:.3?}");
        // The first round is not counted, unless rounds are so long that warming up is nothing.
        if warm || told[0].seconds > LONG {
            for (values, measured) in values.iter_mut().zip(measured) {
                values.push(measured);
            }
        }
        warm = true;
    }
    sides.into_iter().try_for_each(Side::end)?;
    Ok(values)
}

fn build(root: &Root) -> Result<PathBuf> {
    let status = root::cargo()
        .current_dir(root.path(""))
        .args(["build", "--release", "--workspace", "--example", "pace"])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the example `pace` does not build");
    }
    Ok(root.path("target/release/examples/pace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }
}
