//! Attacks against torchattacks and foolbox.

use candle_core::{DType, Device, Tensor};
use theriac::{
    Aim, Attack, Batch, Budget, Eps, Labels, Norm, Pass, Pixels, Result, Run, Target, craft,
    predict,
};
use theriac_attacks::{Fgsm, MiFgsm, Pgd, Start, bim};
use theriac_nn::Twin;

use crate::golden::{self, MANIFEST, MODELS, Vectors};
use crate::golden_models::{Net, load};
use crate::support::{largest_difference, values};

/// What one attack of a public implementation did to one golden network.
pub(crate) struct Reference {
    name: String,
    entry: golden::Attack,
    dtype: DType,
    twin: Twin<Net>,
    batch: Batch<Labels>,
    vectors: Vectors,
}

impl Reference {
    pub(crate) fn new(model: &str, attack: &str, dtype: DType) -> Result<Self> {
        let entry = MANIFEST.attack(model, attack).clone();
        let file = match (model, attack.contains("l2")) {
            ("std", true) => "attacks_std_l2".to_owned(),
            ("std", false) => "attacks_std_linf".to_owned(),
            _ => format!("attacks_{model}"),
        };
        Ok(Self {
            name: attack.to_owned(),
            dtype,
            twin: load(model, dtype)?,
            batch: golden::images(entry.images, dtype)?,
            vectors: Vectors::read(&[&file, "starts"])?,
            entry,
        })
    }

    pub(crate) fn budget(&self) -> Result<Budget> {
        let norm = if self.name.contains("l2") {
            Norm::L2
        } else {
            Norm::Linf
        };
        Budget::new(norm, Eps::unit(self.entry.eps)?)
    }

    /// Size of a step; of the only one, where there is one.
    pub(crate) fn step(&self) -> Result<Eps> {
        Eps::unit(self.entry.alpha.unwrap_or(self.entry.eps))
    }

    /// Our implementation, stopped after `steps` steps.
    fn ours(&self, steps: u32) -> Result<Box<dyn Attack<Net>>> {
        let (budget, step) = (self.budget()?, self.step()?);
        Ok(match self.name.as_str() {
            "fgsm" | "fgm_l2" => Box::new(Fgsm { budget }),
            "bim" => Box::new(bim(budget.eps(), step, steps)?),
            "mifgsm" => {
                let decay = self.entry.decay.expect("a decay");
                Box::new(MiFgsm {
                    budget,
                    step,
                    steps,
                    decay,
                })
            }
            "pgd_linf" | "pgd_linf_targeted" | "pgd_l2" => Box::new(Given {
                starts: self.starts(budget)?,
                pgd: Pgd::new(budget, step, steps),
            }),
            other => panic!("no implementation of {other}"),
        })
    }

    fn starts(&self, budget: Budget) -> Result<Pixels> {
        let unit = self.vectors.get(if budget.norm() == Norm::L2 {
            "unit_l2"
        } else {
            "unit_linf"
        });
        let unit = unit.narrow(0, 0, self.entry.images)?.to_dtype(self.dtype)?;
        Pixels::clamp(&(self.batch.pixels.tensor() + (unit * budget.eps().get())?)?)
    }

    /// The images of an attack for the first `n` clean ones.
    fn craft(&self, attack: &dyn Attack<Net>, n: usize) -> Result<Pixels> {
        let run = Run::new(0, &Device::Cpu);
        let clean = self.batch.pixels.narrow(0, n)?;
        let pass = run.eval(&self.batch.samples[..n]);
        let target = format!("{}.target", self.name);
        if self.vectors.find(&target).is_some() {
            let labels = self.vectors.labels(&target, n)?;
            return craft(
                attack,
                &self.twin.frozen,
                &clean,
                Aim::Toward(&labels),
                &pass,
            );
        }
        let labels = self.batch.target.narrow(0, n)?;
        craft(attack, &self.twin.frozen, &clean, Aim::Away(&labels), &pass)
    }

