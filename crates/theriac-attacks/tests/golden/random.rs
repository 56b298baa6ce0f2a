//! Attacks that draw random numbers: robust accuracy over seeds, and how often each image breaks.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use serde::Deserialize;
use serde_json::Value;
use theriac::{Aim, Attack, Batch, Budget, Eps, Labels, Result, Run, craft, predict};
use theriac_attacks::{Apgd, Eot, FewPixel, Loss, Pgd, Restarts, Square};

use crate::golden::{self, Vectors};
use crate::golden_models::{Net, load};
use crate::reference::ALL;

#[derive(Deserialize)]
struct Manifest {
    random: Random,
}

#[derive(Deserialize)]
struct Random {
    deviations: f64,
    slack: f64,
    rank_correlation: f64,
    attacks: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    images: usize,
    mean: f64,
    std: f64,
    #[serde(flatten)]
    settings: BTreeMap<String, Value>,
}

impl Entry {
    fn number(&self, name: &str) -> f64 {
        let value = self.settings.get(name).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("no number {name}"))
    }

    fn count(&self, name: &str) -> u32 {
        self.number(name) as u32
    }

    /// Our implementation of the attack with this name.
    fn ours(&self, attack: &str) -> Result<Box<dyn Attack<Net>>> {
        if let "1px" | "5px" = attack {
            return Ok(Box::new(FewPixel {
                steps: self.count("steps"),
                population: self.count("popsize"),
                uniform_values: true,
                ..FewPixel::new(self.count("pixels"))
            }));
        }
        let budget = Budget::linf(Eps::unit(self.number("eps"))?)?;
        let pgd = || -> Result<Pgd> {
            let step = Eps::unit(self.number("alpha"))?;
            Ok(Pgd::new(budget, step, self.count("steps")))
        };
        let apgd = |loss| Apgd {
            steps: self.count("n_iter"),
            rho: self.number("rho"),
            ..Apgd::new(budget, loss)
        };
        Ok(match attack {
            "pgd" => Box::new(pgd()?),
            "pgd_restarts" => Box::new(Restarts {
                attack: pgd()?,
                times: self.count("restarts"),
            }),
            "apgd_ce" => Box::new(apgd(Loss::CrossEntropy)),
            "apgd_dlr" => Box::new(apgd(Loss::Dlr)),
            "square" => Box::new(Square {
                queries: self.count("n_queries"),
                share: self.number("p_init"),
                ..Square::new(budget)
            }),
            "k1" | "k10" => Box::new(Eot {
                attack: pgd()?,
                draws: self.count("eot_iter"),
            }),
            other => panic!("no implementation of {other}"),
        })
    }
}

/// How often each image was classified correctly, one row a seed.
type Correct = Vec<Vec<f64>>;

/// With fewer images than this that the reference breaks sometimes, ranks are compared over all
/// images: an exact copy of the reference would not pass a correlation over four.
const FEW: usize = 20;

/// Fresh draws of noise for a prediction of the noisy network.
const DRAWS: u64 = 20;

/// Our images of one seed, judged by `judges` passes of the model.
fn correct(
    attack: &dyn Attack<Net>,
    model: &Net,
    batch: &Batch<Labels>,
    seed: u64,
    judges: u64,
) -> Result<Vec<f64>> {
    let run = Run::new(seed, &Device::Cpu);
    let pass = run.eval(&batch.samples);
    let aim = Aim::Away(&batch.target);
    let moved = craft(attack, model, &batch.pixels, aim, &pass)?;
    let labels = batch.target.to_vec()?;
    let mut correct = vec![0.0; labels.len()];
    for judge in 0..judges {
        let predicted = predict(model, &moved, &pass.fork(1000 + judge))?.to_vec()?;
        for (i, label) in labels.iter().enumerate() {
            correct[i] += f64::from(u8::from(predicted[i] == *label)) / judges as f64;
        }
    }
    Ok(correct)
}

/// Mean over images, for each seed.
fn accuracies(correct: &Correct) -> Vec<f64> {
    correct.iter().map(|row| mean(row)).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares = values.iter().map(|value| (value - mean).powi(2));
    squares.sum::<f64>() / (values.len() - 1) as f64
}

/// Mean over seeds, for each image.
fn frequencies(correct: &Correct) -> Vec<f64> {
    let of_image = |i: usize| mean(&correct.iter().map(|row| row[i]).collect::<Vec<_>>());
    (0..correct[0].len()).map(of_image).collect()
}

/// Spearman's rank correlation; equal values share the mean of their ranks.
fn rank_correlation(a: &[f64], b: &[f64]) -> f64 {
    if a == b {
        // Also where nothing varies.
        return 1.0;
    }
    let ranks = |values: &[f64]| -> Vec<f64> {
        let rank = |value: &f64| {
            let below = values.iter().filter(|other| *other < value).count();
            let equal = values.iter().filter(|other| *other == value).count();
            below as f64 + (equal as f64 + 1.0) / 2.0
        };
        values.iter().map(rank).collect()
    };
    let (a, b) = (ranks(a), ranks(b));
    let (mean_a, mean_b) = (mean(&a), mean(&b));
    let products = a.iter().zip(&b).map(|(a, b)| (a - mean_a) * (b - mean_b));
    let covariance = products.sum::<f64>() / (a.len() - 1) as f64;
    covariance / (variance(&a) * variance(&b)).sqrt()
}

