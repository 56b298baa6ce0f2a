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

/// Attacks of the same program, the packages that have them, and titles.
const ATTACKS: [(&str, &[&str], &str); 16] = [
    (
        "golden-autoattack",
        &["pyautoattack"],
        "attack: AutoAttack standard, LeNet, 500 images",
    ),
    (
        "golden-apgd-ce",
        &["pyautoattack", "torchattacks"],
        "attack: APGD-CE, 100 steps, LeNet, 256 images",
    ),
    (
        "golden-apgd-dlr",
        &["pyautoattack"],
        "attack: APGD-DLR, 100 steps, LeNet, 256 images",
    ),
    (
        "golden-fab",
        &["pyautoattack"],
        "attack: FAB Linf, 100 steps, LeNet, 256 images",
    ),
    (
        "golden-square",
        &["pyautoattack", "torchattacks"],
        "attack: Square, 1,000 queries, LeNet, 256 images",
    ),
    (
        "golden-deepfool",
        &["torchattacks", "foolbox"],
        "attack: DeepFool L2, 50 steps, LeNet, 256 images",
    ),
    (
        "golden-cw",
        &["foolbox"],
        "attack: C&W L2, 5 x 100 steps, LeNet, 256 images",
    ),
    (
        "golden-ddn",
        &["foolbox"],
        "attack: DDN, 100 steps, LeNet, 256 images",
    ),
    (
        "golden-fmn",
        &["foolbox"],
        "attack: FMN Linf, 100 steps, LeNet, 256 images",
    ),
    (
        "golden-fgsm",
        &["torchattacks"],
        "attack: FGSM, 20 times, LeNet, 256 images",
    ),
    (
        "golden-pgd",
        &["torchattacks"],
        "attack: PGD-40, LeNet, 256 images",
    ),
    (
        "golden-mifgsm",
        &["torchattacks"],
        "attack: MI-FGSM, 10 steps, LeNet, 256 images",
    ),
    (
        "golden-hopskipjump",
        &["foolbox"],
        "attack: HopSkipJump L2, 10 steps, LeNet, 16 images",
    ),
    (
        "resnet20-deepfool",
        &["torchattacks", "foolbox"],
        "attack: DeepFool L2, 10 steps, ResNet-20, 256 images",
    ),
    (
        "resnet20-cw",
        &["foolbox"],
        "attack: C&W L2, 2 x 20 steps, ResNet-20, 256 images",
    ),
    (
        "resnet20-apgd-ce",
        &["pyautoattack", "torchattacks"],
        "attack: APGD-CE, 20 steps to the end, ResNet-20, 256 images",
    ),
];

/// How much more accuracy, and how many times the distance, ours may leave.
const WEAKER: (f64, f64) = (0.01, 1.05);

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
    /// A Python with PyTorch, torchattacks, foolbox and pyautoattack.
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
    let only = options.only.as_deref().unwrap_or_default();
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
        if title.contains(only) {
            eprintln!("{title}");
            rows.push(row(root, options, &program, name, what, title)?);
        }
    }
    let heads = [
        "workload",
        "rounds",
        "against",
        "ours",
        "theirs",
        "ours / theirs",
        "accuracy",
        "theirs",
        "distance",
        "theirs",
    ];
    let mut attacks = vec![heads.map(str::to_owned).to_vec()];
    for (name, packages, title) in ATTACKS {
        if title.contains(only) {
            eprintln!("{title}");
            attacks.extend(attack_rows(root, options, &program, name, packages, title)?);
        }
    }
    for table in [&rows, &attacks] {
        if table.len() > 1 {
            println!("{}", aligned(table));
        }
    }
    if attacks.iter().flatten().any(|cell| cell == "weaker") {
        return Ok(ExitCode::FAILURE);
    }
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
    let mut variants = vec![None, Some("channels_last")];
    if name == "lenet-pgd" {
        variants.push(Some("torchattacks"));
    }
    let mut sides = sides(root, options, program, name, &variants);
    let measured = match what {
        What::Process => processes(&mut sides, options)?,
        _ => {
            let number = |told: &Told| match what {
                What::Memory => told.peak,
                _ => told.seconds,
            };
            let told = alternate(&mut sides, number, options)?;
            told.iter()
                .map(|told| told.iter().map(number).collect())
                .collect()
        }
    };
    let rounds = measured.first().map_or(0, Vec::len);
    let mut cells = vec![title.to_owned(), rounds.to_string()];
    for values in measured.iter().take(2) {
        cells.push(text(median(values.clone()), what));
    }
    for theirs in measured.iter().skip(1) {
        cells.push(match theirs.is_empty() {
            true => MISSING.to_owned(),
            false => ratio(&measured[0], theirs),
        });
    }
    Ok(cells)
}

