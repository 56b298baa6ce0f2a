//! What Learn2Perturb promises.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{DType, Device, Tensor, Var};
use theriac::{
    Aim, Batch, Budget, Classifier as _, Labels, Mode, Result, Rng, Run, craft, gradient,
};
use theriac_attacks::Pgd;
use theriac_data::{Loader, Order, Partial, synthetic};
use theriac_learn2perturb::{
    Learn2Perturb, Placement, RegRate, RegReduce, ThetaMomentum, ThetaShape, ThetaUpdate,
};
use theriac_models::{resnet_v1, resnet18_cifar};
use theriac_nn::{Layers, Network, Params, Plain, Share, Twin, VarBuilder};
use theriac_train::{Clean, Group, Objective, Outcome, Plan, Schedule, Sgd, fit};

const RATE: f64 = 0.1;

fn batch(n: usize) -> Batch<Labels> {
    let run = Run::new(0, &Device::Cpu);
    let images = synthetic(n, [3, 16, 16], 10, &run.rng()).unwrap();
    let loader = Loader::new(&images, n, Order::Sequential, Partial::Keep).unwrap();
    loader.epoch(0).next().unwrap().unwrap()
}

/// ResNet-8 for images of 16 x 16: its sites have theirs.
struct Half<'a>(&'a dyn Layers);

impl Layers for Half<'_> {
    fn site(
        &self,
        site: theriac_nn::Site,
        (c, h, w): (usize, usize, usize),
        vb: VarBuilder,
    ) -> Result<Box<dyn theriac_nn::Layer>> {
        self.0.site(site, (c, h / 2, w / 2), vb)
    }
}

fn small(layers: &dyn Layers, vb: VarBuilder) -> Result<Network> {
    resnet_v1(&Half(layers), vb, 8, 8, 10)
}

fn twins(method: &Learn2Perturb) -> [Twin<Network>; 2] {
    let params = Params::new(1, DType::F32, &Device::Cpu);
    let plain = Twin::build(&params, |vb| small(&Plain, vb)).unwrap();
    [
        plain,
        Twin::build(&params, |vb| small(&method.hook(), vb)).unwrap(),
    ]
}

