//! What the parts compute, and what they promise together.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{DType, Device, Tensor};
use theriac::{
    Aim, Attack as _, Batch, Budget, Classifier, Labels, Model as _, Pass, Pixels, Result, Rng,
    Run, Transform, gradient,
};
use theriac_attacks::Pgd;
use theriac_data::{Loader, Order, Partial, synthetic};
use theriac_magnet::{
    AutoEncoder, Denoise, Detector, Divergence, Evasion, Judgement, MagNet, Part, Reconstruction,
    Score, auto_encoder, threshold,
};
use theriac_nn::{Params, Plain, Twin};
use theriac_train::{Adam, Group, Objective, Schedule};

fn batch(n: usize, dtype: DType) -> Batch<Labels> {
    let run = Run::new(0, &Device::Cpu);
    let images = synthetic(n, [1, 8, 8], 4, &run.rng()).unwrap();
    let loader = Loader::new(&images, n, Order::Sequential, Partial::Keep).unwrap();
    loader.dtype(dtype).epoch(0).next().unwrap().unwrap()
}

fn encoder(parts: &[Part], dtype: DType) -> (Params, Twin<AutoEncoder>) {
    let params = Params::new(3, dtype, &Device::Cpu);
    let twin = Twin::build(&params, |vb| auto_encoder(&Plain, vb, 1, parts)).unwrap();
    (params, twin)
}

fn host(t: &Tensor) -> Vec<f64> {
    let t = t.to_dtype(DType::F64).unwrap();
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// z = W x, four classes.
struct Linear;

impl Classifier for Linear {
    fn logits(&self, x: &Pixels, _: &Pass<'_>) -> Result<Tensor> {
        let weights = Rng::new(1).normal("weights", 0, 64 * 4);
        let weights = Tensor::from_vec(weights, (64, 4), &Device::Cpu)?;
        let x = x.tensor().flatten_from(1)?;
        Ok(x.matmul(&weights.to_dtype(x.dtype())?)?)
    }

    fn classes(&self) -> usize {
        4
    }
}

/// A 3x3 convolution from a to b channels has 9 a b + b parameters.
#[test]
fn auto_encoders_have_the_layers_of_the_paper() {
    let count = |parts: &[Part]| encoder(parts, DType::F32).0.count();
    assert_eq!(count(&Part::TWO), 30 + 84 + 28);
    assert_eq!(count(&Part::ONE), 30 + 84 + 84 + 84 + 28);
    let (params, _) = encoder(&Part::ONE, DType::F32);
    let paths: Vec<String> = params.all().into_iter().map(|(path, _)| path).collect();
    let layers = ["decoder.0", "decoder.2", "encoder.0", "encoder.2", "output"];
    let expected = layers.map(|at| [format!("{at}.bias"), format!("{at}.weight")]);
    assert_eq!(paths, expected.concat());
}

#[test]
fn gradients_agree_with_differences() {
    let (batch, run) = (batch(3, DType::F64), Run::new(0, &Device::Cpu));
    let pass = run.eval(&batch.samples);
    for parts in [&Part::ONE[..], &Part::TWO, &[Part::Conv(2), Part::MaxPool]] {
        let (_, twin) = encoder(parts, DType::F64);
        let inner = Pixels::new(batch.pixels.tensor().affine(0.8, 0.1).unwrap()).unwrap();
        let value = |x: &Pixels| twin.frozen.loss(x, &batch.target, &pass);
        let (at, slopes) = gradient(&inner, &pass, value).unwrap();
        let h = Rng::new(5).normal("h", 0, 3 * 64);
        let h = Tensor::from_vec(h, (3, 1, 8, 8), &Device::Cpu).unwrap();
        let h = (h.to_dtype(DType::F64).unwrap() * 1e-6).unwrap();
        let moved = Pixels::new((inner.tensor() + &h).unwrap()).unwrap();
        let expected = host(&(value(&moved).unwrap() - at).unwrap());
        let actual = (slopes * h)
            .unwrap()
            .flatten_from(1)
            .unwrap()
            .sum(1)
            .unwrap();
        for (a, e) in host(&actual).iter().zip(expected) {
            assert!(
                (a - e).abs() < 1e-4 * e.abs().max(1e-7),
                "{parts:?}: {a} against {e}"
            );
        }
    }
}

/// Pooling and enlarging by 2: a constant image stays constant away from the edges, and every 2 x 2
/// block of what comes out of the enlargement has one value.
#[test]
fn images_keep_their_shape_and_odd_sides_are_refused() {
    let (batch, run) = (batch(3, DType::F32), Run::new(0, &Device::Cpu));
    let pass = run.eval(&batch.samples);
    let (_, twin) = encoder(&Part::ONE, DType::F32);
    let made = twin.frozen.apply(&batch.pixels, &pass).unwrap();
    assert_eq!(made.tensor().dims(), [3, 1, 8, 8]);
    assert!(host(made.tensor()).iter().all(|v| (0.0..=1.0).contains(v)));
    let odd = Tensor::zeros((1, 1, 7, 8), DType::F32, &Device::Cpu).unwrap();
    let error = twin
        .frozen
        .apply(&Pixels::new(odd).unwrap(), &run.eval(&[0]));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("halves"), "{error}");
    let none = auto_encoder(
        &Plain,
        Params::new(0, DType::F32, &Device::Cpu).live(),
        0,
        &Part::TWO,
    );
    assert!(none.err().unwrap().to_string().contains("channels"));
}