/// Asserts that attacks on the first `n` images are as strong as the references, over `seeds`
/// seeds.
fn agree(names: &[&str], n: usize, seeds: u64) -> Result<()> {
    names.iter().try_for_each(|name| agrees(name, n, seeds))
}

fn agrees(name: &str, n: usize, seeds: u64) -> Result<()> {
    let Manifest { random } = golden::manifest();
    let entry = &random.attacks[name];
    let n = n.min(entry.images);
    let (model, attack) = name.split_once('.').unwrap();
    let model = match model {
        "eot" => "noisy",
        "onepixel" => "std",
        model => model,
    };
    let twin = load(model, DType::F32)?;
    let batch = golden::images(n, DType::F32)?;
    let judges = if model == "noisy" { DRAWS } else { 1 };
    let implementation = entry.ours(attack)?;
    let ours = (0..seeds).map(|seed| correct(&*implementation, &twin.frozen, &batch, seed, judges));
    let ours: Correct = ours.collect::<Result<_>>()?;

    let vectors = Vectors::read(&["random"])?;
    let theirs: Correct = match vectors.find(&format!("{name}.correct_freq")) {
        Some(rows) => rows.to_dtype(DType::F64)?.to_vec2()?,
        None => {
            let broken = vectors.get(&format!("{name}.broken"));
            let rows: Correct = broken.to_dtype(DType::F64)?.to_vec2()?;
            rows.iter()
                .map(|row| row.iter().map(|broken| 1.0 - broken).collect())
                .collect()
        }
    };
    if n == entry.images {
        assert!((mean(&accuracies(&theirs)) - entry.mean).abs() < 1e-4);
        assert!((variance(&accuracies(&theirs)).sqrt() - entry.std).abs() < 1e-4);
    }
    let theirs: Correct = theirs.iter().map(|row| row[..n].to_vec()).collect();

    let (a, b) = (accuracies(&ours), accuracies(&theirs));
    let error = variance(&a) / a.len() as f64 + variance(&b) / b.len() as f64;
    // The slack is a number of images.
    let slack = random.slack * entry.images as f64 / n as f64;
    let allowed = random.deviations * error.sqrt() + slack;
    let off = (mean(&a) - mean(&b)).abs();
    assert!(
        off <= allowed,
        "{name}: {a:?} against {b:?}: {off} > {allowed}"
    );
    if attack == "square" {
        return Ok(());
    }

    let (ours, theirs) = (frequencies(&ours), frequencies(&theirs));
    let opposite = (0..n).filter(|&i| (ours[i] - theirs[i]).abs() == 1.0);
    let opposite: Vec<usize> = opposite.collect();
    assert!(
        opposite.is_empty(),
        "{name}: always broken here and never there: {opposite:?}"
    );
    let mut judged: Vec<usize> = (0..n)
        .filter(|&i| theirs[i] > 0.0 && theirs[i] < 1.0)
        .collect();
    if judged.len() < FEW {
        judged = (0..n).collect();
    }
    let at = |all: &[f64]| judged.iter().map(|&i| all[i]).collect::<Vec<_>>();
    let correlation = rank_correlation(&at(&ours), &at(&theirs));
    let least = random.rank_correlation;
    assert!(
        correlation > least,
        "{name}: rank correlation {correlation}, expected {least}"
    );
    Ok(())
}

#[test]
fn pgd_is_as_strong_as_torchattacks() -> Result<()> {
    agree(
        &["std.pgd", "rob.pgd", "std.pgd_restarts", "rob.pgd_restarts"],
        60,
        3,
    )
}

#[test]
fn apgd_is_as_strong_as_the_reference() -> Result<()> {
    agree(
        &["std.apgd_ce", "rob.apgd_ce", "std.apgd_dlr", "rob.apgd_dlr"],
        60,
        3,
    )
}

#[test]
fn square_is_as_strong_as_the_reference() -> Result<()> {
    agree(&["std.square", "rob.square"], 12, 3)
}

#[test]
fn averages_over_noise_are_as_strong_as_torchattacks() -> Result<()> {
    agree(&["eot.k1", "eot.k10"], 30, 3)
}

#[test]
fn few_pixels_are_as_strong_as_torchattacks() -> Result<()> {
    agree(&["onepixel.1px"], 5, 3)
}

#[test]
#[ignore = "minutes; run by `cargo test -p theriac-attacks --test golden -- --ignored`"]
fn all_images_break_as_often_as_under_the_references() -> Result<()> {
    agree(
        &["std.pgd", "rob.pgd", "std.pgd_restarts", "rob.pgd_restarts"],
        ALL,
        5,
    )?;
    agree(
        &["std.apgd_ce", "rob.apgd_ce", "std.apgd_dlr", "rob.apgd_dlr"],
        ALL,
        5,
    )?;
    agree(&["eot.k1", "eot.k10"], ALL, 5)
}

#[test]
#[ignore = "minutes; run by `cargo test -p theriac-attacks --test golden -- --ignored`"]
fn all_images_break_as_often_under_queries_as_under_the_references() -> Result<()> {
    agree(&["std.square", "rob.square"], ALL, 5)?;
    agree(&["onepixel.1px", "onepixel.5px"], ALL, 3)
}
