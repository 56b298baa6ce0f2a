//! One side of `cargo xtask bench --against-pytorch`: sets a workload up, then does one round of it
//! for each line on the standard input and reports it as a line of JSON. `benches/pace.py` is the
//! other side.

#![allow(clippy::print_stdout, reason = "the report is the output")]

use std::error::Error;
use std::io::{BufRead as _, stdin};
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use theriac::{
    Aim, Batch, Budget, Classifier, Labels, Mode, Model, Norm, Pass, Pixels, Rng, Run, Target as _,
    craft, largest, scores,
};
use theriac_attacks::{
    Apgd, AutoAttack, CarliniWagner, Ddn, Declare as _, DeepFool, Fab, Fgsm, Fmn, HopSkipJump,
    Loss, MiFgsm, Pgd, Spec as Attack, Square, Start,
};
use theriac_models::{Spec, resnet_v1, resnet18_cifar};
use theriac_nn::{Conv, Entry, Layers, Linear, Network, Params, Plain, Twin, VarBuilder, write};
use theriac_ops::PoolConfig;
use theriac_train::{Rule, Sgd};

type Any<T> = Result<T, Box<dyn Error>>;

/// LeNet: channels, values after the last pool, hidden units; padding of the second convolution.
fn lenet(
    layers: &dyn Layers,
    vb: VarBuilder,
    [first, second, flat, hidden]: [usize; 4],
    padding: usize,
) -> theriac::Result<Network> {
    let pool = PoolConfig {
        kernel: 2,
        stride: 2,
        padding: 0,
    };
    let conv1 = Conv::new(1, first, 5).padding(2);
    let conv2 = Conv::new(first, second, 5).padding(padding);
    let mut net = Network::new(10);
    let x = net.image();
    let h = net.layer(x, layers.conv(&conv1, vb.pp("conv1"))?);
    let h = net.relu(h);
    let h = net.max_pool(h, pool);
    let h = net.layer(h, layers.conv(&conv2, vb.pp("conv2"))?);
    let h = net.relu(h);
    let h = net.max_pool(h, pool);
    let h = net.flatten(h);
    let h = net.layer(h, layers.linear(&Linear::new(flat, hidden), vb.pp("fc1"))?);
    let h = net.relu(h);
    net.layer(h, layers.linear(&Linear::new(hidden, 10), vb.pp("fc2"))?);
    Ok(net)
}

/// 3,274,634 parameters.
const WIDE: [usize; 4] = [32, 64, 3136, 1024];

/// The LeNet of the golden files.
const GOLDEN: [usize; 4] = [8, 16, 400, 64];

fn golden(file: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    folder.join(file).with_extension("safetensors")
}

/// A network, images and labels.
struct Side {
    twin: Twin<Network>,
    batch: Batch<Labels>,
    run: Run,
}