fn host(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn values(variables: &[(String, Var)]) -> Vec<f32> {
    variables.iter().flat_map(|(_, var)| host(var)).collect()
}

fn pgd() -> Pgd {
    let budget = Budget::linf("8/255".parse().unwrap()).unwrap();
    Pgd::new(budget, "0.02".parse().unwrap(), 2)
}

fn sgd() -> Sgd {
    let mut rule = Sgd::momentum(0.9);
    rule.nesterov = true;
    rule
}

fn rate() -> Schedule {
    Schedule::Constant { rate: RATE }
}

/// Trains for some epochs of three batches.
fn train<O: Objective<Network>>(
    twin: &Twin<Network>,
    objective: &mut O,
    groups: &mut [Group],
    epochs: usize,
) {
    let run = Run::new(7, &Device::Cpu);
    let images = synthetic(36, [3, 16, 16], 10, &run.rng()).unwrap();
    let loader = Loader::new(&images, 12, Order::Shuffled(Rng::new(4)), Partial::Keep).unwrap();
    let plan = Plan {
        epochs,
        batches: loader.batches(),
        state: None,
        until: None,
    };
    let epoch = |e| loader.epoch(e).map(|batch| Ok(batch?));
    let go_on = |_| std::ops::ControlFlow::Continue(());
    fit(twin, objective, groups, plan, &run, epoch, go_on).unwrap();
}

/// Tables 1 and 2 print the parameters of the eight networks, theta not counted.
#[test]
fn networks_have_the_papers_parameters_and_a_theta_for_each_value_of_their_sites() {
    let method = Learn2Perturb::default();
    let v1 = |depth, width| {
        move |layers: &dyn Layers, vb: VarBuilder| resnet_v1(layers, vb, depth, width, 10)
    };
    type Make = Box<dyn Fn(&dyn Layers, VarBuilder) -> Result<Network>>;
    let v2: Make = Box::new(|layers, vb| resnet18_cifar(layers, vb, 10));
    let cases: [(Make, usize, usize); 8] = [
        (Box::new(v1(20, 16)), 269_722, 102_400),
        (Box::new(v1(32, 16)), 464_154, 159_744),
        (Box::new(v1(44, 16)), 658_586, 217_088),
        (Box::new(v1(56, 16)), 853_018, 274_432),
        (Box::new(v1(20, 24)), 605_026, 153_600),
        (Box::new(v1(20, 32)), 1_073_962, 204_800),
        (Box::new(v1(20, 64)), 4_286_026, 409_600),
        (v2, 11_173_962, 311_296),
    ];
    for (make, weights, thetas) in cases {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        make(&Plain, params.live()).unwrap();
        assert_eq!(params.count(), weights);
        make(&method.hook(), params.live()).unwrap();
        let all = method.thetas(&params).unwrap();
        let count: usize = all.iter().map(|(_, theta)| theta.elem_count()).sum();
        assert_eq!((count, params.count()), (thetas, weights + thetas));
    }
    // ResNet-20: a stem and nine blocks; or nineteen convolutions outside of shortcuts.
    for (theta, placement, count) in [
        (
            ThetaShape::Channel,
            Placement::Block,
            16 + 3 * (16 + 32 + 64),
        ),
        (ThetaShape::Layer, Placement::Block, 10),
        (ThetaShape::Layer, Placement::EveryConv, 19),
        (
            ThetaShape::Channel,
            Placement::EveryConv,
            16 + 6 * (16 + 32 + 64),
        ),
    ] {
        let method = Learn2Perturb {
            theta,
            placement,
            ..Learn2Perturb::default()
        };
        let params = Params::new(0, DType::F32, &Device::Cpu);
        resnet_v1(&method.hook(), params.live(), 20, 16, 10).unwrap();
        let all = method.thetas(&params).unwrap();
        assert_eq!(
            all.iter().map(|(_, t)| t.elem_count()).sum::<usize>(),
            count
        );
        assert!(all.iter().all(|(_, t)| host(t).iter().all(|v| *v == 0.25)));
    }
    let params = Params::new(0, DType::F32, &Device::Cpu);
    resnet_v1(&Plain, params.live(), 8, 16, 10).unwrap();
    assert!(method.thetas(&params).is_err());
}

/// Noise of size 0, theta at rest, no attack: ordinary training.
#[test]
fn without_noise_and_attack_it_is_ordinary_training_bit_for_bit() {
    let plainly = {
        let [plain, _] = twins(&Learn2Perturb::default());
        let mut others = plain.params.trainable();
        others.retain(|(path, _)| !path.ends_with("theta"));
        let mut groups = [Group::new(others.clone(), sgd(), rate()).unwrap()];
        train(&plain, &mut Clean, &mut groups, 3);
        values(&others)
    };
    let still = Learn2Perturb {
        init: 0.0,
        minimum: 0.0,
        gamma: 0.0,
        regulariser_only: true,
        noise_delay: 0,
        adv_delay: usize::MAX,
        ..Learn2Perturb::default()
    };
    // Before the noise starts the network is the one without, whatever theta.
    let later = Learn2Perturb {
        noise_delay: 3,
        adv_delay: usize::MAX,
        ..Learn2Perturb::default()
    };
    for method in [still, later] {
        let [plain, twin] = twins(&method);
        let (mut objective, mut groups) =
            method.training(plain, pgd(), sgd(), sgd(), rate()).unwrap();
        train(&twin, &mut objective, &mut groups, 3);
        let mut others = twin.params.trainable();
        others.retain(|(path, _)| !path.ends_with("theta"));
        assert!(values(&others) == plainly, "{method:?}");
        let thetas = values(&method.thetas(&twin.params).unwrap());
        assert!(thetas.iter().all(|t| f64::from(*t) == method.init));
    }
}

/// One step of the regulariser alone, by hand: Nesterov's first step is 1.9 times the gradient.
#[test]
fn the_regulariser_raises_theta_by_its_slope() {
    let base = Learn2Perturb {
        regulariser_only: true,
        noise_delay: 0,
        adv_delay: usize::MAX,
        gamma: 0.01,
        init: 0.16,
        ..Learn2Perturb::default()
    };
    let slope = 0.01 * 0.5 / 0.4;
    for (reg_lr, theta_update, reg_reduce, expected) in [
        (
            RegRate::Lr,
            ThetaUpdate::TwoStep,
            RegReduce::Sum,
            RATE * 1.9 * slope,
        ),
        (
            RegRate::One,
            ThetaUpdate::TwoStep,
            RegReduce::Sum,
            1.9 * slope,
        ),
        (RegRate::One, ThetaUpdate::Alg1, RegReduce::Sum, slope),
        (RegRate::Lr, ThetaUpdate::Alg1, RegReduce::Sum, RATE * slope),
        (RegRate::One, ThetaUpdate::Alg1, RegReduce::Mean, slope),
    ] {
        let method = Learn2Perturb {
            reg_lr,
            theta_update,
            reg_reduce,
            ..base.clone()
        };
        let [plain, twin] = twins(&method);
        let all = method.thetas(&twin.params).unwrap();
        let total: usize = all.iter().map(|(_, t)| t.elem_count()).sum();
        let expected = match reg_reduce {
            RegReduce::Sum => expected,
            RegReduce::Mean => expected / total as f64,
        };
        let (mut objective, mut groups) =
            method.training(plain, pgd(), sgd(), sgd(), rate()).unwrap();
        let run = Run::new(7, &Device::Cpu);
        let one = batch(12);
        let plan = Plan {
            epochs: 1,
            batches: 1,
            state: None,
            until: None,
        };
        let epoch = |_| std::iter::once(Ok(one.clone()));
        let go_on = |_| std::ops::ControlFlow::Continue(());
        fit(&twin, &mut objective, &mut groups, plan, &run, epoch, go_on).unwrap();
        for theta in values(&all) {
            let moved = f64::from(theta) - 0.16;
            assert!(
                (moved - expected).abs() < 1e-6,
                "{method:?}: {moved} against {expected}"
            );
        }
    }
}

/// One training step by hand: step A, the two halves of the loss, step B with the momentum that A left;
/// and algorithm 1, which takes both gradients at the old theta.
#[test]
fn a_step_is_that_of_the_algorithm() {
    for theta_update in [ThetaUpdate::TwoStep, ThetaUpdate::Alg1] {
        let method = Learn2Perturb {
            theta_update,
            noise_delay: 0,
            adv_delay: 0,
            gamma: 0.01,
            ..Learn2Perturb::default()
        };
        let [plain, twin] = twins(&method);
        let (mut objective, mut groups) =
            method.training(plain, pgd(), sgd(), sgd(), rate()).unwrap();
        let (run, one) = (Run::new(7, &Device::Cpu), batch(12));
        let plan = Plan {
            epochs: 1,
            batches: 1,
            state: None,
            until: None,
        };
        let epoch = |_| std::iter::once(Ok(one.clone()));
        let go_on = |_| std::ops::ControlFlow::Continue(());
        let outcome = fit(&twin, &mut objective, &mut groups, plan, &run, epoch, go_on);
        let Outcome::Done(history) = outcome.unwrap() else {
            panic!("nobody stopped it");
        };

        // tau is 1 in the first epoch. Nesterov: b = 0.9 b + g, step = g + 0.9 b.
        let [_, hand] = twins(&method);
        let thetas = method.thetas(&hand.params).unwrap();
        let slope = |theta: f32| -0.01 * 0.5 / f64::from(theta).sqrt();
        let mut buffer = 0.0;
        if theta_update == ThetaUpdate::TwoStep {
            buffer = slope(0.25);
            let after = 0.25 - RATE * 1.9 * buffer;
            for (_, theta) in &thetas {
                let value = Tensor::full(after as f32, theta.shape(), &Device::Cpu).unwrap();
                theta.set(&value).unwrap();
            }
        }
        let pass = run.train(&one.samples).fork(0).at(0);
        let (x, y) = (&one.pixels, one.target.tensor());
        let logits = hand.live.logits(x, &pass.fork(0)).unwrap();
        let labels = Labels::most_likely(&logits).unwrap();
        let aim = Aim::Away(&labels);
        let moved = craft(&pgd(), &hand.frozen, x, aim, &pass.eval().fork(1)).unwrap();
        let second = hand.live.logits(&moved, &pass.fork(2)).unwrap();
        let mean = |logits: &Tensor| candle_nn::loss::cross_entropy(logits, y).unwrap();
        let loss = ((mean(&logits) + mean(&second)).unwrap() * 0.5).unwrap();
        let value = f64::from(loss.to_scalar::<f32>().unwrap());
        let told = history[0].loss;
        assert!(
            (told - value).abs() < 1e-5 * value,
            "{told} against {value}"
        );
        let grads = loss.backward().unwrap();
        let found = method.thetas(&twin.params).unwrap();
        for ((path, theta), (_, found)) in thetas.iter().zip(&found) {
            let slopes = host(grads.get(theta).unwrap());
            for ((theta, g), found) in host(theta).into_iter().zip(slopes).zip(host(found)) {
                let g = f64::from(g);
                let step = g + 0.9 * (0.9 * buffer + g);
                let more = match theta_update {
                    ThetaUpdate::TwoStep => 0.0,
                    ThetaUpdate::Alg1 => slope(theta),
                };
                let expected = (f64::from(theta) - RATE * (step + more)).max(method.minimum);
                let gap = (f64::from(found) - expected).abs();
                assert!(gap < 1e-5, "{path}: {found} against {expected}");
            }
        }
    }
}

/// What the readings of the update do with theta.
#[test]
fn readings_of_the_update_differ_and_theta_stays_above_its_minimum() {
    let run_with = |method: &Learn2Perturb, epochs| {
        let [plain, twin] = twins(method);
        let (mut objective, mut groups) =
            method.training(plain, pgd(), sgd(), sgd(), rate()).unwrap();
        train(&twin, &mut objective, &mut groups, epochs);
        values(&method.thetas(&twin.params).unwrap())
    };
    let base = Learn2Perturb {
        noise_delay: 0,
        adv_delay: 1,
        minimum: 0.2499,
        ..Learn2Perturb::default()
    };
    let thetas = run_with(&base, 3);
    assert!(thetas.iter().all(|t| *t >= 0.2499));
    assert!(thetas.contains(&0.2499), "none was projected");
    let mut all = vec![thetas];
    for other in [
        Learn2Perturb {
            theta_update: ThetaUpdate::Alg1,
            ..base.clone()
        },
        Learn2Perturb {
            theta_momentum: ThetaMomentum::Separate,
            ..base.clone()
        },
        Learn2Perturb {
            regulariser_only: true,
            ..base.clone()
        },
        Learn2Perturb {
            noise_share: Share::Batch,
            ..base.clone()
        },
        Learn2Perturb {
            tau_offset: 0,
            ..base.clone()
        },
    ] {
        all.push(run_with(&other, 3));
    }
    for (i, a) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|b| a != b), "case {i} changes nothing");
    }
}

