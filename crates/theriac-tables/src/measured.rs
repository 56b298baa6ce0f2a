//! What an experiment hands back for a cell, and what the store keeps of it.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::CellSpec;

/// The name in [`Measured::extra`] of the sample deviation over repeated evaluations of one
/// randomised model; the value is then their mean.
pub const DRAWS: &str = "deviation over draws";

/// The value of a cell, with what it needs to be believed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The value, in the column's unit (percent: 0 to 100).
    pub value: f64,
    /// How many images (or batches, or epochs) it is over.
    pub n: usize,
    /// The 95 % interval, in the column's unit.
    #[serde(default)]
    pub interval: Option<(f64, f64)>,
    /// Wall-clock seconds that the value cost. The runner fills it in where it is left at 0.
    #[serde(default)]
    pub seconds: f64,
    /// What the attacker may do and know: "L-infinity, epsilon 0.3, white box, untargeted".
    #[serde(default)]
    pub threat_model: Option<String>,
    /// The attack with its parameters: "BIM, 10 steps of 0.03".
    #[serde(default)]
    pub attack: Option<String>,
    /// Checks of the attack and of the defence's gradients.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// The sum of the checks: "reliable", "questionable" or "invalid".
    #[serde(default)]
    pub verdict: Option<String>,
    /// Further numbers, by name.
    #[serde(default)]
    pub extra: BTreeMap<String, f64>,
}

impl Measured {
    /// What keeps the value out of a report: a number that is none.
    pub(crate) fn problem(&self) -> Option<String> {
        let (low, high) = self.interval.unwrap_or_default();
        let named = [("value", self.value), ("seconds", self.seconds)];
        let interval = [("interval", low), ("interval", high)];
        let extra = self
            .extra
            .iter()
            .map(|(name, value)| (name.as_str(), *value));
        named
            .into_iter()
            .chain(interval)
            .chain(extra)
            .find(|(_, value)| !value.is_finite())
            .map(|(name, value)| format!("{name} is {value}, not a finite number"))
    }
}

/// One check of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// How it came out.
    pub outcome: CheckOutcome,
    /// The numbers behind it, in words.
    pub detail: String,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// As it should be.
    Passed,
    /// The value should not be believed without a further look.
    Failed,
    /// It has no meaning for this cell.
    NotApplicable,
}

/// A cell's measurement as the store keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Which cell, with its settings.
    pub spec: CellSpec,
    /// The value, or why there is none.
    pub outcome: Outcome,
    /// The commit of the code, with "-dirty" if it was changed since.
    pub commit: Option<String>,
    /// The machine that computed it.
    pub machine: Machine,
}

/// Whether a cell could be computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its value.
    Measured(Measured),
    /// The reason why there is none; it is tried again in the next run.
    Failed(String),
}

/// The machine that computed a cell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// How many cores it has.
    pub cores: usize,
    /// How many threads were used.
    pub threads: usize,
    /// The device that computed: "cpu", "cuda:0".
    pub device: String,
}

impl Machine {
    /// This machine, computing on `device` with `threads` threads, or one for each core.
    pub fn this(device: &str, threads: Option<usize>) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            cpu: cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores,
            threads: threads.unwrap_or(cores),
            device: device.to_owned(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            cpu,
            cores,
            threads,
            device,
        } = self;
        write!(
            f,
            "{cpu}, cores: {cores}, threads: {threads}, device: {device}"
        )
    }
}

/// Linux only; elsewhere the architecture has to do.
fn cpu_name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
