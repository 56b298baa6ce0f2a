//! What the method promises.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use candle_core::{DType, Device, Tensor};
use theriac::{Aim, Attack, Batch, Budget, Classifier, Labels, Pass, Pixels, Result, Run, craft};
use theriac_advamd::{
    AUXILIARY, AdvAmd, BnBatches, Deltas, EachBatch, Ladder, OnTheWay, Settings, Through, TwoBanks,
    WeightedLoss as _,
};
use theriac_attacks::{Fgsm, Pgd, Start};
use theriac_data::{Augment, Loader, Order, Partial, synthetic};
use theriac_models::resnet_v1;
use theriac_nn::{Network, Params, Plain, Twin};
use theriac_train::{Clean, Objective};

const N: usize = 12;

fn batch() -> Batch<Labels> {
    let run = Run::new(0, &Device::Cpu);
    let images = synthetic(N, [3, 16, 16], 10, &run.rng()).unwrap();
    let loader = Loader::new(&images, N, Order::Sequential, Partial::Keep).unwrap();
    loader.epoch(0).next().unwrap().unwrap()
}

/// With statistics that are not the initial ones, in both banks.
fn network() -> Twin<Network> {
    let params = Params::new(0, DType::F32, &Device::Cpu);
    let twin = Twin::build(&params, |vb| resnet_v1(&TwoBanks::default(), vb, 8, 16, 10)).unwrap();
    let (batch, run) = (batch(), Run::new(0, &Device::Cpu));
    twin.live
        .logits(&batch.pixels, &run.train(&batch.samples))
        .unwrap();
    TwoBanks::copy(&params).unwrap();
    twin
}

fn linf(eps: &str) -> Budget {
    Budget::linf(eps.parse().unwrap()).unwrap()
}

fn deltas(twin: &Twin<Network>, batch: &Batch<Labels>, eps: &str) -> Deltas {
    deltas_of(&Fgsm { budget: linf(eps) }, twin, batch)
}

fn deltas_of(attack: &impl Attack<Network>, twin: &Twin<Network>, batch: &Batch<Labels>) -> Deltas {
    let run = Run::new(0, &Device::Cpu);
    let pass = run.eval(&batch.samples);
    let aim = Aim::Away(&batch.target);
    let moved = craft(attack, &twin.frozen, &batch.pixels, aim, &pass).unwrap();
    let mut deltas = Deltas::default();
    deltas.keep(&batch.pixels, &moved, &batch.samples).unwrap();
    deltas
}

fn method(settings: Settings, deltas: Deltas) -> AdvAmd {
    AdvAmd {
        settings,
        coefficients: vec![1.0; 10],
        adversary: deltas,
        augment: Augment::default(),
    }
}

fn value(loss: &Tensor) -> f64 {
    f64::from(loss.to_scalar::<f32>().unwrap())
}

/// Evaluation mode: each image's loss stands alone, so parts can be compared.
fn loss(method: &mut AdvAmd, twin: &Twin<Network>, batch: &Batch<Labels>) -> f64 {
    let run = Run::new(0, &Device::Cpu);
    value(&method.loss(twin, batch, &run.eval(&batch.samples)).unwrap())
}

fn only(weights: [f64; 3]) -> Settings {
    Settings {
        weights,
        ..Settings::default()
    }
}

#[test]
fn the_three_losses_coincide_without_perturbation() {
    let (twin, batch) = (network(), batch());
    let deltas = deltas(&twin, &batch, "0");
    let each = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    let each = each.map(|weights| loss(&mut method(only(weights), deltas.clone()), &twin, &batch));
    assert!(
        (each[0] - each[1]).abs() < 1e-6 && (each[0] - each[2]).abs() < 1e-6,
        "{each:?}"
    );
    let all = loss(&mut method(Settings::default(), deltas), &twin, &batch);
    assert!((all - 3.0 * each[0]).abs() < 1e-5);
}

/// phi = 0 is the clean image, phi = 1 the adversarial one.
#[test]
fn mediate_samples_lie_between_clean_and_adversarial_images() {
    let (twin, batch) = (network(), batch());
    let deltas = deltas(&twin, &batch, "0.1");
    let at = |weights, phi| {
        let settings = Settings {
            phi,
            ..only(weights)
        };
        loss(&mut method(settings, deltas.clone()), &twin, &batch)
    };
    let (clean, adversarial) = (at([1.0, 0.0, 0.0], 0.5), at([0.0, 0.0, 1.0], 0.5));
    assert!(adversarial > clean + 0.01, "{clean}, {adversarial}");
    assert!((at([0.0, 1.0, 0.0], 0.0) - clean).abs() < 1e-6);
    assert!((at([0.0, 1.0, 0.0], 1.0) - adversarial).abs() < 1e-6);
}