/// Without the learning rate, gamma does what gamma / rate does with it, momentum included.
#[test]
fn the_rate_of_the_regulariser_is_a_factor_of_gamma() {
    for theta_update in [ThetaUpdate::TwoStep, ThetaUpdate::Alg1] {
        let with = |reg_lr, gamma| {
            let method = Learn2Perturb {
                reg_lr,
                gamma,
                theta_update,
                noise_delay: 0,
                adv_delay: usize::MAX,
                ..Learn2Perturb::default()
            };
            let [plain, twin] = twins(&method);
            let (mut objective, mut groups) =
                method.training(plain, pgd(), sgd(), sgd(), rate()).unwrap();
            train(&twin, &mut objective, &mut groups, 1);
            values(&method.thetas(&twin.params).unwrap())
        };
        let (one, lr) = (with(RegRate::One, 1e-4), with(RegRate::Lr, 1e-4 / RATE));
        for (a, b) in one.iter().zip(&lr) {
            assert!((a - b).abs() < 1e-5, "{theta_update:?}: {a} against {b}");
        }
        assert!(with(RegRate::Lr, 1e-4) != lr);
    }
}

/// Two images of one content: different noise each, or one for the batch.
#[test]
fn images_have_noise_of_their_own_or_share_it() {
    let one = batch(2);
    let image = one.pixels.narrow(0, 1).unwrap();
    let pair = theriac::Pixels::cat(&[image.clone(), image.clone()]).unwrap();
    let run = Run::new(5, &Device::Cpu);
    let pass = run.eval(&[8, 9]);
    for (noise_share, same) in [(Share::Sample, false), (Share::Batch, true)] {
        let method = Learn2Perturb {
            noise_share,
            ..Learn2Perturb::default()
        };
        let [_, twin] = twins(&method);
        let rows = twin
            .frozen
            .logits(&pair, &pass)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        assert_eq!(rows[0] == rows[1], same);
        // Over copies in one batch the gradient has variance zero then.
        let square = |x: &theriac::Pixels| Ok(twin.frozen.logits(x, &pass)?.sqr()?.sum(1)?);
        let (_, slopes) = gradient(&pair, &pass, square).unwrap();
        let rows = slopes.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows[0] == rows[1], same);
        // Alone in a batch, and live, an image has the noise that it has in another.
        let alone = twin.live.logits(&image, &run.eval(&[9])).unwrap();
        let together = twin.frozen.logits(&pair, &pass).unwrap();
        for (a, b) in host(&alone).iter().zip(&host(&together)[10..]) {
            assert!((a - b).abs() < 1e-4, "{a} against {b}");
        }
        // Fresh in each pass, in both modes.
        for mode in [Mode::Eval, Mode::Train] {
            let logits = |step| {
                let pass = theriac::Pass {
                    mode,
                    ..pass.at(step)
                };
                host(&twin.frozen.logits(&pair, &pass).unwrap())
            };
            assert_eq!(logits(1), logits(1));
            assert_ne!(logits(1), logits(2));
        }
    }
}
