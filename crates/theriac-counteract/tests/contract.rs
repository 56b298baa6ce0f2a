//! What the defence promises.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{D, DType, Device, Tensor};
use theriac::{
    Aim, Attack as _, Budget, Classifier, Eps, Executions, Labels, Norm, Pass, Pixels, Result, Rng,
    Run, Transform, Transformed, predict,
};
use theriac_attacks::{Fgsm, Pgd};
use theriac_counteract::{AddBack, Counteract, Kind, Pool, Settings, Start, Untargeted};

const CLASSES: usize = 10;

/// z = W x.
struct Linear(Tensor);

impl Linear {
    fn new(classes: usize) -> Self {
        let weights = Rng::new(1).normal("weights", 0, 48 * classes);
        let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
        Self(Tensor::from_vec(weights, (48, classes), &Device::Cpu).unwrap())
    }
}

impl Classifier for Linear {
    fn logits(&self, x: &Pixels, _: &Pass<'_>) -> Result<Tensor> {
        Ok(x.tensor().flatten_from(1)?.matmul(&self.0)?)
    }

    fn classes(&self) -> usize {
        self.0.dims()[1]
    }
}

fn images(n: usize) -> Pixels {
    let values = Rng::new(2).uniform("x", 0, n * 48);
    // Away from the ends: nothing is cut.
    let values: Vec<f64> = values
        .into_iter()
        .map(|u| 0.2 + 0.6 * f64::from(u))
        .collect();
    Pixels::new(Tensor::from_vec(values, (n, 3, 4, 4), &Device::Cpu).unwrap()).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

const IDS: [u32; 5] = [3, 1, 4, 15, 9];

fn with(settings: Settings) -> Counteract<Linear> {
    Counteract::new(Linear::new(CLASSES), settings).unwrap()
}

#[test]
fn moves_no_further_than_the_bound_and_no_less_than_a_step() {
    let (run, x) = (Run::new(0, &Device::Cpu), images(5));
    let delta = with(Settings::default())
        .delta(&x, &run.eval(&IDS))
        .unwrap();
    for d in values(&delta) {
        // A sum of nine signs is odd: 1, 3, .. steps, of which two fill the bound.
        assert!(
            (4.0 / 255.0 - 1e-9..=8.0 / 255.0 + 1e-9).contains(&d.abs()),
            "{d}"
        );
    }
    let moved = with(Settings::default())
        .apply(&x, &run.eval(&IDS))
        .unwrap();
    let budget = Budget::linf("8/255".parse().unwrap()).unwrap();
    assert!(
        budget
            .spent(&moved, &x)
            .unwrap()
            .iter()
            .all(|d| *d <= 8.0 / 255.0 + 1e-9)
    );
    // At the ends the result is cut to the cube.
    let black = Pixels::new(x.tensor().zeros_like().unwrap()).unwrap();
    let moved = with(Settings::default())
        .apply(&black, &run.eval(&IDS))
        .unwrap();
    assert!(values(moved.tensor()).iter().all(|v| *v >= 0.0));
}

/// Nine of nine labels: a random order of all of them, and a sum knows no order.
#[test]
fn with_all_other_labels_nothing_is_random() {
    let x = images(5);
    let moved = |settings, classes, seed| {
        let run = Run::new(seed, &Device::Cpu);
        let defended = Counteract::new(Linear::new(classes), settings).unwrap();
        values(defended.apply(&x, &run.eval(&IDS)).unwrap().tensor())
    };
    let nine = Settings::default();
    assert_eq!(moved(nine, 10, 0), moved(nine, 10, 1));
    assert_ne!(moved(nine, 100, 0), moved(nine, 100, 1));
    let three = Settings { labels: 3, ..nine };
    assert_ne!(moved(three, 10, 0), moved(three, 10, 1));
}

#[test]
fn an_image_alone_is_an_image_in_a_batch() {
    let (run, x) = (Run::new(0, &Device::Cpu), images(5));
    for settings in switches() {
        let defended = with(settings);
        let together = defended.apply(&x, &run.eval(&IDS)).unwrap();
        let alone = defended.apply(&x.narrow(2, 1).unwrap(), &run.eval(&IDS[2..3]));
        let together = together.narrow(2, 1).unwrap();
        let gap = values(&(together.tensor() - alone.unwrap().tensor()).unwrap());
        assert!(gap.iter().all(|d| d.abs() < 1e-12), "{settings:?}");
    }
}

fn switches() -> Vec<Settings> {
    let all = Settings::default();
    vec![
        all,
        Settings {
            kind: Kind::Untargeted,
            ..all
        },
        Settings {
            kind: Kind::Untargeted,
            untargeted: Untargeted::Predicted,
            ..all
        },
        Settings {
            pool: Pool::Any,
            labels: 4,
            ..all
        },
        Settings {
            pool: Pool::WithReplacement,
            labels: 30,
            ..all
        },
        Settings {
            start: Start::Step,
            ..all
        },
        Settings {
            start: Start::Bound,
            sequential: true,
            ..all
        },
        Settings {
            sequential: true,
            ..all
        },
    ]
}

#[test]
fn every_switch_changes_what_is_done_and_keeps_the_bound() {
    let (run, x) = (Run::new(0, &Device::Cpu), images(5));
    let mut seen: Vec<Vec<f64>> = Vec::new();
    for settings in switches() {
        let delta = with(settings).delta(&x, &run.eval(&IDS)).unwrap();
        let delta = values(&delta);
        assert!(delta.iter().all(|d| d.abs() <= 8.0 / 255.0 + 1e-9));
        assert!(!seen.contains(&delta), "{settings:?}");
        seen.push(delta);
    }
    // Toward and away are opposite.
    let opposite: Vec<f64> = seen[1].iter().map(|d| -d).collect();
    assert_eq!(seen[0], opposite);
}

/// Toward label l of a linear model: z_l rises against the mean of the logits. Here l is the one
/// label that is drawn.
#[test]
fn a_step_toward_a_label_raises_its_logit() {
    let (run, x) = (Run::new(0, &Device::Cpu), images(5));
    let pass = run.eval(&IDS);
    let model = Linear::new(2);
    let margin = |x: &Pixels| -> Vec<f64> {
        let z = model.logits(x, &pass).unwrap();
        let rows = z.to_vec2::<f64>().unwrap();
        rows.iter()
            .map(|row| row[0] - (row[0] + row[1]) / 2.0)
            .collect()
    };
    for (kind, toward) in [(Kind::Targeted, 1.0), (Kind::Untargeted, -1.0)] {
        let settings = Settings {
            kind,
            labels: 1,
            ..Settings::default()
        };
        let defended = Counteract::new(&model, settings).unwrap();
        let moved = defended.apply(&x, &pass).unwrap();
        // The one other class than the predicted.
        let drawn = predict(&model, &x, &pass).unwrap().to_vec().unwrap();
        for ((before, after), predicted) in margin(&x).iter().zip(margin(&moved)).zip(drawn) {
            let up = if predicted == 1 {
                after - before
            } else {
                before - after
            };
            assert!(toward * up > 0.0, "{kind:?}: {before} to {after}");
        }
    }
}

/// The signs by hand: the gradient of CE(z, l) is W (p - e_l).
#[test]
fn is_the_clipped_sum_of_signs() {
    let (run, x) = (Run::new(0, &Device::Cpu), images(5));
    let pass = run.eval(&IDS);
    let model = Linear::new(CLASSES);
    let z = model.logits(&x, &pass).unwrap();
    let p = z
        .broadcast_sub(&z.max_keepdim(D::Minus1).unwrap())
        .unwrap()
        .exp()
        .unwrap();
    let p = p.broadcast_div(&p.sum_keepdim(1).unwrap()).unwrap();
    let (p, w) = (
        p.to_vec2::<f64>().unwrap(),
        model.0.to_vec2::<f64>().unwrap(),
    );
    let delta = Counteract::new(&model, Settings::default())
        .unwrap()
        .delta(&x, &pass)
        .unwrap();
    let delta = delta.flatten_from(1).unwrap().to_vec2::<f64>().unwrap();
    for (p, delta) in p.iter().zip(delta) {
        let top = theriac::largest(p) as usize;
        for (w, d) in w.iter().zip(delta) {
            let mean: f64 = w.iter().zip(p).map(|(w, p)| w * p).sum();
            let signs = (0..CLASSES)
                .filter(|&l| l != top)
                .map(|l| (mean - w[l]).signum());
            let expected = (-4.0 / 255.0 * signs.sum::<f64>()).clamp(-8.0 / 255.0, 8.0 / 255.0);
            assert!((d - expected).abs() < 1e-12, "{d} against {expected}");
        }
    }
}

#[test]
fn costs_nine_gradients_and_a_forward_pass() {
    let (run, x) = (Run::new(0, &Device::Cpu), images(5));
    predict(&with(Settings::default()), &x, &run.eval(&IDS)).unwrap();
    let work = run.meter().total();
    // One for each label; the forward pass that labels come from is that of the gradients.
    assert_eq!((work.gradients, work.forwards), (5 * 9, 5));
}

#[test]
fn more_labels_than_classes_are_refused() {
    for (labels, pool, classes, fits) in [
        (9, Pool::NonPredicted, 10, true),
        (10, Pool::NonPredicted, 10, false),
        (10, Pool::Any, 10, true),
        (11, Pool::Any, 10, false),
        (20, Pool::WithReplacement, 10, true),
        (0, Pool::Any, 10, false),
    ] {
        let settings = Settings {
            labels,
            pool,
            ..Settings::default()
        };
        let made = Counteract::new(Linear::new(classes), settings);
        assert_eq!(made.is_ok(), fits, "{labels} of {pool:?}");
        if let Err(error) = made {
            assert!(error.to_string().contains("labels"), "{error}");
        }
    }
}

/// Once before the executions or anew in each: the second moves a dimmed image.
#[test]
fn combines_with_other_defences_in_any_order() {
    struct Half;
    impl Transform for Half {
        fn apply(&self, x: &Pixels, _: &Pass<'_>) -> Result<Pixels> {
            x.through(|x| Ok((x * 0.5)?))
        }
    }
    let (run, x) = (Run::new(0, &Device::Cpu), images(5));
    let pass = run.eval(&IDS);
    let model = Linear::new(CLASSES);
    let counteract = Counteract::new(&model, Settings::default()).unwrap();
    let logits = |defended: &dyn Classifier| {
        let z = defended.logits(&x, &pass).unwrap();
        values(&z)
    };
    let close = |a: Vec<f64>, b: &Tensor| {
        let b = b
            .broadcast_sub(&b.log_sum_exp(1).unwrap().unsqueeze(1).unwrap())
            .unwrap();
        a.iter().zip(values(&b)).all(|(a, b)| (a - b).abs() < 1e-9)
    };
    let once = Transformed {
        model: Executions::new(&model, Half, 3),
        transform: counteract,
    };
    let moved = Half
        .apply(&counteract.apply(&x, &pass).unwrap(), &pass)
        .unwrap();
    assert!(close(logits(&once), &model.logits(&moved, &pass).unwrap()));
    let each = Executions::new(&model, (Half, counteract), 3);
    let moved = counteract
        .apply(&Half.apply(&x, &pass).unwrap(), &pass)
        .unwrap();
    assert!(close(logits(&each), &model.logits(&moved, &pass).unwrap()));
}

/// A linear model leaves nothing to chance: the defence lowers the loss of an attacked image, an
/// attack that takes it back undoes that as far as its ball allows.
#[test]
fn taking_back_what_it_adds_beats_attacking_the_bare_classifier() {
    let (run, x) = (Run::new(0, &Device::Cpu), images(5));
    let pass = run.eval(&IDS);
    let defended = with(Settings {
        bound: "2/255".parse().unwrap(),
        step: "2/255".parse().unwrap(),
        ..Settings::default()
    });
    let labels = predict(&defended.model, &x, &pass).unwrap();
    let aim = Aim::Away(&labels);
    let budget = Budget::linf("8/255".parse().unwrap()).unwrap();
    let fgsm = Fgsm { budget };
    let loss = |x: &Pixels| {
        use theriac::Model as _;
        defended
            .loss(x, &labels, &pass)
            .unwrap()
            .to_vec1::<f64>()
            .unwrap()
    };
    let bare = fgsm.perturb(&defended.model, &x, aim, &pass).unwrap();
    let attack = AddBack {
        attack: fgsm,
        budget,
        rounds: 3,
    };
    let back = attack.perturb(&defended, &x, aim, &pass).unwrap();
    let within = budget.spent(&back, &x).unwrap();
    assert!(within.iter().all(|d| *d <= 8.0 / 255.0 + 1e-9));
    for (back, bare) in loss(&back).iter().zip(loss(&bare)) {
        assert!(*back >= bare, "{back} against {bare}");
    }
    // Gradients go through: PGD on the defended classifier finds a larger loss than the clean image.
    let step: Eps = "2/255".parse().unwrap();
    let through = Pgd::new(budget, step, 10)
        .perturb(&defended, &x, aim, &pass)
        .unwrap();
    for (after, before) in loss(&through).iter().zip(loss(&x)) {
        assert!(after > &before, "{after} against {before}");
    }
}

#[test]
fn a_gradient_through_it_is_that_of_the_identity() {
    let (run, x) = (Run::new(0, &Device::Cpu), images(5));
    let pass = run.eval(&IDS);
    let defended = with(Settings::default());
    let label = Labels::new(&[0; 5], CLASSES, &Device::Cpu).unwrap();
    let slopes = |at: &Pixels, model: &dyn Classifier| {
        use theriac::Model as _;
        let loss = |x: &Pixels| model.loss(x, &label, &pass);
        let (_, slopes) = theriac::gradient(at, &pass, loss).unwrap();
        slopes
    };
    let moved = defended.apply(&x, &pass).unwrap();
    let expected = values(&slopes(&moved, &defended.model));
    let actual = slopes(&x, &defended);
    assert!(
        Norm::Linf
            .of(&actual)
            .unwrap()
            .iter()
            .all(|size| *size > 0.0)
    );
    for (a, e) in values(&actual).iter().zip(expected) {
        assert!((a - e).abs() < 1e-12);
    }
    assert_eq!(actual.dtype(), DType::F64);
}
