//! Beneficial biases: how they move, what each reading changes, what their masking looks like.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use theriac::{Batch, Labels, Result, Rng, Run};
use theriac_attacks::{Fgsm, Spec};
use theriac_bpn::{BiasInit, BiasOpt, BiasRule, Bpn, Sign, Which};
use theriac_data::{Images, Loader, Order, Partial};
use theriac_eval::{Evaluator, Finding, Verdict};
use theriac_models::lenet;
use theriac_nn::{Layers, Linear, Network, Params, Plain, Twin};
use theriac_train::{Adam, Clean, Plan, Rule, Schedule, Sgd, fit};

use crate::support::{fashion, largest_difference, linf, snapshot, values, whole};

const RATE: f64 = 0.1;

fn constant(rate: f64) -> Schedule {
    Schedule::Constant { rate }
}

/// One fully connected layer: 4 pixels, 3 classes.
fn single(layers: &dyn Layers) -> Result<Twin<Network>> {
    let params = Params::new(3, DType::F32, &Device::Cpu);
    Twin::build(&params, |vb| {
        let mut net = Network::new(3);
        let x = net.image();
        let x = net.flatten(x);
        net.layer(x, layers.linear(&Linear::new(4, 3), vb.pp("fc"))?);
        Ok(net)
    })
}

fn lenet_twin(layers: &dyn Layers, seed: u64) -> Result<Twin<Network>> {
    let params = Params::new(seed, DType::F32, &Device::Cpu);
    Twin::build(&params, |vb| lenet(layers, vb))
}

fn two_images() -> Images {
    let bytes = vec![0, 51, 102, 255, 204, 30, 90, 10];
    Images::new("two", bytes, [2u32, 0], [1, 2, 2], 3).unwrap()
}

/// Epochs of plain training, with the biases as `bpn` says.
fn train<R: Rule + Clone + 'static>(
    bpn: &Bpn,
    twin: &Twin<Network>,
    images: &Images,
    batch: usize,
    epochs: usize,
    rule: R,
) -> Result<()> {
    let classes = theriac::Classifier::classes(&twin.live);
    let mut groups = bpn.groups(&twin.params, classes, rule, constant(RATE))?;
    let mut objective = bpn.objective(Clean, &twin.params, classes, constant(RATE))?;
    let loader = Loader::new(images, batch, Order::Shuffled(Rng::new(6)), Partial::Keep)?;
    let plan = Plan {
        epochs,
        batches: loader.batches(),
        state: None,
        until: None,
    };
    let run = Run::new(5, &Device::Cpu);
    let epoch = |e| loader.epoch(e).map(|batch| Ok(batch?));
    let go_on = |_| ControlFlow::Continue(());
    let _ = fit(twin, &mut objective, &mut groups, plan, &run, epoch, go_on)?;
    Ok(())
}

fn find(twin: &Twin<Network>, path: &str) -> Option<Vec<f64>> {
    let all = twin.params.all();
    let (_, var) = all.iter().find(|(name, _)| name == path)?;
    values(var).ok()
}

fn get(twin: &Twin<Network>, path: &str) -> Result<Vec<f64>> {
    Ok(find(twin, path).unwrap())
}

/// Gradients of the mean cross entropy of softmax regression, in plain arithmetic: of the weights
/// (classes, pixels) and of the biases.
fn by_hand(images: &Images, weights: &[f64], biases: &[f64]) -> Result<(Vec<f64>, Vec<f64>)> {
    let batch: Batch<Labels> = whole(images)?;
    let (pixels, labels) = (values(batch.pixels.tensor())?, batch.target.to_vec()?);
    let (mut of_weights, mut of_biases) = (vec![0.0; 12], vec![0.0; 3]);
    for (x, label) in pixels.chunks(4).zip(labels) {
        let logit = |k: usize| {
            let row = weights[4 * k..4 * k + 4].iter();
            biases[k] + row.zip(x).map(|(w, x)| w * x).sum::<f64>()
        };
        let powers: Vec<f64> = (0..3).map(|k| logit(k).exp()).collect();
        let sum: f64 = powers.iter().sum();
        for k in 0..3 {
            let hit = f64::from(u8::from(k == label as usize));
            let slope = (powers[k] / sum - hit) / 2.0;
            of_biases[k] += slope;
            (0..4).for_each(|i| of_weights[4 * k + i] += slope * x[i]);
        }
    }
    Ok((of_weights, of_biases))
}

fn assert_close(ours: &[f64], theirs: &[f64], what: &str) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() < 1e-6, "{what}: {ours:?}, not {theirs:?}");
    }
}

fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

#[test]
fn one_step_is_that_of_the_equations() -> Result<()> {
    let images = two_images();
    for (sign_of, s) in [(Sign::Equation, 1.0), (Sign::Text, -1.0)] {
        let bpn = Bpn {
            sign: sign_of,
            train_eps: 0.3,
            init: BiasInit::Uniform,
            ..Bpn::default()
        };
        let twin = single(&bpn.hook())?;
        let (w, b) = (get(&twin, "fc.weight")?, get(&twin, "fc.beneficial")?);
        assert!(b.iter().all(|b| *b != 0.0 && b.abs() <= 0.5), "{b:?}");
        let (of_w, of_b) = by_hand(&images, &w, &b)?;
        train(&bpn, &twin, &images, 2, 1, Sgd::momentum(0.9))?;
        let moved = |(w, g): (&f64, &f64)| w - RATE * g;
        let expected: Vec<f64> = w.iter().zip(&of_w).map(moved).collect();
        assert_close(&get(&twin, "fc.weight")?, &expected, "weights");
        let moved = |(b, g): (&f64, &f64)| b + s * RATE * 0.3 * sign(*g);
        let expected: Vec<f64> = b.iter().zip(&of_b).map(moved).collect();
        assert_close(&get(&twin, "fc.beneficial")?, &expected, "biases");
    }
    Ok(())
}

#[test]
fn the_two_signs_mirror_each_other() -> Result<()> {
    let step = |sign| -> Result<_> {
        let bpn = Bpn {
            sign,
            ..Bpn::default()
        };
        let twin = lenet_twin(&bpn.hook(), 1)?;
        train(&bpn, &twin, &fashion(32), 32, 1, Sgd::momentum(0.9))?;
        let mut others = snapshot(&twin.params)?;
        others.retain(|(path, _)| !path.ends_with("beneficial"));
        let mut biases = Vec::new();
        for (_, bias) in bpn.biases(&twin.params, 10)? {
            biases.extend(values(&bias)?);
        }
        Ok((others, biases))
    };
    let (up, down) = (step(Sign::Equation)?, step(Sign::Text)?);
    assert!(up.0 == down.0, "weights move alike");
    assert_eq!(up.1.len(), 120 + 84 + 10);
    let negated: Vec<f64> = down.1.iter().map(|b| -b).collect();
    assert_eq!(up.1, negated);
    let size = RATE as f32;
    assert!(up.1.iter().all(|b| *b == 0.0 || b.abs() as f32 == size));
    assert!(up.1.iter().filter(|b| **b != 0.0).count() > 107);
    Ok(())
}

#[test]
fn the_twin_has_as_many_parameters() -> Result<()> {
    let count = |layers: &dyn Layers| -> Result<usize> {
        let all = lenet_twin(layers, 0)?.params.all();
        Ok(all.iter().map(|(_, var)| var.elem_count()).sum())
    };
    let bpn = Bpn::default();
    assert_eq!(count(&bpn.hook())?, count(&Plain)?);
    let both = Bpn {
        keep_bias: true,
        ..bpn
    };
    assert_eq!(count(&both.hook())?, count(&Plain)? + 120 + 84 + 10);
    Ok(())
}

/// A network that computes as one operation and node by node gives the same, and a beneficial bias
/// counts as the sum of both.
#[test]
fn a_beneficial_bias_is_added() -> Result<()> {
    let images = whole(&fashion(20))?;
    let pass_of = Run::new(1, &Device::Cpu);
    let pass = pass_of.eval(&images.samples);
    for keep_bias in [false, true] {
        let bpn = Bpn {
            keep_bias,
            init: BiasInit::Uniform,
            ..Bpn::default()
        };
        let twin = lenet_twin(&bpn.hook(), 4)?;
        let x = images.pixels.tensor();
        let one = twin.frozen.forward(x, &pass)?;
        let apart = twin.frozen.step_by_step(x, &pass)?;
        assert!(largest_difference(&one, &apart)? < 1e-6);

        let plain = lenet_twin(&Plain, 0)?;
        for (path, var) in plain.params.all() {
            let own = find(&twin, &path);
            let layer = path.rsplit_once('.').unwrap().0;
            let value = match find(&twin, &format!("{layer}.beneficial")) {
                Some(extra) if path.ends_with("bias") => {
                    assert_eq!(own.is_some(), keep_bias);
                    let own = own.unwrap_or_else(|| vec![0.0; extra.len()]);
                    own.iter().zip(extra).map(|(a, b)| a + b).collect()
                }
                _ => own.unwrap(),
            };
            let value = Tensor::from_vec(value, var.shape(), &Device::Cpu)?;
            var.set(&value.to_dtype(DType::F32)?)?;
        }
        let same = plain.frozen.forward(x, &pass)?;
        assert!(largest_difference(&one, &same)? < 1e-5);
    }
    Ok(())
}

