//! The epoch-wise method: what is carried, what it costs, what each reading changes.

use candle_core::{DType, Device, Tensor};
use theriac::{
    Aim, Batch, Budget, Eps, Labels, Mode, Model, Norm, Pixels, Result, Run, craft, gradient,
    predict,
};
use theriac_adversarial::AdversarialTraining;
use theriac_atda::Atda;
use theriac_attacks::{Fgsm, Pgd, Start, bim};
use theriac_epochwise::{AfterCap, EpochWise, Limit, Reading, Store};
use theriac_nn::{Network, Twin};
use theriac_train::{Clean, LabelSource, Objective, mixture};

use crate::golden;
use crate::golden_models::{Net, load};
use crate::support::{bits, eps, fashion, largest_difference, linf, network, pick, train, values};

const EPS: f64 = 0.2;
/// More than a task of an attack, and not a multiple of one.
const IMAGES: usize = 24;

/// A trained network and images, attacked without ever being updated.
struct Bench {
    twin: Twin<Net>,
    batch: Batch<Labels>,
    run: Run,
}

impl Bench {
    fn new() -> Result<Self> {
        let (twin, batch) = (
            load("std", DType::F32)?,
            golden::images(IMAGES, DType::F32)?,
        );
        Ok(Self {
            twin,
            batch,
            run: Run::new(8, &Device::Cpu),
        })
    }

    /// One epoch in batches of 9, the last of 6; the losses.
    fn epoch(&self, objective: &mut EpochWise, e: usize) -> Result<Vec<f64>> {
        Objective::<Net>::begin_epoch(objective, e)?;
        let ids: Vec<u32> = (0..IMAGES as u32).collect();
        let mut losses = Vec::new();
        for (i, ids) in ids.chunks(9).enumerate() {
            let batch = pick(&self.batch, ids)?;
            let pass = self.run.train(&batch.samples).fork(e as u64).at(i as u64);
            losses.extend(values(&objective.loss(&self.twin, &batch, &pass)?)?);
            objective.after_update(&self.twin, &batch, &pass)?;
        }
        Ok(losses)
    }

    fn epochs(&self, reading: Reading, n: usize) -> Result<EpochWise> {
        let mut objective = EpochWise::new(eps(EPS), reading)?;
        for e in 0..n {
            self.epoch(&mut objective, e)?;
        }
        Ok(objective)
    }

    /// The images carried after `n` epochs.
    fn carried(&self, reading: Reading, n: usize) -> Result<Tensor> {
        Ok(self
            .epochs(reading, n)?
            .carried(&self.batch)?
            .tensor()
            .clone())
    }

    /// `steps` steps of eps / 10 from the clean images, projected onto a ball.
    fn steps(&self, ball: Budget, steps: u32) -> Result<Tensor> {
        self.away(&self.batch.target, ball, steps)
    }

    fn away(&self, labels: &Labels, ball: Budget, steps: u32) -> Result<Tensor> {
        let pgd = Pgd {
            start: Start::Clean,
            short_reach: true,
            ..Pgd::new(ball, step(), steps)
        };
        let pass = self.run.eval(&self.batch.samples);
        let moved = craft(
            &pgd,
            &self.twin.frozen,
            &self.batch.pixels,
            Aim::Away(labels),
            &pass,
        )?;
        Ok(moved.tensor().clone())
    }

    /// The loss of one batch of all images whose adversarial half is `moved`.
    fn mixture(&self, moved: &Pixels, clean_weight: f64) -> Result<Vec<f64>> {
        let pass = self.run.train(&self.batch.samples);
        values(&mixture(
            &self.twin,
            &self.batch,
            moved,
            clean_weight,
            &pass,
        )?)
    }

    /// The loss of the objective on one batch of all images.
    fn loss(&self, objective: &mut EpochWise) -> Result<Vec<f64>> {
        let pass = self.run.train(&self.batch.samples);
        values(&objective.loss(&self.twin, &self.batch, &pass)?)
    }
}

fn step() -> Eps {
    eps(EPS).over(10).unwrap()
}

#[test]
fn a_cycle_without_updates_is_bim() -> Result<()> {
    let bench = Bench::new()?;
    let mut objective = EpochWise::new(eps(EPS), Reading::default())?;
    for e in 0..20 {
        bench.epoch(&mut objective, e)?;
        if [0, 4, 9, 19].contains(&e) {
            let carried = objective.carried(&bench.batch)?;
            let bim = bench.steps(linf(EPS), e as u32 + 1)?;
            assert!(bits(carried.tensor())? == bits(&bim)?, "after epoch {e}");
        }
    }
    // The paper's BIM(10) is where the first ten epochs lead.
    let bim10 = bim(eps(EPS), step(), 10)?;
    let pass = bench.run.eval(&bench.batch.samples);
    let aim = Aim::Away(&bench.batch.target);
    let bim10 = craft(&bim10, &bench.twin.frozen, &bench.batch.pixels, aim, &pass)?;
    assert!(bits(bim10.tensor())? == bits(&bench.steps(linf(EPS), 10)?)?);
    Ok(())
}