/// The commands of ours and of the variants of theirs.
fn sides(
    root: &Root,
    options: &Options,
    program: &Path,
    name: &str,
    variants: &[Option<&str>],
) -> Vec<Command> {
    let file = root.path("target").join(format!("pace-{name}.safetensors"));
    let threads = options.threads.to_string();
    let mut ours = Command::new(program);
    ours.args([name, &threads]).arg(&file);
    // candle has threads of its own.
    ours.env("CANDLE_NUM_THREADS", &threads);
    let mut sides = vec![ours];
    if let Some(python) = &options.against_pytorch {
        sides.extend(variants.iter().map(|variant| {
            let mut theirs = Command::new(python);
            theirs
                .arg(root.path("tests/benches/pace.py"))
                .args([name, &threads])
                .arg(&file)
                .args(*variant);
            theirs
        }));
    }
    sides
}

/// A row for each package, with what both sides reached.
fn attack_rows(
    root: &Root,
    options: &Options,
    program: &Path,
    name: &str,
    packages: &[&str],
    title: &str,
) -> Result<Vec<Vec<String>>> {
    let variants: Vec<Option<&str>> = packages.iter().copied().map(Some).collect();
    let mut sides = sides(root, options, program, name, &variants);
    let told = alternate(&mut sides, |told| told.seconds, options)?;
    let others = packages.iter().zip(told.iter().skip(1));
    let mut rows: Vec<Vec<String>> = others
        .map(|(package, theirs)| attack_row(title, package, &told[0], theirs))
        .collect();
    if rows.is_empty() {
        rows.push(attack_row(title, "", &told[0], &[]));
    }
    Ok(rows)
}

fn attack_row(title: &str, package: &str, ours: &[Told], theirs: &[Told]) -> Vec<String> {
    let of = |side: &[Told], number: fn(&Told) -> f64| side.iter().map(number).collect();
    let seconds = |side: &[Told]| -> Vec<f64> { of(side, |told| told.seconds) };
    let accuracy = |side: &[Told]| median(of(side, |told| told.accuracy.unwrap_or(f64::NAN)));
    let distance = |side: &[Told]| median(of(side, |told| told.distance.unwrap_or(f64::NAN)));
    let missing = if package.is_empty() { "" } else { MISSING };
    let other = |cell: String| match theirs.is_empty() {
        true => missing.to_owned(),
        false => cell,
    };
    let (more, farther) = WEAKER;
    let weaker =
        accuracy(ours) > accuracy(theirs) + more || distance(ours) > distance(theirs) * farther;
    let pace = match weaker {
        true => "weaker".to_owned(),
        false => ratio(&seconds(ours), &seconds(theirs)),
    };
    vec![
        title.to_owned(),
        ours.len().to_string(),
        package.to_owned(),
        text(median(seconds(ours)), What::Time),
        other(text(median(seconds(theirs)), What::Time)),
        other(pace),
        format!("{:.3}", accuracy(ours)),
        other(format!("{:.3}", accuracy(theirs))),
        far(distance(ours)),
        other(far(distance(theirs))),
    ]
}