impl Side {
    fn new(workload: &str) -> Any<Self> {
        let (network, shape, n) = match workload {
            "lenet-train" | "lenet-train-memory" => ("lenet", [1, 28, 28], 128),
            "lenet-pgd" => ("lenet", [1, 28, 28], 1000),
            "resnet20-adversarial" | "resnet20-attack" => ("resnet20", [3, 32, 32], 128),
            "resnet18-eval-128" => ("resnet18", [3, 32, 32], 128),
            "resnet18-eval-32" => ("resnet18", [3, 32, 32], 32),
            "atda-bim-epoch" => ("atda", [1, 28, 28], 10_000),
            "first-result" => ("atda", [1, 28, 28], 100),
            "golden-autoattack" => ("golden", [1, 28, 28], 500),
            "golden-hopskipjump" => ("golden", [1, 28, 28], 16),
            name if name.starts_with("golden-") => ("golden", [1, 28, 28], 256),
            name if name.starts_with("resnet20-") => ("resnet20", [3, 32, 32], 256),
            other => return Err(format!("unknown workload {other:?}").into()),
        };
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let twin = Twin::build(&params, |vb| match network {
            "lenet" => lenet(&Plain, vb, WIDE, 2),
            "golden" => lenet(&Plain, vb, GOLDEN, 0),
            "resnet20" => resnet_v1(&Plain, vb, 20, 16, 10),
            "resnet18" => resnet18_cifar(&Plain, vb, 10),
            _ => Spec::AtdaCnn.build(&Plain, vb),
        })?;
        let [c, h, w] = shape;
        let values = Rng::new(1).uniform("images", 0, n * c * h * w);
        let pixels = Pixels::new(Tensor::from_vec(values, (n, c, h, w), &Device::Cpu)?)?;
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 7 % 10).collect();
        let batch = Batch {
            pixels,
            target: Labels::new(&labels, 10, &Device::Cpu)?,
            samples: (0..n as u32).collect(),
        };
        let run = Run::new(0, &Device::Cpu);
        let mut side = Self { twin, batch, run };
        if network == "golden" {
            side.twin.params.load(&golden("model_rob"))?;
            let arrays = candle_core::safetensors::load(golden("images"), &Device::Cpu)?;
            let array = |name: &str| arrays.get(name).ok_or(format!("no golden array {name}"));
            let bytes = array("u8.gray28")?.narrow(0, 0, n)?;
            side.batch.pixels = Pixels::from_bytes(&bytes, DType::F32)?;
            let labels = array("labels")?.narrow(0, 0, n)?.to_dtype(DType::U32)?;
            side.batch.target = Labels::new(&labels.to_vec1::<u32>()?, 10, &Device::Cpu)?;
        } else if attack(workload)?.is_some() {
            // Untrained: what it says is right.
            let said = side.predictions(&side.batch.pixels)?;
            side.batch.target = Labels::new(&said, 10, &Device::Cpu)?;
        }
        Ok(side)
    }

    /// Weights, images and labels for the other side.
    fn write(&self, path: &Path) -> Any<()> {
        let mut entries = self.twin.params.entries("params.")?;
        entries.push(Entry::tensor(
            "images".to_owned(),
            self.batch.pixels.tensor(),
        )?);
        let labels = self.batch.target.tensor().to_dtype(DType::F32)?;
        entries.push(Entry::tensor("labels".to_owned(), &labels)?);
        Ok(write(path, entries, &Default::default())?)
    }

    fn part(&self, first: usize, len: usize) -> Any<(Pixels, Labels, Pass<'_>)> {
        Ok((
            self.batch.pixels.narrow(first, len)?,
            self.batch.target.narrow(first, len)?,
            self.run.eval(&self.batch.samples[first..first + len]),
        ))
    }

    /// Linf steps from the clean images.
    fn moved(&self, first: usize, len: usize, (eps, step, steps): Steps) -> Any<Pixels> {
        let (pixels, labels, pass) = self.part(first, len)?;
        let attack = Pgd {
            start: Start::Clean,
            ..Pgd::new(Budget::linf(eps.parse()?)?, step.parse()?, steps)
        };
        Ok(craft(
            &attack,
            &self.twin.frozen,
            &pixels,
            Aim::Away(&labels),
            &pass,
        )?)
    }

    /// Mean loss in evaluation mode.
    fn loss(&self, pixels: &Pixels, first: usize) -> Any<f64> {
        let (_, labels, pass) = self.part(first, pixels.len())?;
        let loss = self.twin.frozen.loss(pixels, &labels, &pass)?;
        Ok(f64::from(loss.mean_all()?.to_scalar::<f32>()?))
    }

    fn predictions(&self, pixels: &Pixels) -> Any<Vec<u32>> {
        let (_, _, pass) = self.part(0, pixels.len())?;
        let rows = scores(&self.twin.frozen, pixels, &pass)?;
        Ok(rows.iter().map(|row| largest(row)).collect())
    }

    /// Attack all images, and judges what came out once the clock has stopped.
    fn attacked(&self, attack: &Attack, norm: Option<Norm>, times: u32) -> Any<String> {
        let (clean, labels, pass) = self.part(0, self.batch.pixels.len())?;
        let started = Instant::now();
        let mut moved = clean.clone();
        for _ in 0..times {
            moved = craft(attack, &self.twin.frozen, &clean, Aim::Away(&labels), &pass)?;
        }
        let seconds = started.elapsed().as_secs_f64();

        let (before, after) = (self.predictions(&clean)?, self.predictions(&moved)?);
        let mut outside = vec![false; clean.len()];
        if let Some(budget) = attack.declared().budget {
            let spent = budget.spent(&moved, &clean)?;
            outside = spent
                .iter()
                .map(|d| *d > budget.eps().get() + 1e-6)
                .collect();
        }
        let labels = labels.to_vec()?;
        let right: Vec<usize> = (0..clean.len())
            .filter(|&i| before[i] == labels[i])
            .collect();
        let resists = |i: usize| after[i] == labels[i] || outside[i];
        let resisting = right.iter().filter(|&&i| resists(i)).count();
        let accuracy = resisting as f64 / clean.len() as f64;
        let distance = match norm {
            None => "null".to_owned(),
            Some(norm) => {
                let far = norm.of(&(moved.tensor() - clean.tensor())?)?;
                let far = right
                    .iter()
                    .map(|&i| if resists(i) { FAILED } else { far[i] });
                let mut far: Vec<f64> = far.collect();
                far.sort_by(f64::total_cmp);
                far.get(far.len() / 2)
                    .ok_or("no image is right")?
                    .to_string()
            }
        };
        Ok(format!(
            "\"seconds\": {seconds}, \"accuracy\": {accuracy}, \"distance\": {distance}"
        ))
    }

    /// One step of stochastic gradient descent on the mean loss of all given images.
    fn step(&self, pixels: &[&Pixels], first: usize, sgd: &mut Sgd) -> Any<f64> {
        let mut total: Option<Tensor> = None;
        for pixels in pixels {
            let (_, labels, pass) = self.part(first, pixels.len())?;
            let pass = Pass {
                mode: Mode::Train,
                ..pass
            };
            let loss = self.twin.live.loss(pixels, &labels, &pass)?.mean_all()?;
            total = Some(match total {
                Some(total) => (total + loss)?,
                None => loss,
            });
        }
        let total = total.ok_or("no images")?;
        let value = f64::from(total.to_scalar::<f32>()?);
        sgd.step(&self.twin.params.trainable(), &total.backward()?, 0.01)?;
        Ok(value)
    }
}