/// Two steps of four, not half of what four make.
#[test]
fn mediate_samples_can_be_those_on_the_way() {
    let (twin, batch) = (network(), batch());
    let pgd = |steps| {
        let attack = Pgd {
            start: Start::Clean,
            short_reach: true,
            ..Pgd::new(linf("0.1"), "0.04".parse().unwrap(), steps)
        };
        deltas_of(&attack, &twin, &batch)
    };
    let (two, four) = (pgd(2), pgd(4));
    let mut on_the_way = AdvAmd {
        settings: only([0.0, 1.0, 0.0]),
        coefficients: vec![1.0; 10],
        adversary: OnTheWay {
            adversarial: four.clone(),
            mediate: two.clone(),
        },
        augment: Augment::default(),
    };
    let mut at = |weights| {
        on_the_way.settings = only(weights);
        let run = Run::new(0, &Device::Cpu);
        value(
            &on_the_way
                .loss(&twin, &batch, &run.eval(&batch.samples))
                .unwrap(),
        )
    };
    let (mediate, adversarial) = (at([0.0, 1.0, 0.0]), at([0.0, 0.0, 1.0]));
    let whole = |deltas| loss(&mut method(only([0.0, 0.0, 1.0]), deltas), &twin, &batch);
    assert!((mediate - whole(two)).abs() < 1e-6, "{mediate}");
    assert!(
        (adversarial - whole(four.clone())).abs() < 1e-6,
        "{adversarial}"
    );
    let half = loss(&mut method(only([0.0, 1.0, 0.0]), four), &twin, &batch);
    assert!((mediate - half).abs() > 1e-4, "{mediate}, {half}");
}

/// Class 0 where the mean of the pixels is above one half, class 1 elsewhere: FGSM of size eps moves
/// the mean by eps.
struct Brightness;

impl Classifier for Brightness {
    fn logits(&self, x: &Pixels, _: &Pass<'_>) -> Result<Tensor> {
        let above = (x.tensor().flatten_from(1)?.mean_keepdim(1)? - 0.5)?;
        Ok(Tensor::cat(&[&above, &above.neg()?], 1)?)
    }

    fn classes(&self) -> usize {
        2
    }
}

#[test]
fn a_ladder_finds_the_distance_of_a_linear_model() {
    let values = [0.6f32, 0.7, 0.8, 0.45, 0.9];
    let pixels = values.map(|v| [v; 4]).concat();
    let pixels = Tensor::from_vec(pixels, (5, 1, 2, 2), &Device::Cpu).unwrap();
    let pixels = Pixels::new(pixels).unwrap();
    // The last is wrong, and not attacked.
    let labels = Labels::new(&[0, 0, 0, 1, 1], 2, &Device::Cpu).unwrap();
    let sizes = ["0.15", "0.25", "0.35"];
    let attacks = sizes.map(|eps| Fgsm { budget: linf(eps) });
    let mut ladder = Ladder::new(&[0.15, 0.25, 0.35], 2).unwrap();
    let run = Run::new(0, &Device::Cpu);
    let pass = run.eval(&[0, 1, 2, 3, 4]);
    let images = (&pixels, &labels);
    ladder.count(&Brightness, &attacks, images, &pass).unwrap();
    let alpha = [ladder.alpha(0, 1), ladder.alpha(1, 0)];
    assert_eq!(alpha, [0.25 / 0.35, 0.15 / 0.35]);
    let expected = 1.0 - (alpha[0] + alpha[1]) / 2.0;
    for coefficient in ladder.coefficients() {
        assert!((coefficient - expected).abs() < 1e-12);
    }
    let few = ladder.count(&Brightness, &attacks[..2], images, &pass);
    assert!(few.unwrap_err().to_string().contains("attacks"));
}

/// Joint or apart, in evaluation mode nothing changes; in training mode statistics do.
#[test]
fn batches_of_the_ordinary_bank_are_joint_or_separate() {
    let (twin, batch) = (network(), batch());
    let deltas = deltas(&twin, &batch, "0.1");
    let with = |bn_batches| {
        let settings = Settings {
            bn_batches,
            ..only([0.7, 0.3, 0.0])
        };
        method(settings, deltas.clone())
    };
    let [joint, separate] = [BnBatches::Joint, BnBatches::Separate].map(|bn_batches| {
        let eval = loss(&mut with(bn_batches), &twin, &batch);
        let run = Run::new(0, &Device::Cpu);
        let train = with(bn_batches).loss(&network(), &batch, &run.train(&batch.samples));
        (eval, value(&train.unwrap()))
    });
    assert!((joint.0 - separate.0).abs() < 1e-6);
    assert!((joint.1 - separate.1).abs() > 1e-5);
}