/// What stands in the cells of a package that is not there; the other side says the same.
const MISSING: &str = "not installed";

/// A median distance, if the attack has one; failures are 1e9 away.
fn far(distance: f64) -> String {
    match distance {
        none if none.is_nan() => String::new(),
        failed if failed >= 1e9 => "most failed".to_owned(),
        distance => format!("{distance:.4}"),
    }
}

fn ratio(ours: &[f64], theirs: &[f64]) -> String {
    let ratios = ours.iter().zip(theirs).map(|(a, b)| a / b);
    format!("{:.2}", median(ratios.collect()))
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
    peak: f64,
    loss: Option<f64>,
    /// Share of images that resist an attack.
    accuracy: Option<f64>,
    /// How far an attack without a ball had to go.
    distance: Option<f64>,
}

impl Side {
    /// `None` if a package is not installed there.
    fn start(command: &mut Command) -> Result<Option<Self>> {
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
        match line.trim() {
            "ready" => Ok(Some(side)),
            MISSING => side.end().map(|()| None),
            _ => bail!("{command:?} said {line:?} instead of \"ready\""),
        }
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
        let maybe = |key: &str| told.get(key).and_then(serde_json::Value::as_f64);
        let number =
            |key: &str| maybe(key).with_context(|| format!("no number {key:?} in {line:?}"));
        let (loss, accuracy) = (maybe("loss"), maybe("accuracy"));
        if loss.is_none() && accuracy.is_none() {
            bail!("no result in {line:?}");
        }
        Ok(Told {
            seconds: number("seconds")?,
            peak: number("peak")?,
            loss,
            accuracy,
            distance: maybe("distance"),
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
            let Some(mut side) = Side::start(command)? else {
                continue;
            };
            side.round()?;
            values.push(started.elapsed().as_secs_f64());
            side.end()?;
        }
    }
    Ok(values)
}

/// Rounds of all sides in turn: what each told, nothing from a side that is not there.
fn alternate(
    commands: &mut [Command],
    shown: impl Fn(&Told) -> f64,
    options: &Options,
) -> Result<Vec<Vec<Told>>> {
    // Ours first: it writes the weights that the others read.
    let mut sides = commands
        .iter_mut()
        .map(Side::start)
        .collect::<Result<Vec<_>>>()?;
    let mut values: Vec<Vec<Told>> = sides.iter().map(|_| Vec::new()).collect();
    let mut warm = false;
    let started = Instant::now();
    while more(values[0].len(), started, options) {
        let told = sides
            .iter_mut()
            .map(|side| side.as_mut().map(Side::round).transpose())
            .collect::<Result<Vec<_>>>()?;
        let Some(Some(ours)) = told.first() else {
            bail!("our side is not there");
        };
        for theirs in told.iter().flatten() {
            agree(ours, theirs)?;
        }
        let measured: Vec<f64> = told.iter().flatten().map(&shown).collect();
        eprintln!("  {measured:.3?}");
        // The first round is not counted, unless rounds are so long that warming up is nothing.
        if warm || ours.seconds > LONG {
            for (values, told) in values.iter_mut().zip(told) {
                values.extend(told);
            }
        }
        warm = true;
    }
    sides.into_iter().flatten().try_for_each(Side::end)?;
    Ok(values)
}

/// Whether both sides did the same work, as far as a loss tells.
fn agree(ours: &Told, theirs: &Told) -> Result<()> {
    match (ours.loss, theirs.loss) {
        (Some(ours), Some(theirs)) => {
            // Sign steps and training amplify rounding; the same work still ends close by.
            let apart = (ours - theirs).abs() / theirs.abs().max(1e-3);
            if apart.is_nan() || apart > 0.02 {
                bail!("losses disagree: {ours} and {theirs}");
            }
            Ok(())
        }
        (None, None) => Ok(()),
        _ => bail!("one side reports a loss, the other does not"),
    }
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