/// The distance of an image that still resists: farther than any image.
const FAILED: f64 = 1e9;

/// An attack and the norm to measure its distances in, if it has no ball.
fn attack(workload: &str) -> Any<Option<(Attack, Option<Norm>)>> {
    let budget = Budget::linf("0.1".parse()?)?;
    let small = Budget::linf("8/255".parse()?)?;
    let apgd = |loss| Attack::Apgd(Apgd::new(budget, loss));
    let cw = CarliniWagner {
        initial_c: 1.0,
        abort_early: false,
        ..CarliniWagner::cw()
    };
    let l2 = Some(Norm::L2);
    let linf = Some(Norm::Linf);
    Ok(Some(match workload {
        "golden-autoattack" => (Attack::AutoAttack(AutoAttack::standard(budget)), None),
        "golden-apgd-ce" => (apgd(Loss::CrossEntropy), None),
        "golden-apgd-dlr" => (apgd(Loss::Dlr), None),
        "golden-fab" => (Attack::Fab(Fab::new(Norm::Linf)), linf),
        "golden-square" => {
            let queries = 1000;
            let square = Square::new(budget);
            (Attack::Square(Square { queries, ..square }), None)
        }
        "golden-deepfool" => (Attack::DeepFool(DeepFool::new(Norm::L2)), l2),
        "golden-cw" => {
            let (steps, search_steps) = (100, 5);
            let cw = CarliniWagner {
                steps,
                search_steps,
                ..cw
            };
            (Attack::CarliniWagner(cw), l2)
        }
        "golden-ddn" => (Attack::Ddn(Ddn::default()), l2),
        "golden-fmn" => (Attack::Fmn(Fmn::new(Norm::Linf)), linf),
        "golden-fgsm" => (Attack::Fgsm(Fgsm { budget }), None),
        "golden-pgd" => (Attack::Pgd(Pgd::new(budget, "0.01".parse()?, 40)), None),
        "golden-mifgsm" => (Attack::MiFgsm(MiFgsm::new(budget, 10)?), None),
        "golden-hopskipjump" => {
            let steps = 10;
            let walk = HopSkipJump::new(Norm::L2);
            (Attack::HopSkipJump(HopSkipJump { steps, ..walk }), l2)
        }
        "resnet20-deepfool" => {
            let steps = 10;
            let nearest = DeepFool::new(Norm::L2);
            (Attack::DeepFool(DeepFool { steps, ..nearest }), l2)
        }
        "resnet20-cw" => {
            let (steps, search_steps) = (20, 2);
            let cw = CarliniWagner {
                steps,
                search_steps,
                ..cw
            };
            (Attack::CarliniWagner(cw), l2)
        }
        "resnet20-apgd-ce" => {
            let (steps, stop) = (20, false);
            let apgd = Apgd::new(small, Loss::CrossEntropy);
            (
                Attack::Apgd(Apgd {
                    steps,
                    stop,
                    ..apgd
                }),
                None,
            )
        }
        _ => return Ok(None),
    }))
}