#[test]
fn only_the_chosen_layers_move_by_sign() -> Result<()> {
    for (layers, paths) in [
        (Which::All, &["fc1", "fc2", "fc3"][..]),
        (Which::Hidden, &["fc1", "fc2"]),
        (Which::Last, &["fc3"]),
    ] {
        let bpn = Bpn {
            layers,
            ..Bpn::default()
        };
        let twin = lenet_twin(&bpn.hook(), 1)?;
        let found = bpn.biases(&twin.params, 10)?;
        let found: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
        let wanted: Vec<String> = paths.iter().map(|p| format!("{p}.beneficial")).collect();
        assert_eq!(found, wanted);
        train(&bpn, &twin, &fashion(32), 32, 1, Sgd::momentum(0.9))?;
        for path in ["fc1", "fc2", "fc3"] {
            let by_sign = get(&twin, &format!("{path}.beneficial"))?;
            let whole = by_sign
                .iter()
                .all(|b| *b == 0.0 || b.abs() as f32 == RATE as f32);
            assert_eq!(
                whole,
                paths.contains(&path),
                "{layers:?}: {path} {by_sign:?}"
            );
        }
    }
    Ok(())
}

/// After Adam's first step a bias has moved by the rate, whatever epsilon is: Adam divides by the
/// gradient's size. SGD's momentum moves it by rate and epsilon.
#[test]
fn through_the_optimiser_epsilon_may_vanish() -> Result<()> {
    let after = |train_eps, adam: bool| -> Result<Vec<f64>> {
        let bpn = Bpn {
            bias_opt: BiasOpt::Same,
            train_eps,
            ..Bpn::default()
        };
        let twin = lenet_twin(&bpn.hook(), 1)?;
        match adam {
            true => train(&bpn, &twin, &fashion(32), 32, 3, Adam::default())?,
            false => train(&bpn, &twin, &fashion(32), 32, 2, Sgd::momentum(0.9))?,
        }
        get(&twin, "fc3.beneficial")
    };
    for (one, ten) in after(1.0, true)?.iter().zip(after(10.0, true)?) {
        assert!((one - ten).abs() < 1e-5, "{one} and {ten}");
        assert!(one.abs() > 0.0);
    }
    // Two steps of one sign: 1, then 1 + 0.9.
    let largest = after(0.5, false)?
        .into_iter()
        .fold(0.0, |a: f64, b| a.max(b.abs()));
    assert!((largest - RATE * 0.5 * 2.9).abs() < 1e-6, "{largest}");
    Ok(())
}

#[test]
fn one_smaller_step_is_the_sign_rule() -> Result<()> {
    let trained = |bias_rule, epochs| -> Result<Vec<(String, Vec<u64>)>> {
        let bpn = Bpn {
            bias_rule,
            ..Bpn::default()
        };
        let twin = lenet_twin(&bpn.hook(), 1)?;
        train(&bpn, &twin, &fashion(48), 16, epochs, Sgd::momentum(0.9))?;
        snapshot(&twin.params)
    };
    assert!(trained(BiasRule::Fgsm, 2)? == trained(BiasRule::Pgd(1), 2)?);
    assert!(trained(BiasRule::Fgsm, 2)? != trained(BiasRule::Pgd(2), 2)?);
    Ok(())
}

/// Two half steps, each at the bias that the one before left, and the weights at the old bias.
#[test]
fn several_steps_are_those_of_the_equations() -> Result<()> {
    let images = two_images();
    let bpn = Bpn {
        train_eps: 2.0,
        bias_rule: BiasRule::Pgd(2),
        bias_clip: Some(0.15),
        ..Bpn::default()
    };
    let twin = single(&bpn.hook())?;
    let w = get(&twin, "fc.weight")?;
    let mut b = vec![0.0; 3];
    let (of_w, _) = by_hand(&images, &w, &b)?;
    for _ in 0..2 {
        let (_, of_b) = by_hand(&images, &w, &b)?;
        let step = |(b, g): (&f64, &f64)| (b + RATE * sign(*g)).clamp(-0.15, 0.15);
        b = b.iter().zip(&of_b).map(step).collect();
    }
    train(&bpn, &twin, &images, 2, 1, Sgd::momentum(0.9))?;
    assert_close(&get(&twin, "fc.beneficial")?, &b, "biases");
    let moved = |(w, g): (&f64, &f64)| w - RATE * g;
    let expected: Vec<f64> = w.iter().zip(&of_w).map(moved).collect();
    assert_close(&get(&twin, "fc.weight")?, &expected, "weights");
    Ok(())
}

