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

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Time,
    Memory,
    /// From starting the process to its result.
    Process,
}

/// Times work on networks, beside PyTorch if there is one.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A Python with PyTorch (and torchattacks for its row).
    #[arg(long, value_name = "PYTHON")]
    against_pytorch: Option<PathBuf>,
    /// Only workloads whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Rounds after the first, which is not counted.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Threads of each side.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

pub(crate) fn run(root: &Root, options: &Options) -> Result<ExitCode> {
    let program = build(root)?;
    let mut rows = vec![
        [
            "workload",
            "ours",
            "PyTorch",
            "ours / PyTorch",
            "channels last",
            "torchattacks",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (name, what, title) in WORKLOADS {
        if options
            .only
            .as_ref()
            .is_some_and(|only| !name.contains(only.as_str()))
        {
            continue;
        }
        eprintln!("{title} ..");
        rows.push(row(root, options, &program, name, what, title)?);
    }
    println!("{}", aligned(&rows));
    Ok(ExitCode::SUCCESS)
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
    let ours = || {
        let mut command = Command::new(program);
        command.args([name, &threads]).arg(&file);
        command
    };
    let theirs = |variant: &str| {
        options.against_pytorch.as_ref().map(|python| {
            let mut command = Command::new(python);
            command
                .arg(root.path("tests/benches/pace.py"))
                .args([name, &threads]);
            command.arg(&file).args(variant.split_whitespace());
            command
        })
    };
    let mut cells = vec![title.to_owned()];
    let mut variants = vec!["", "channels_last"];
    if name == "lenet-pgd" {
        variants.push("torchattacks");
    }
    if what == What::Process {
        variants.truncate(1);
    }
    let mut shown = false;
    for variant in variants {
        let Some(theirs) = theirs(variant) else {
            let (ours, _) = alternate(&ours, None, what, options.rounds)?;
            cells.push(text(median(ours), what));
            return Ok(cells);
        };
        let theirs = || {
            let mut command = Command::new(theirs.get_program());
            command.args(theirs.get_args());
            command
        };
        let (ours, theirs) = alternate(&ours, Some(&theirs), what, options.rounds)?;
        let ratios = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
        if !shown {
            cells.push(text(median(ours), what));
            cells.push(text(median(theirs), what));
            shown = true;
        }
        cells.push(format!("{:.2}", median(ratios)));
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
    fn start(mut command: Command) -> Result<Self> {
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

/// Rounds of both sides in turn: what each measured.
fn alternate(
    ours: &dyn Fn() -> Command,
    theirs: Option<&dyn Fn() -> Command>,
    what: What,
    rounds: usize,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut values = (Vec::new(), Vec::new());
    if what == What::Process {
        for _ in 0..rounds {
            for (command, values) in [(Some(ours), &mut values.0), (theirs, &mut values.1)] {
                let Some(command) = command else { continue };
                let started = Instant::now();
                let mut side = Side::start(command())?;
                side.round()?;
                values.push(started.elapsed().as_secs_f64());
                side.end()?;
            }
        }
        return Ok(values);
    }
    // Ours first: it writes the weights that the other side reads.
    let mut sides = vec![Side::start(ours())?];
    if let Some(theirs) = theirs {
        sides.push(Side::start(theirs())?);
    }
    for round in 0..=rounds {
        let told = sides
            .iter_mut()
            .map(Side::round)
            .collect::<Result<Vec<_>>>()?;
        if let [ours, theirs] = &told[..] {
            // Sign steps and training amplify rounding; the same work still ends close by.
            let apart = (ours.loss - theirs.loss).abs() / theirs.loss.abs().max(1e-3);
            if apart > 0.02 {
                bail!(
                    "losses disagree in round {round}: {} and {}",
                    ours.loss,
                    theirs.loss
                );
            }
        }
        if round == 0 {
            continue;
        }
        let value = |told: &Told| match what {
            What::Memory => told.peak,
            _ => told.seconds,
        };
        values.0.push(value(&told[0]));
        values.1.extend(told.get(1).map(value));
    }
    sides.into_iter().try_for_each(Side::end)?;
    Ok(values)
}

fn build(root: &Root) -> Result<PathBuf> {
    let status = Command::new(root::cargo())
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
