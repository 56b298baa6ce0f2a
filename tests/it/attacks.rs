//! Every attack on every kind of model.

use candle_core::{DType, Device, Tensor};
use theriac::{Aim, Classifier, Eps, Labels, Norm, Pass, Pixels, Result, Rng, Run, predict};
use theriac_attacks::{
    Apgd, ApgdT, AutoAttack, CarliniWagner, Ddn, Declare, DeepFool, Eot, Fab, FewPixel, Fgsm, Fmn,
    HopSkipJump, Loss, MiFgsm, Pgd, Restarts, Row, Spec, Spsa, Square, Version, Within, WorstOf,
    report,
};
use theriac_models::{advertorch_lenet, atda_cnn, lenet, resnet_v1};
use theriac_nn::{Network, Params, Plain, Twin, VarBuilder};

const IMAGES: usize = 3;

/// Every attack that TOML can name, with settings for a few seconds.
fn attacks(norm: Norm) -> Result<Vec<Spec>> {
    let size = if norm == Norm::L2 { 1.0 } else { 0.1 };
    let budget = theriac::Budget::new(norm, Eps::unit(size)?)?;
    let step = budget.eps().over(4)?;
    let pgd = Pgd::new(budget, step, 5);
    let boxed = || Box::new(Spec::Pgd(pgd));
    let fab = Fab {
        steps: 4,
        ..Fab::new(norm)
    };
    let carlini_wagner = CarliniWagner {
        steps: 10,
        search_steps: 2,
        initial_c: 1.0,
        ..CarliniWagner::cw()
    };
    Ok(vec![
        Spec::Fgsm(Fgsm { budget }),
        Spec::Pgd(pgd),
        Spec::Pgd(Pgd { stop: true, ..pgd }),
        Spec::MiFgsm(MiFgsm::new(budget, 5)?),
        Spec::Apgd(Apgd {
            steps: 6,
            ..Apgd::new(budget, Loss::CrossEntropy)
        }),
        Spec::Apgd(Apgd {
            steps: 6,
            ..Apgd::new(budget, Loss::Dlr)
        }),
        Spec::ApgdT(ApgdT {
            steps: 4,
            targets: 2,
            ..ApgdT::new(budget)
        }),
        Spec::Fab(fab),
        Spec::Fab(Fab {
            targets: Some(2),
            ..fab
        }),
        Spec::DeepFool(DeepFool {
            steps: 4,
            ..DeepFool::new(norm)
        }),
        Spec::CarliniWagner(carlini_wagner),
        Spec::Ddn(Ddn {
            steps: 6,
            ..Ddn::default()
        }),
        Spec::Fmn(Fmn {
            steps: 6,
            ..Fmn::new(norm)
        }),
        Spec::Square(Square {
            queries: 20,
            ..Square::new(budget)
        }),
        Spec::FewPixel(FewPixel {
            steps: 2,
            population: 8,
            ..FewPixel::new(3)
        }),
        Spec::Spsa(Spsa {
            steps: 2,
            samples: 8,
            ..Spsa::new(budget)?
        }),
        Spec::HopSkipJump(HopSkipJump {
            steps: 1,
            draws: 8,
            trials: 4,
            ..HopSkipJump::new(norm)
        }),
        Spec::Restarts(Restarts {
            attack: boxed(),
            times: 2,
        }),
        Spec::WorstOf(WorstOf {
            attacks: vec![Spec::Fgsm(Fgsm { budget }), Spec::Pgd(pgd)],
        }),
        Spec::Eot(Eot {
            attack: boxed(),
            draws: 2,
        }),
        Spec::Within(Within {
            budget,
            attack: Box::new(Spec::Fab(fab)),
        }),
    ])
}

