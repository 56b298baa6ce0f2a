//! One side of `cargo xtask bench --against-pytorch`: sets a workload up, then does one round of it
//! for each line on the standard input and reports it as a line of JSON. `benches/pace.py` is the
//! other side.

#![allow(clippy::print_stdout, reason = "the report is the output")]

use std::error::Error;
use std::io::{BufRead as _, stdin};
use std::path::PathBuf;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use theriac::{Aim, Batch, Budget, Classifier, Labels, Mode, Model, Pass, Pixels, Rng, Run, craft};
use theriac_attacks::{Pgd, Start};
use theriac_models::{Spec, resnet_v1, resnet18};
use theriac_nn::{Conv, Entry, Layers, Linear, Network, Params, Plain, Twin, VarBuilder, write};
use theriac_ops::PoolConfig;
use theriac_train::{Rule, Sgd};

type Any<T> = Result<T, Box<dyn Error>>;

/// LeNet with 32 and 64 channels and 1,024 hidden units: 3,274,634 parameters.
fn wide_lenet(layers: &dyn Layers, vb: VarBuilder) -> theriac::Result<Network> {
    let pool = PoolConfig {
        kernel: 2,
        stride: 2,
        padding: 0,
    };
    let conv = |i, o| Conv::new(i, o, 5).padding(2);
    let mut net = Network::new(10);
    let x = net.image();
    let h = net.layer(x, layers.conv(&conv(1, 32), vb.pp("conv1"))?);
    let h = net.relu(h);
    let h = net.max_pool(h, pool);
    let h = net.layer(h, layers.conv(&conv(32, 64), vb.pp("conv2"))?);
    let h = net.relu(h);
    let h = net.max_pool(h, pool);
    let h = net.flatten(h);
    let h = net.layer(h, layers.linear(&Linear::new(3136, 1024), vb.pp("fc1"))?);
    let h = net.relu(h);
    net.layer(h, layers.linear(&Linear::new(1024, 10), vb.pp("fc2"))?);
    Ok(net)
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
            other => return Err(format!("unknown workload {other:?}").into()),
        };
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let twin = Twin::build(&params, |vb| match network {
            "lenet" => wide_lenet(&Plain, vb),
            "resnet20" => resnet_v1(&Plain, vb, 20, 1, 10),
            "resnet18" => resnet18(&Plain, vb, 10),
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
        Ok(Self { twin, batch, run })
    }

    /// Weights, images and labels for the other side.
    fn write(&self, path: &std::path::Path) -> Any<()> {
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
        use theriac::Target as _;
        Ok((
            self.batch.pixels.narrow(first, len)?,
            self.batch.target.narrow(first, len)?,
            self.run.eval(&self.batch.samples[first..first + len]),
        ))
    }

    /// Linf steps from the clean images.
    fn attack(&self, first: usize, len: usize, (eps, step, steps): Attack) -> Any<Pixels> {
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

/// Epsilon, step size, steps.
type Attack = (&'static str, &'static str, u32);

const MNIST: Attack = ("0.3", "0.01", 40);
const CIFAR: Attack = ("8/255", "2/255", 7);
const BIM: Attack = ("0.3", "0.03", 10);

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
        "lenet-pgd" => side.loss(&side.attack(0, all.len(), MNIST)?, 0),
        "resnet20-attack" => side.loss(&side.attack(0, all.len(), CIFAR)?, 0),
        "resnet20-adversarial" => {
            let moved = side.attack(0, all.len(), CIFAR)?;
            side.step(&[&moved], 0, sgd)
        }
        "atda-bim-epoch" => {
            let mut loss = 0.0;
            for first in (0..all.len() - 63).step_by(64) {
                let (clean, ..) = side.part(first, 64)?;
                let moved = side.attack(first, 64, BIM)?;
                loss = side.step(&[&clean, &moved], first, sgd)?;
            }
            Ok(loss)
        }
        "first-result" => side.loss(&side.attack(0, all.len(), MNIST)?, 0),
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
    for line in stdin().lock().lines() {
        line?;
        let started = Instant::now();
        let loss = round(&workload, &side, &mut sgd)?;
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{{\"seconds\": {seconds}, \"loss\": {loss}, \"peak\": {}}}",
            peak()
        );
    }
    Ok(())
}