#[test]
fn carried_images_stay_in_ball_and_box() -> Result<()> {
    let bench = Bench::new()?;
    for store in [Store::F32, Store::U8] {
        let mut objective = EpochWise::new(
            eps(EPS),
            Reading {
                store,
                ..Reading::default()
            },
        )?;
        for e in 0..12 {
            bench.epoch(&mut objective, e)?;
            let carried = Pixels::new(objective.carried(&bench.batch)?.tensor().clone())?;
            let spent = linf(EPS).spent(&carried, &bench.batch.pixels)?;
            let reach = EPS.min((e + 1) as f64 * step().get());
            let level = if store == Store::U8 {
                (e + 1) as f64 * EPS / 254.0
            } else {
                0.0
            };
            for spent in spent {
                assert!(spent <= EPS + 1e-7, "{store:?}, epoch {e}: {spent}");
                assert!(
                    (spent - reach).abs() <= level + 1e-6 || e > 9,
                    "epoch {e}: {spent}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn the_first_step_is_exactly_a_tenth() -> Result<()> {
    let bench = Bench::new()?;
    let carried = values(&bench.carried(Reading::default(), 1)?)?;
    let (pixels, labels) = (&bench.batch.pixels, &bench.batch.target);
    let pass = bench.run.eval(&bench.batch.samples);
    let (_, g) = gradient(pixels, &pass, |x| bench.twin.frozen.loss(x, labels, &pass))?;
    let (clean, g) = (values(pixels.tensor())?, values(&g)?);
    let step = step().get();
    let mut free = 0;
    for ((x, moved), g) in clean.iter().zip(&carried).zip(&g) {
        let sign = if *g == 0.0 { 0.0 } else { g.signum() };
        let aimed = x + sign * step;
        if sign != 0.0 && (0.0..=1.0).contains(&aimed) {
            free += 1;
            // Half a unit in the last place of an f32 below 1, and of the step in f32.
            assert!(
                (moved - aimed).abs() <= 1e-7,
                "{x} to {moved}, expected {aimed}"
            );
        } else {
            assert!(
                (moved - aimed.clamp(0.0, 1.0)).abs() <= 1e-7,
                "{x} to {moved}"
            );
        }
    }
    assert!(
        free > clean.len() / 4,
        "{free} of {} pixels were free to move",
        clean.len()
    );
    Ok(())
}

#[test]
fn epoch_twenty_starts_again_from_the_clean_images() -> Result<()> {
    let bench = Bench::new()?;
    let after_20 = bench.carried(Reading::default(), 20)?;
    let after_21 = bench.carried(Reading::default(), 21)?;
    assert!(bits(&after_21)? == bits(&bench.steps(linf(EPS), 1)?)?);
    assert!(bits(&after_21)? != bits(&after_20)?);
    Ok(())
}

#[test]
fn gradient_passes_a_batch_are_those_of_the_paper() -> Result<()> {
    fn passes(mut objective: impl Objective<Network>) -> Result<Vec<f64>> {
        // 72 images: the last batch is a quarter of the others.
        let history = train(&network(2)?, &mut objective, &fashion(72), 2)?;
        Ok(history.iter().map(theriac_train::Epoch::passes).collect())
    }
    let fgsm = Fgsm { budget: linf(EPS) };
    let fgsm_adv = AdversarialTraining {
        attack: fgsm,
        clean_weight: 0.5,
        label: LabelSource::Predicted,
        mode: Mode::Eval,
    };
    let bim_adv = |n| -> Result<_> {
        let attack = bim(eps(EPS), eps(EPS).over(n)?, n)?;
        Ok(AdversarialTraining {
            attack,
            clean_weight: 0.5,
            label: LabelSource::True,
            mode: Mode::Eval,
        })
    };
    assert_eq!(passes(Clean)?, [1.0, 1.0]);
    assert_eq!(passes(fgsm_adv)?, [2.0, 2.0]);
    assert_eq!(
        passes(EpochWise::new(eps(EPS), Reading::default())?)?,
        [2.0, 2.0]
    );
    assert_eq!(passes(Atda::new(fgsm))?, [2.0, 2.0]);
    assert_eq!(passes(bim_adv(10)?)?, [11.0, 11.0]);
    assert_eq!(passes(bim_adv(30)?)?, [31.0, 31.0]);
    Ok(())
}

#[test]
fn reset_every_sets_the_length_of_a_cycle() -> Result<()> {
    let bench = Bench::new()?;
    let reading = Reading {
        reset_every: 3,
        ..Reading::default()
    };
    for (epochs, steps) in [(3, 3), (4, 1), (6, 3), (7, 1)] {
        let carried = bench.carried(reading, epochs)?;
        assert!(
            bits(&carried)? == bits(&bench.steps(linf(EPS), steps)?)?,
            "{epochs} epochs"
        );
    }
    Ok(())
}

#[test]
fn limit_total_caps_the_perturbation_at_a_tenth() -> Result<()> {
    let bench = Bench::new()?;
    let reading = Reading {
        limit: Limit::Total,
        ..Reading::default()
    };
    let carried = bench.carried(reading, 5)?;
    assert!(bits(&carried)? == bits(&bench.steps(Budget::linf(step())?, 5)?)?);
    let moved = Norm::Linf.of(&(&carried - bench.batch.pixels.tensor())?)?;
    assert!(
        moved
            .iter()
            .all(|spent| (spent - step().get()).abs() < 1e-6)
    );
    Ok(())
}

#[test]
fn after_cap_freeze_stops_after_ten_steps() -> Result<()> {
    let bench = Bench::new()?;
    let reading = Reading {
        after_cap: AfterCap::Freeze,
        ..Reading::default()
    };
    let ten = bits(&bench.steps(linf(EPS), 10)?)?;
    let before = bench.run.meter().gradients();
    for epochs in [10, 11, 20] {
        assert!(
            bits(&bench.carried(reading, epochs)?)? == ten,
            "{epochs} epochs"
        );
    }
    // A frozen epoch takes no crafting gradient.
    let taken = bench.run.meter().gradients() - before;
    assert_eq!(taken, 3 * 10 * IMAGES as u64);
    assert!(bits(&bench.carried(reading, 21)?)? == bits(&bench.steps(linf(EPS), 1)?)?);
    assert!(
        bits(&bench.carried(Reading::default(), 11)?)? != ten,
        "project goes on"
    );
    Ok(())
}

#[test]
fn after_cap_reset_starts_again_after_ten_steps() -> Result<()> {
    let bench = Bench::new()?;
    let reading = Reading {
        after_cap: AfterCap::Reset,
        ..Reading::default()
    };
    for (epochs, steps) in [(10, 10), (11, 1), (20, 10), (21, 1)] {
        let carried = bench.carried(reading, epochs)?;
        assert!(
            bits(&carried)? == bits(&bench.steps(linf(EPS), steps)?)?,
            "{epochs} epochs"
        );
    }
    Ok(())
}

#[test]
fn attack_first_decides_which_weights_the_step_sees() -> Result<()> {
    for attack_first in [true, false] {
        let bench = Bench::new()?;
        let mut objective = EpochWise::new(
            eps(EPS),
            Reading {
                attack_first,
                ..Reading::default()
            },
        )?;
        let clean = &bench.batch.pixels;
        let before = bench.steps(linf(EPS), 1)?;
        let loss = bench.loss(&mut objective)?;
        let learned = if attack_first {
            Pixels::new(before.clone())?
        } else {
            clean.clone()
        };
        assert_eq!(loss, bench.mixture(&learned, 0.5)?);
        assert!(bits(objective.carried(&bench.batch)?.tensor())? == bits(learned.tensor())?);

        // The update, as large as can be: other weights altogether.
        bench
            .twin
            .params
            .load(&golden::path("model_rob.safetensors"))?;
        let pass = bench.run.train(&bench.batch.samples);
        objective.after_update(&bench.twin, &bench.batch, &pass)?;
        let after = bench.steps(linf(EPS), 1)?;
        assert!(bits(&before)? != bits(&after)?);
        let expected = if attack_first { before } else { after };
        assert!(bits(objective.carried(&bench.batch)?.tensor())? == bits(&expected)?);
    }
    Ok(())
}

#[test]
fn use_x0_learns_each_version_an_epoch_later() -> Result<()> {
    let bench = Bench::new()?;
    let mut objective = EpochWise::new(
        eps(EPS),
        Reading {
            use_x0: true,
            ..Reading::default()
        },
    )?;
    let mut learned = bench.batch.pixels.clone();
    for steps in 1..4 {
        assert_eq!(
            bench.loss(&mut objective)?,
            bench.mixture(&learned, 0.5)?,
            "step {steps}"
        );
        learned = objective.carried(&bench.batch)?;
        assert!(bits(learned.tensor())? == bits(&bench.steps(linf(EPS), steps)?)?);
    }
    Ok(())
}

#[test]
fn reset_noise_is_drawn_once_a_cycle() -> Result<()> {
    const NOISE: f64 = 0.002;
    let bench = Bench::new()?;
    let reading = Reading {
        reset_noise: NOISE,
        reset_every: 5,
        ..Reading::default()
    };
    let [one, two, five, six] =
        [1, 2, 5, 6].map(|epochs| bench.carried(reading, epochs).and_then(|t| values(&t)));
    let (one, two, five, six) = (one?, two?, five?, six?);
    let clean = values(bench.batch.pixels.tensor())?;
    let step = step().get();
    // What is left of a perturbation when the steps are taken away, where nothing was clipped.
    let rest = |from: &[f64], to: &[f64]| -> Vec<f64> {
        let inner = |x: f64| (3.0 * step..=1.0 - 3.0 * step).contains(&x);
        let moves = from.iter().zip(to).zip(&clean).filter(|(_, x)| inner(**x));
        moves
            .map(|((a, b), _)| (b - a) - (b - a).signum() * step)
            .collect()
    };
    let deviation =
        |rest: &[f64]| (rest.iter().map(|r| r * r).sum::<f64>() / rest.len() as f64).sqrt();
    let first = rest(&clean, &one);
    assert!(first.len() > 1000);
    let mean = first.iter().sum::<f64>() / first.len() as f64;
    assert!(mean.abs() < 0.1 * NOISE, "{mean}");
    assert!(
        (deviation(&first) / NOISE - 1.0).abs() < 0.1,
        "{}",
        deviation(&first)
    );
    assert!(deviation(&rest(&one, &two)) < 1e-7, "noise inside a cycle");
    assert!((deviation(&rest(&clean, &six)) / NOISE - 1.0).abs() < 0.1);
    assert_ne!(rest(&clean, &six), first, "the same noise after a reset");
    let within = clean
        .iter()
        .zip(&five)
        .all(|(x, moved)| (moved - x).abs() <= EPS + 1e-7);
    assert!(within, "noise left the ball");
    assert_eq!(
        values(&bench.carried(reading, 1)?)?,
        one,
        "the seed fixes it"
    );
    Ok(())
}

#[test]
fn clean_weight_mixes_the_halves() -> Result<()> {
    let bench = Bench::new()?;
    let loss = |clean_weight| -> Result<f64> {
        let reading = Reading {
            clean_weight,
            ..Reading::default()
        };
        Ok(bench.loss(&mut EpochWise::new(eps(EPS), reading)?)?[0])
    };
    let pass = bench.run.train(&bench.batch.samples);
    let clean = values(&Clean.loss(&bench.twin, &bench.batch, &pass)?)?[0];
    let (adversarial, quarter, only_clean) = (loss(0.0)?, loss(0.25)?, loss(1.0)?);
    assert!((only_clean - clean).abs() < 1e-6 * clean);
    assert!(
        adversarial > 1.1 * clean,
        "the step did nothing: {adversarial} and {clean}"
    );
    assert!((quarter - (0.25 * clean + 0.75 * adversarial)).abs() < 1e-6 * adversarial);
    Ok(())
}

#[test]
fn label_predicted_moves_away_from_the_prediction() -> Result<()> {
    let mut bench = Bench::new()?;
    let wrong: Vec<u32> = bench
        .batch
        .target
        .to_vec()?
        .iter()
        .map(|l| (l + 1) % 10)
        .collect();
    bench.batch.target = Labels::new(&wrong, 10, &Device::Cpu)?;
    let pass = bench.run.eval(&bench.batch.samples);
    let predicted = predict(&bench.twin.frozen, &bench.batch.pixels, &pass)?;
    let from_predicted = bench.away(&predicted, linf(EPS), 1)?;
    let from_given = bench.steps(linf(EPS), 1)?;
    assert!(bits(&from_predicted)? != bits(&from_given)?);
    for (label, expected) in [
        (LabelSource::True, from_given),
        (LabelSource::Predicted, from_predicted),
    ] {
        let carried = bench.carried(
            Reading {
                label,
                ..Reading::default()
            },
            1,
        )?;
        assert!(bits(&carried)? == bits(&expected)?, "{label:?}");
    }
    Ok(())
}

#[test]
fn store_u8_is_close_to_store_f32() -> Result<()> {
    let bench = Bench::new()?;
    let half_a_level = EPS / 254.0;
    let reading = Reading {
        store: Store::U8,
        ..Reading::default()
    };
    let bytes = bench.carried(reading, 1)?;
    let floats = bench.carried(Reading::default(), 1)?;
    assert!(largest_difference(&bytes, &floats)? <= half_a_level + 1e-6);
    // Each epoch rounds once more, and a gradient whose sign flips for it moves a whole step; the
    // images must stay as strong.
    for epochs in [10, 20] {
        let loss = |reading| -> Result<f64> {
            let moved = Pixels::new(bench.carried(reading, epochs)?)?;
            Ok(bench.mixture(&moved, 0.0)?[0])
        };
        let (bytes, floats) = (loss(reading)?, loss(Reading::default())?);
        assert!(
            (bytes / floats - 1.0).abs() < 0.03,
            "{bytes} against {floats}"
        );
    }
    Ok(())
}