/// In plain numbers.
#[test]
fn marks_are_errors_and_divergences() {
    let (batch, run) = (batch(5, DType::F64), Run::new(0, &Device::Cpu));
    let pass = run.eval(&batch.samples);
    let (_, twin) = encoder(&Part::TWO, DType::F64);
    let ae = &twin.frozen;
    let x = host(batch.pixels.tensor());
    let made = ae.apply(&batch.pixels, &pass).unwrap();
    let y = host(made.tensor());
    for power in [1, 2] {
        let detector = Reconstruction {
            auto_encoder: ae,
            power,
        };
        let marks = host(&detector.marks(&batch.pixels, &pass).unwrap());
        for ((mark, x), y) in marks.iter().zip(x.chunks(64)).zip(y.chunks(64)) {
            let gaps = x
                .iter()
                .zip(y)
                .map(|(a, b)| (a - b).abs().powi(power as i32));
            assert!((mark - gaps.sum::<f64>() / 64.0).abs() < 1e-12);
        }
    }
    let softmax = |x: &Pixels, t: f64| -> Vec<Vec<f64>> {
        let rows = Linear.logits(x, &pass).unwrap().to_vec2::<f64>().unwrap();
        let row = |row: Vec<f64>| {
            let parts: Vec<f64> = row.iter().map(|z| (z / t).exp()).collect();
            let sum: f64 = parts.iter().sum();
            parts.iter().map(|p| p / sum).collect()
        };
        rows.into_iter().map(row).collect()
    };
    for temperature in [1.0, 10.0] {
        let detector = Divergence {
            auto_encoder: ae,
            model: Linear,
            temperature,
        };
        let marks = host(&detector.marks(&batch.pixels, &pass).unwrap());
        let (p, q) = (
            softmax(&batch.pixels, temperature),
            softmax(&made, temperature),
        );
        for ((mark, p), q) in marks.iter().zip(&p).zip(&q) {
            let kl = |a: &[f64], b: &[f64]| -> f64 {
                a.iter()
                    .zip(b)
                    .map(|(a, b)| a * (2.0 * a / (a + b)).ln())
                    .sum()
            };
            let expected = 0.5 * (kl(p, q) + kl(q, p));
            assert!((mark - expected).abs() < 1e-9, "{mark} against {expected}");
            assert!((0.0..=2f64.ln()).contains(mark));
        }
    }
}

#[test]
fn a_threshold_drops_its_share_of_clean_images() {
    let marks: Vec<f64> = (0..1000).map(|i| f64::from((i * 7) % 1000)).collect();
    for (rate, dropped) in [(0.001, 1), (0.01, 10), (0.1, 100), (1.0, 1000)] {
        let limit = threshold(&marks, rate).unwrap();
        assert_eq!(marks.iter().filter(|m| **m >= limit).count(), dropped);
    }
    assert_eq!(threshold(&marks, 0.0).unwrap(), 999.0);
    assert!(threshold(&[], 0.1).is_err());
    let text = threshold(&marks, 1.5).unwrap_err().to_string();
    assert!(text.contains("drop_rate"), "{text}");
}