fn statistics(twin: &Twin<Network>, auxiliary: bool) -> Vec<f32> {
    let all = twin.params.all().into_iter();
    let wanted = |path: &str| path.contains("running_") && path.contains("auxiliary") == auxiliary;
    all.filter(|(path, _)| wanted(path))
        .flat_map(|(_, var)| var.to_vec1::<f32>().unwrap())
        .collect()
}

#[test]
fn each_bank_sees_its_own_images() {
    let batch = batch();
    let deltas = deltas(&network(), &batch, "0.1");
    for (weights, main, auxiliary) in [
        ([1.0, 0.0, 0.0], true, false),
        ([1.0, 1.0, 0.0], true, false),
        ([1.0, 0.0, 1.0], true, true),
    ] {
        let twin = network();
        let before = [statistics(&twin, false), statistics(&twin, true)];
        let run = Run::new(0, &Device::Cpu);
        let pass = run.train(&batch.samples);
        method(only(weights), deltas.clone())
            .loss(&twin, &batch, &pass)
            .unwrap();
        let after = [statistics(&twin, false), statistics(&twin, true)];
        assert_eq!(before[0] != after[0], main, "{weights:?}");
        assert_eq!(before[1] != after[1], auxiliary, "{weights:?}");
    }
    // Adversarial images alone, through the auxiliary bank: the ordinary one stays.
    let twin = network();
    let before = statistics(&twin, false);
    let run = Run::new(0, &Device::Cpu);
    let pass = Pass {
        bank: AUXILIARY,
        ..run.train(&batch.samples)
    };
    twin.live.logits(&batch.pixels, &pass).unwrap();
    assert_eq!(before, statistics(&twin, false));
}

#[test]
fn the_first_bank_is_the_plain_network_and_others_are_refused() {
    let (twin, batch, run) = (network(), batch(), Run::new(0, &Device::Cpu));
    let plain = Params::new(5, DType::F32, &Device::Cpu);
    let net = resnet_v1(&Plain, plain.frozen(), 8, 16, 10).unwrap();
    TwoBanks::finish(&twin.params, &plain).unwrap();
    let pass = run.eval(&batch.samples);
    let host = |net: &Network, pass: &Pass<'_>| {
        net.logits(&batch.pixels, pass)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap()
    };
    let expected = host(&net, &pass);
    assert_eq!(host(&twin.frozen, &pass), expected);
    let bank = |bank| Pass {
        bank: theriac::Bank(bank),
        ..pass
    };
    assert_eq!(host(&twin.frozen, &bank(1)), expected, "a copy");
    let error = twin
        .frozen
        .logits(&batch.pixels, &bank(2))
        .unwrap_err()
        .to_string();
    assert!(error.contains("bank"), "{error}");
    let error = TwoBanks::copy(&plain).unwrap_err().to_string();
    assert!(error.contains("TwoBanks"), "{error}");
    let deeper = Params::new(5, DType::F32, &Device::Cpu);
    resnet_v1(&Plain, deeper.frozen(), 14, 16, 10).unwrap();
    let error = TwoBanks::finish(&twin.params, &deeper).unwrap_err();
    assert!(error.to_string().contains("layer1.1.bn1.bias"), "{error}");
}

#[test]
fn both_banks_start_from_a_trained_network() {
    let (batch, run) = (batch(), Run::new(0, &Device::Cpu));
    let plain = Params::new(5, DType::F32, &Device::Cpu);
    let net = Twin::build(&plain, |vb| resnet_v1(&Plain, vb, 8, 16, 10)).unwrap();
    // Statistics other than those at the start.
    let train = run.train(&batch.samples);
    net.live.logits(&batch.pixels, &train).unwrap();
    let two = network();
    TwoBanks::start(&two.params, &plain).unwrap();
    let pass = run.eval(&batch.samples);
    let expected = net.frozen.logits(&batch.pixels, &pass).unwrap();
    for bank in [theriac::Bank::default(), AUXILIARY] {
        let logits = two.frozen.logits(&batch.pixels, &Pass { bank, ..pass });
        let host = |logits: &Tensor| logits.to_vec2::<f32>().unwrap();
        assert_eq!(host(&logits.unwrap()), host(&expected));
    }
}