    /// Every way in which an implementation, given as a function of the number of steps,
    /// disagrees with the reference.
    pub(crate) fn disagreements(
        &self,
        attack: impl Fn(u32) -> Result<Box<dyn Attack<Net>>>,
    ) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let n = self.entry.images;
        let moved = self.craft(&*attack(self.entry.steps.unwrap_or(1))?, n)?;
        let loose = &self.entry.tolerance.f32;
        self.compare("the images", moved.tensor(), "adv", loose.share, &mut found)?;
        if let Some(trajectory) = self.vectors.find(&format!("{}.traj", self.name)) {
            let share = loose.trajectory_share.expect("a share for the trajectory");
            let (iterates, n) = (trajectory.dims()[0], trajectory.dims()[1]);
            let iterates = (1..=iterates as u32).map(|k| self.craft(&*attack(k)?, n));
            let iterates = iterates.collect::<Result<Vec<_>>>()?;
            let iterates: Vec<&Tensor> = iterates.iter().map(Pixels::tensor).collect();
            let iterates = Tensor::stack(&iterates, 0)?;
            self.compare("the iterates", &iterates, "traj", share, &mut found)?;
        }
        self.compare_predictions(&moved, &mut found)?;
        self.compare_distances(&moved, &mut found)?;
        Ok(found)
    }

    fn compare(
        &self,
        what: &str,
        got: &Tensor,
        array: &str,
        share: f64,
        found: &mut Vec<String>,
    ) -> Result<()> {
        let expected = self.vectors.get(&format!("{}.{array}", self.name));
        if self.dtype == DType::F64 {
            let difference = largest_difference(got, expected)?;
            if difference > self.entry.tolerance.f64 || difference.is_nan() {
                found.push(format!("{what} differ by {difference:e}"));
            }
            return Ok(());
        }
        let within = self.entry.tolerance.f32.within;
        let (got, expected) = (values(got)?, values(expected)?);
        let close = got
            .iter()
            .zip(&expected)
            .filter(|(a, b)| (*a - *b).abs() <= within)
            .count();
        let reached = close as f64 / expected.len() as f64;
        if reached < share {
            found.push(format!(
                "{what} agree on {reached:.4} of the values, expected {share}"
            ));
        }
        Ok(())
    }

    fn compare_predictions(&self, moved: &Pixels, found: &mut Vec<String>) -> Result<()> {
        let run = Run::new(0, &Device::Cpu);
        let got = predict(&self.twin.frozen, moved, &run.eval(&self.batch.samples))?.to_vec()?;
        let expected = self
            .vectors
            .labels(&format!("{}.pred", self.name), got.len())?
            .to_vec()?;
        let labels = self.batch.target.to_vec()?;
        let (differ, allowed) = if self.dtype == DType::F64 {
            (got.iter().zip(&expected).filter(|(a, b)| a != b).count(), 0)
        } else {
            let pairs = got.iter().zip(&expected).zip(&labels);
            let differ = pairs
                .filter(|((a, b), label)| (a == label) != (b == label))
                .count();
            (differ, self.entry.tolerance.f32.outcomes)
        };
        if differ > allowed {
            found.push(format!("{differ} outcomes differ, allowed {allowed}"));
        }
        Ok(())
    }

    fn compare_distances(&self, moved: &Pixels, found: &mut Vec<String>) -> Result<()> {
        let ball = Budget::l2(self.budget()?.eps())?;
        let got = median(ball.spent(moved, &self.batch.pixels)?);
        let expected = median(values(self.vectors.get(&format!("{}.l2", self.name)))?);
        if (got - expected).abs() > self.entry.tolerance.f32.median_l2 {
            found.push(format!("median L2 distance {got}, expected {expected}"));
        }
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    f64::midpoint(values[(n - 1) / 2], values[n / 2])
}

/// PGD from known starts, found by sample id.
struct Given {
    starts: Pixels,
    pgd: Pgd,
}

impl Attack<Net> for Given {
    fn perturb(
        &self,
        model: &Net,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let at = Tensor::new(pass.samples, &Device::Cpu)?;
        let start = Pixels::new(self.starts.tensor().index_select(&at, 0)?)?;
        self.pgd.perturb_from(&start, model, clean, aim, pass)
    }
}

fn agree(dtype: DType) -> Result<()> {
    for model in MODELS {
        for attack in MANIFEST.attacks(model) {
            let reference = Reference::new(model, attack, dtype)?;
            let found = reference.disagreements(|steps| reference.ours(steps))?;
            assert!(
                found.is_empty(),
                "{attack} on {model} in {dtype:?}: {found:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn attacks_agree_with_the_references_in_f64() -> Result<()> {
    agree(DType::F64)
}

#[test]
fn attacks_agree_with_the_references_in_f32() -> Result<()> {
    agree(DType::F32)
}

#[test]
fn random_starts_give_the_robust_accuracy_of_torchattacks() -> Result<()> {
    let expected = &MANIFEST.random_starts.models["std"];
    let twin = load("std", DType::F32)?;
    let batch = golden::images(expected.images, DType::F32)?;
    let labels = batch.target.to_vec()?;
    let budget = Budget::linf(Eps::unit(expected.eps)?)?;
    let pgd = Pgd::new(budget, Eps::unit(expected.alpha)?, expected.steps);
    assert_eq!(pgd.start, Start::Uniform);
    let mut accuracies = Vec::new();
    for seed in 0..3 {
        let run = Run::new(seed, &Device::Cpu);
        let pass = run.eval(&batch.samples);
        let aim = Aim::Away(&batch.target);
        let moved = craft(&pgd, &twin.frozen, &batch.pixels, aim, &pass)?;
        let predicted = predict(&twin.frozen, &moved, &pass)?.to_vec()?;
        let correct = predicted
            .iter()
            .zip(&labels)
            .filter(|(a, b)| a == b)
            .count();
        accuracies.push(correct as f64 / labels.len() as f64);
    }
    let n = accuracies.len() as f64;
    let mean = accuracies.iter().sum::<f64>() / n;
    let variance = accuracies.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let error = (expected.std.powi(2) / expected.seeds as f64 + variance / n).sqrt();
    let allowed = MANIFEST.random_starts.deviations * error + MANIFEST.random_starts.slack;
    let off = (mean - expected.mean).abs();
    assert!(
        off <= allowed,
        "{accuracies:?} against {}: {off} > {allowed}",
        expected.mean
    );
    Ok(())
}