/// Epsilon, step size, steps.
type Steps = (&'static str, &'static str, u32);

const MNIST: Steps = ("0.3", "0.01", 40);
const CIFAR: Steps = ("8/255", "2/255", 7);
const BIM: Steps = ("0.3", "0.03", 10);

fn round(workload: &str, side: &Side, sgd: &mut Sgd) -> Any<f64> {
    let all = &side.batch.pixels;
    match workload {
        "lenet-train" | "lenet-train-memory" => {
            let mut loss = 0.0;
            for _ in 0..5 {
                loss = side.step(&[all], 0, sgd)?;
            }
            Ok(loss)
        }
        "lenet-pgd" => side.loss(&side.moved(0, all.len(), MNIST)?, 0),
        "resnet20-attack" => side.loss(&side.moved(0, all.len(), CIFAR)?, 0),
        "resnet20-adversarial" => {
            let moved = side.moved(0, all.len(), CIFAR)?;
            side.step(&[&moved], 0, sgd)
        }
        "atda-bim-epoch" => {
            let mut loss = 0.0;
            for first in (0..all.len() - 63).step_by(64) {
                let (clean, ..) = side.part(first, 64)?;
                let moved = side.moved(first, 64, BIM)?;
                loss = side.step(&[&clean, &moved], first, sgd)?;
            }
            Ok(loss)
        }
        "first-result" => side.loss(&side.moved(0, all.len(), MNIST)?, 0),
        _ => side.loss(all, 0),
    }
}

/// Peak resident set in MiB, 0 where the system does not say.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

fn main() -> Any<()> {
    let mut arguments = std::env::args().skip(1);
    let workload = arguments
        .next()
        .ok_or("usage: pace WORKLOAD THREADS [FILE]")?;
    let threads = arguments
        .next()
        .ok_or("usage: pace WORKLOAD THREADS [FILE]")?
        .parse()?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()?;
    let side = Side::new(&workload)?;
    debug_assert_eq!(side.twin.live.classes(), 10);
    if let Some(file) = arguments.next().map(PathBuf::from) {
        side.write(&file)?;
    }
    println!("ready");
    let mut sgd = Sgd::momentum(0.9);
    let attack = attack(&workload)?;
    // A single step is too short to time.
    let times = if workload == "golden-fgsm" { 20 } else { 1 };
    for line in stdin().lock().lines() {
        line?;
        let report = match &attack {
            Some((attack, norm)) => side.attacked(attack, *norm, times)?,
            None => {
                let started = Instant::now();
                let loss = round(&workload, &side, &mut sgd)?;
                let seconds = started.elapsed().as_secs_f64();
                format!("\"seconds\": {seconds}, \"loss\": {loss}")
            }
        };
        println!("{{{report}, \"peak\": {}}}", peak());
    }
    Ok(())
}