#[test]
fn both_ways_to_score_a_rejection() {
    let judged = |rejected, label| Judgement { rejected, label };
    let all = [
        judged(false, 1),
        judged(false, 2),
        judged(true, 1),
        judged(true, 3),
    ];
    let score = Score::of(&all, &[1, 1, 1, 1]);
    assert_eq!((score.n, score.rejected, score.correct), (4, 2, 1));
    assert_eq!((score.strict(), score.lenient()), (0.25, 0.75));
}

#[test]
fn noise_is_drawn_once_or_in_every_epoch() {
    let (batch, run) = (batch(5, DType::F32), Run::new(0, &Device::Cpu));
    let (_, twin) = encoder(&Part::TWO, DType::F32);
    let loss = |once, epoch| {
        let pass = run.train(&batch.samples).fork(epoch);
        let mut denoise = Denoise { sigma: 0.1, once };
        host(&denoise.loss(&twin, &batch, &pass).unwrap())[0]
    };
    let once = Some(Rng::new(3));
    assert_eq!(loss(once, 0), loss(once, 1));
    assert_ne!(loss(None, 0), loss(None, 1));
}

/// Trained, it rebuilds its data better than noise, so a detector tells them apart; an attacker who
/// knows the detector is not told.
#[test]
fn detects_noise_and_is_evaded_by_who_knows_it() {
    let (batch, run) = (batch(64, DType::F32), Run::new(0, &Device::Cpu));
    let (params, twin) = encoder(&Part::TWO, DType::F32);
    let rate = Schedule::Constant { rate: 0.02 };
    let mut groups = [Group::new(params.trainable(), Adam::default(), rate).unwrap()];
    let mut denoise = Denoise {
        sigma: 0.05,
        once: None,
    };
    let plan = theriac_train::Plan {
        epochs: 200,
        batches: 1,
        state: None,
        until: None,
    };
    let epoch = |_| [Ok(batch.clone())].into_iter();
    let on = |_| std::ops::ControlFlow::Continue(());
    theriac_train::fit(&twin, &mut denoise, &mut groups, plan, &run, epoch, on).unwrap();
    let pass = run.eval(&batch.samples);
    let detector = Reconstruction {
        auto_encoder: &twin.frozen,
        power: 1,
    };
    let clean = host(&detector.marks(&batch.pixels, &pass).unwrap());
    let limit = threshold(&clean, 0.05).unwrap();
    let magnet = MagNet {
        model: Linear,
        reformer: &twin.frozen,
        detectors: vec![(Box::new(detector), limit)],
    };
    let rejected = |x: &Pixels| {
        let judged = magnet.judge(x, &pass).unwrap();
        judged.iter().filter(|j| j.rejected).count()
    };
    assert_eq!(rejected(&batch.pixels), 3);
    let noise = pass.uniform("test", &batch.pixels).unwrap();
    let noisy = Pixels::clamp(&(batch.pixels.tensor() + (noise * 0.3).unwrap()).unwrap()).unwrap();
    let noticed = rejected(&noisy);
    assert!(noticed > 32, "{noticed} of 64");

    // The labels are the model's own, so an attack has something to change.
    let labels = theriac::predict(&magnet, &batch.pixels, &pass).unwrap();
    let budget = Budget::linf("0.3".parse().unwrap()).unwrap();
    let pgd = Pgd::new(budget, "0.05".parse().unwrap(), 40);
    let passed_and_wrong = |x: &Pixels| {
        let judged = magnet.judge(x, &pass).unwrap();
        let truth = labels.to_vec().unwrap();
        let wrong = judged
            .iter()
            .zip(truth)
            .filter(|(j, y)| !j.rejected && j.label != *y);
        wrong.count()
    };
    let aim = Aim::Away(&labels);
    let unaware = pgd.perturb(&Linear, &batch.pixels, aim, &pass).unwrap();
    let evasion = Evasion {
        magnet: &magnet,
        weight: 20.0,
    };
    let aware = pgd.perturb(&evasion, &batch.pixels, aim, &pass).unwrap();
    let (unaware, aware) = (passed_and_wrong(&unaware), passed_and_wrong(&aware));
    assert!(
        aware > unaware,
        "{aware} who know against {unaware} who do not, of 64"
    );
}