#[test]
fn a_limit_holds() -> Result<()> {
    let bpn = Bpn {
        bias_clip: Some(0.25),
        ..Bpn::default()
    };
    let twin = lenet_twin(&bpn.hook(), 1)?;
    train(&bpn, &twin, &fashion(96), 16, 2, Sgd::momentum(0.9))?;
    let (mut at_limit, mut most) = (0, 0.0f64);
    for (_, bias) in bpn.biases(&twin.params, 10)? {
        for b in values(&bias)? {
            most = most.max(b.abs());
            at_limit += usize::from(b.abs() == 0.25);
        }
    }
    assert!(most == 0.25 && at_limit > 0, "{most}, {at_limit}");
    Ok(())
}

/// What a beneficial bias may do in the end: logits so large that the cross entropy has no
/// gradient. FGSM finds nothing, and the number must not pass for robustness.
#[test]
fn saturated_logits_are_not_believed() -> Result<()> {
    let bpn = Bpn {
        sign: Sign::Text,
        train_eps: 0.01,
        ..Bpn::default()
    };
    let twin = lenet_twin(&bpn.hook(), 1)?;
    let images = fashion(256);
    train(&bpn, &twin, &images, 16, 24, Sgd::momentum(0.5))?;
    let run = Run::new(2, &Device::Cpu);
    let loader = Loader::new(&images, 64, Order::Sequential, Partial::Keep)?;
    let attack = Spec::Fgsm(Fgsm { budget: linf(0.1) });
    let measure =
        || Evaluator::new(&twin.frozen, &run).spec(attack.clone(), loader.epoch(0), |_| {});
    let plain = measure()?;
    for (path, var) in twin.params.all() {
        if path == "fc3.weight" || path == "fc3.beneficial" {
            var.set(&(var.as_tensor() * 1e4)?)?;
        }
    }
    let masked = measure()?;
    assert_eq!(plain.clean.correct, masked.clean.correct);
    assert!(
        masked.attacked.value() > plain.attacked.value() + 0.2,
        "{plain}, {masked}"
    );
    assert_eq!(masked.verdict, Verdict::Invalid, "{masked}");
    let zero = masked
        .checks
        .iter()
        .find(|check| check.name == "zero gradients")
        .unwrap();
    assert_eq!(zero.finding, Finding::Invalid);
    assert_ne!(plain.verdict, Verdict::Invalid, "{plain}");
    Ok(())
}

#[test]
fn settings_that_make_no_sense_are_refused() -> Result<()> {
    let twin = lenet_twin(&Bpn::default().hook(), 0)?;
    let refused = |bpn: Bpn, twin: &Twin<Network>| {
        let groups = bpn.groups(&twin.params, 10, Sgd::momentum(0.9), constant(RATE));
        groups
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let bpn = Bpn::default();
    for (bpn, name) in [
        (
            Bpn {
                train_eps: 0.0,
                ..bpn
            },
            "train_eps",
        ),
        (
            Bpn {
                train_eps: f64::NAN,
                ..bpn
            },
            "train_eps",
        ),
        (
            Bpn {
                bias_clip: Some(-1.0),
                ..bpn
            },
            "bias_clip",
        ),
        (
            Bpn {
                bias_rule: BiasRule::Pgd(3),
                bias_opt: BiasOpt::Same,
                ..bpn
            },
            "bias_rule",
        ),
    ] {
        let text = refused(bpn, &twin);
        assert!(text.contains(name), "{name}: {text}");
    }
    let text = refused(bpn, &lenet_twin(&Plain, 0)?);
    assert!(text.contains("no beneficial bias"), "{text}");
    let hidden = Bpn {
        layers: Which::Hidden,
        ..bpn
    };
    let one = single(&hidden.hook())?;
    let error = hidden.biases(&one.params, 3).unwrap_err().to_string();
    assert!(error.contains("no hidden layer"), "{error}");
    for text in ["pgd", "pgd:0", "pgd:x", "FGSM"] {
        let error = text.parse::<BiasRule>().unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    assert_eq!("pgd:7".parse::<BiasRule>()?, BiasRule::Pgd(7));
    Ok(())
}