/// FGSM anew on the network as it is finds what FGSM beforehand found, while the auxiliary bank is a
/// copy; and not any more when that bank has seen other images.
#[test]
fn images_made_anew_are_those_of_the_network_as_it_is() {
    let (twin, batch) = (network(), batch());
    let budget = linf("0.1");
    let settings = only([0.5, 0.5, 1.0]);
    let once = loss(
        &mut method(settings, deltas(&twin, &batch, "0.1")),
        &twin,
        &batch,
    );
    let anew = |twin: &Twin<Network>| {
        let mut method = AdvAmd {
            settings,
            coefficients: vec![1.0; 10],
            adversary: EachBatch {
                attack: Fgsm { budget },
            },
            augment: Augment::default(),
        };
        let run = Run::new(0, &Device::Cpu);
        value(
            &method
                .loss(twin, &batch, &run.eval(&batch.samples))
                .unwrap(),
        )
    };
    // A kept perturbation is rounded to 1/254 of its largest value.
    assert!((once - anew(&twin)).abs() < 1e-3 * once, "{once}");
    let run = Run::new(0, &Device::Cpu);
    let pass = Pass {
        bank: AUXILIARY,
        ..run.train(&batch.samples)
    };
    let before = anew(&twin);
    for _ in 0..20 {
        twin.live.logits(&batch.pixels, &pass).unwrap();
    }
    let after = anew(&twin);
    assert!((before - after).abs() > 1e-4, "{before}, {after}");
}

#[test]
fn a_network_can_be_tested_through_either_bank() {
    let (twin, batch, run) = (network(), batch(), Run::new(0, &Device::Cpu));
    let training = Pass {
        bank: AUXILIARY,
        ..run.train(&batch.samples)
    };
    twin.live.logits(&batch.pixels, &training).unwrap();
    let pass = run.eval(&batch.samples);
    let [plain, ordinary, auxiliary] =
        [None, Some(theriac::Bank(0)), Some(AUXILIARY)].map(|bank| {
            let logits = match bank {
                None => twin.frozen.logits(&batch.pixels, &pass),
                Some(bank) => {
                    let model = &twin.frozen;
                    Through { model, bank }.logits(&batch.pixels, &pass)
                }
            };
            logits.unwrap().to_vec2::<f32>().unwrap()
        });
    assert_eq!(plain, ordinary);
    assert_ne!(plain, auxiliary);
    // Parameters that are kept for a pass are kept by bank.
    let both = theriac::in_chunks(&batch.pixels, &pass, |_, x, pass| {
        let rows = |bank| -> Result<Vec<Vec<f32>>> {
            let model = &twin.frozen;
            Ok(Through { model, bank }.logits(x, pass)?.to_vec2()?)
        };
        let banks = (rows(theriac::Bank(0))?, rows(AUXILIARY)?);
        Ok(banks.0.into_iter().zip(banks.1).collect())
    });
    let (first, second): (Vec<_>, Vec<_>) = both.unwrap().into_iter().unzip();
    assert_eq!((first, second), (ordinary, auxiliary));
}

#[test]
fn a_loss_is_weighted_by_its_class() {
    let (twin, batch, run) = (network(), batch(), Run::new(0, &Device::Cpu));
    let pass = run.eval(&batch.samples);
    let coefficients: Vec<f64> = (0..10).map(|k| f64::from(k) / 10.0).collect();
    let host = |t: Tensor| t.to_vec1::<f32>().unwrap();
    let (x, y) = (&batch.pixels, &batch.target);
    let weighted = host(twin.live.weighted_loss(x, y, &coefficients, &pass).unwrap());
    let plain = host(theriac::Model::loss(&twin.live, x, y, &pass).unwrap());
    for ((w, p), label) in weighted.iter().zip(plain).zip(y.to_vec().unwrap()) {
        assert!((w - p * label as f32 / 10.0).abs() < 1e-5);
    }
    let few = twin
        .live
        .weighted_loss(x, y, &coefficients[..2], &pass)
        .unwrap_err();
    assert!(few.to_string().contains("coefficients"), "{few}");
}

/// The control is ordinary training; augmentation moves clean and adversarial images alike.
#[test]
fn the_control_is_ordinary_training() {
    let (twin, batch, run) = (network(), batch(), Run::new(0, &Device::Cpu));
    let pass = run.eval(&batch.samples);
    let deltas = deltas(&twin, &batch, "0.1");
    let control = loss(&mut method(only([1.0, 0.0, 0.0]), deltas), &twin, &batch);
    assert!((control - value(&Clean.loss(&twin, &batch, &pass).unwrap())).abs() < 1e-6);
    // A perturbation of nothing, augmented: the same images three times.
    let mut still = Deltas::default();
    still
        .keep(&batch.pixels, &batch.pixels, &batch.samples)
        .unwrap();
    let mut moved = AdvAmd {
        augment: Augment::CIFAR,
        ..method(Settings::default(), still)
    };
    let expected = Augment::CIFAR
        .apply(&batch.pixels, &batch.samples, pass.rng)
        .unwrap();
    assert_ne!(
        expected
            .tensor()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap(),
        batch
            .pixels
            .tensor()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    );
    let on = |x: &Pixels| theriac::Model::loss(&twin.live, x, &batch.target, &pass).unwrap();
    let expected = value(&on(&expected).mean_all().unwrap());
    assert!((loss(&mut moved, &twin, &batch) - 3.0 * expected).abs() < 1e-5);
}