/// Attacks a model's own labels: the attack may not leave cube or ball, may not lose ground, and
/// must account for its passes.
fn run_all<C: Classifier>(name: &str, model: &C, shape: [usize; 3], dtype: DType) -> Result<()> {
    let [c, h, w] = shape;
    let values = Rng::new(3).uniform("x", 0, IMAGES * c * h * w);
    let x = Tensor::from_vec(values, (IMAGES, c, h, w), &Device::Cpu)?.to_dtype(dtype)?;
    let x = Pixels::new(x)?;
    let (run, ids) = (Run::new(4, &Device::Cpu), [7, 1, 30]);
    let pass = run.eval(&ids);
    let labels = predict(model, &x, &pass)?;
    for norm in [Norm::Linf, Norm::L2] {
        for spec in attacks(norm)? {
            let what = format!("{} on {name}", spec.declared().name);
            let said = report(&spec, model, &x, Aim::Away(&labels), &pass, norm);
            let said = said.unwrap_or_else(|error| panic!("{what}: {error}"));
            Pixels::new(said.last.tensor().clone())?;
            assert_eq!(said.last.tensor().dtype(), dtype, "{what}");
            if let Some(budget) = spec.declared().budget {
                let far = budget.spent(&said.last, &x)?;
                let most = budget.eps().get() * (1.0 + 1e-6) + 1e-6;
                assert!(far.iter().all(|far| *far <= most), "{what}: {far:?}");
            }
            let passes = |row: &Row| row.work.forwards + row.work.gradients;
            assert!(said.rows.iter().all(|row| passes(row) > 0), "{what}");
        }
    }
    Ok(())
}

fn network(dtype: DType, make: impl Fn(VarBuilder) -> Result<Network>) -> Result<Twin<Network>> {
    let params = Params::new(5, dtype, &Device::Cpu);
    Twin::build(&params, make)
}

#[test]
fn on_plain_networks() -> Result<()> {
    let grey = [1, 28, 28];
    let twin = network(DType::F32, |vb| lenet(&Plain, vb))?;
    run_all("LeNet", &twin.frozen, grey, DType::F32)?;
    let twin = network(DType::F32, |vb| atda_cnn(&Plain, vb))?;
    run_all("the ATDA network", &twin.frozen, grey, DType::F32)?;
    let twin = network(DType::F32, |vb| advertorch_lenet(&Plain, vb))?;
    run_all("advertorch's LeNet", &twin.frozen, grey, DType::F32)
}

#[test]
fn on_a_residual_network() -> Result<()> {
    let twin = network(DType::F32, |vb| resnet_v1(&Plain, vb, 8, 16, 10))?;
    run_all("ResNet-8", &twin.frozen, [3, 32, 32], DType::F32)
}

#[test]
fn on_single_operations_in_f64() -> Result<()> {
    let twin = network(DType::F64, |vb| lenet(&Plain, vb))?;
    run_all("LeNet in f64", &twin.frozen, [1, 28, 28], DType::F64)
}

#[test]
fn on_a_network_that_draws_random_numbers() -> Result<()> {
    /// Noise in the logits, image by image.
    struct Noisy(Network);
    impl Classifier for Noisy {
        fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
            let logits = self.0.logits(x, pass)?;
            let noise = (pass.normal("noise", &logits)? * 0.01)?;
            Ok((logits + noise)?)
        }

        fn classes(&self) -> usize {
            10
        }
    }
    let twin = network(DType::F32, |vb| lenet(&Plain, vb))?;
    run_all(
        "a noisy LeNet",
        &Noisy(twin.frozen),
        [1, 28, 28],
        DType::F32,
    )
}

#[test]
fn auto_attack_in_every_version() -> Result<()> {
    let twin = network(DType::F32, |vb| lenet(&Plain, vb))?;
    let x = Pixels::new(Tensor::full(0.5f32, (2, 1, 28, 28), &Device::Cpu)?)?;
    let (run, ids) = (Run::new(4, &Device::Cpu), [7, 1]);
    let pass = run.eval(&ids);
    let labels: Labels = predict(&twin.frozen, &x, &pass)?;
    let budget = theriac::Budget::linf("0.3".parse()?)?;
    for version in [Version::Standard, Version::Plus, Version::Rand] {
        let attack = AutoAttack { budget, version };
        let said = report(
            &attack,
            &twin.frozen,
            &x,
            Aim::Away(&labels),
            &pass,
            Norm::Linf,
        )?;
        assert!(
            said.rows.iter().all(|row| row.fooled),
            "{version:?}: {:?}",
            said.rows
        );
    }
    Ok(())
}
