//! What training costs: operations, seconds, memory.

use std::fs;
use std::io::{Write as _, stdin};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::SystemTime;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use theriac::Run;
use theriac_experiment::{history, use_threads};
use theriac_nn::Operations;
use theriac_tables::{BoxError, Cell, Lab, Measured, Scale, Store};

use crate::{Defence, Settings};

/// The argument by which the program starts itself for one epoch in a process of its own.
const CHILD: &str = "one-epoch";
const COST: &str = "cost.json";

#[derive(Serialize, Deserialize)]
struct Order {
    settings: Settings,
    seed: u64,
    folder: PathBuf,
    data_dir: Option<PathBuf>,
    threads: Option<usize>,
    device: String,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Cost {
    seconds: f64,
    /// Gradient passes an image.
    passes: f64,
    /// Largest resident set, MiB; `None` where the system does not tell.
    peak: Option<f64>,
}

/// The child's whole work, if this process is one: reads an [`Order`] and writes a [`Cost`].
#[allow(clippy::print_stderr)]
pub(crate) fn child() -> Option<ExitCode> {
    if std::env::args().nth(1).as_deref() != Some(CHILD) {
        return None;
    }
    let work = || -> Result<(), BoxError> {
        let order: Order = serde_json::from_reader(stdin())?;
        let store = Store::open(order.folder.join("store"))?;
        let mut lab = Lab::quiet(store, Scale::Smoke);
        (lab.data_dir, lab.threads, lab.device) = (order.data_dir, order.threads, order.device);
        use_threads(&lab);
        let (settings, folder) = (&order.settings, &order.folder);
        settings.fit(order.seed, folder, "one epoch", &lab)?;
        let history = history(folder)?;
        let epoch = history.first().ok_or("the training has no epoch")?;
        let cost = Cost {
            seconds: epoch.seconds,
            passes: epoch.passes(),
            peak: peak(),
        };
        Ok(fs::write(folder.join(COST), serde_json::to_vec(&cost)?)?)
    };
    Some(match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Largest resident set of this process so far, MiB.
fn peak() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

/// The cost of one epoch, measured once in a process of its own.
fn cost(settings: &Settings, cell: &Cell<'_>, lab: &Lab) -> Result<Cost, BoxError> {
    let settings = Settings {
        epochs: 1,
        after: None,
        ..settings.clone()
    };
    let folder = lab.memo(cell, "cost", &settings.key(), |folder| {
        let order = Order {
            settings: settings.clone(),
            seed: cell.seed,
            folder: folder.to_owned(),
            data_dir: lab.data_dir.clone(),
            threads: lab.threads,
            device: lab.device.clone(),
        };
        let mut child = Command::new(std::env::current_exe()?)
            .arg(CHILD)
            .stdin(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().ok_or("the child takes no input")?;
        input.write_all(&serde_json::to_vec(&order)?)?;
        drop(input);
        match child.wait()?.success() {
            true => Ok(()),
            false => Err("the epoch failed; its message is above".into()),
        }
    })?;
    read(&folder)
}

fn read(folder: &Path) -> Result<Cost, BoxError> {
    Ok(serde_json::from_slice(&fs::read(folder.join(COST))?)?)
}

/// Seconds of an epoch.
pub(crate) fn seconds(
    settings: &Settings,
    cell: &Cell<'_>,
    lab: &Lab,
) -> Result<Measured, BoxError> {
    let cost = cost(settings, cell, lab)?;
    Ok(Measured {
        value: cost.seconds,
        n: 1,
        seconds: cost.seconds,
        extra: [("gradient passes an image".to_owned(), cost.passes)].into(),
        ..Measured::default()
    })
}

/// Largest resident set of the process, MiB.
pub(crate) fn memory(
    settings: &Settings,
    cell: &Cell<'_>,
    lab: &Lab,
) -> Result<Measured, BoxError> {
    let cost = cost(settings, cell, lab)?;
    Ok(Measured {
        value: cost
            .peak
            .ok_or("this system does not tell a process's memory")?,
        n: 1,
        seconds: cost.seconds,
        ..Measured::default()
    })
}

/// Operations of the network for one image, the step of beneficial biases included.
pub(crate) fn operations(
    settings: &Settings,
    lab: &Lab,
    of: fn(Operations) -> u64,
) -> Result<Measured, BoxError> {
    use theriac::Classifier as _;
    let began = SystemTime::now();
    let device = theriac::device(&lab.device)?;
    let twin = settings.network(0, DType::F32, &device)?;
    let [c, h, w] = settings
        .image
        .ok_or("operations are counted for an image: set its shape")?;
    let image = Tensor::zeros((1, c, h, w), DType::F32, &device)?;
    let mut count = twin
        .live
        .operations(&image, &Run::new(0, &device).eval(&[0]))?;
    if settings.defence == Defence::Bpn {
        // A sign, and a product with eta epsilon, for each bias, as the paper counts.
        let biases = settings.bpn.biases(&twin.params, twin.live.classes())?;
        let values: usize = biases.iter().map(|(_, bias)| bias.elem_count()).sum();
        count.backward += 2 * values as u64;
    }
    Ok(Measured {
        value: of(count) as f64,
        n: 1,
        seconds: began.elapsed().unwrap_or_default().as_secs_f64().max(1e-6),
        ..Measured::default()
    })
}
