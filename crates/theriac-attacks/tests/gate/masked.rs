//! Models that look robust: what the attacks say about them, and what sees through.

use candle_core::{DType, Device, Tensor};
use theriac::gallery::{Mask, Masked};
use theriac::{Aim, Attack, Budget, Classifier, Labels, Norm, Pixels, Result, Run};
use theriac_attacks::{Apgd, Bpda, Eot, HopSkipJump, Loss, Pgd, Spsa, Square, Within, report};

use crate::models::{Constant, Net, images};

const IMAGES: usize = 12;

fn masked(mask: Mask) -> Result<Masked<Net>> {
    let model = Net::relu(36, 8, 3, 4)?;
    Ok(Masked { model, mask })
}

fn budget() -> Budget {
    Budget::linf("0.15".parse().unwrap()).unwrap()
}

fn pgd() -> Pgd {
    Pgd::new(budget(), "0.02".parse().unwrap(), 20)
}

fn square() -> Square {
    Square {
        queries: 400,
        ..Square::new(budget())
    }
}

fn data(dtype: DType) -> Result<(Pixels, Labels, Vec<u32>)> {
    images(
        &Net::relu(36, 8, 3, 4)?,
        [IMAGES, 1, 6, 6],
        (0.1, 0.9),
        dtype,
    )
}

/// (images fooled, gradients that were exactly zero, gradients)
fn outcome<C: Classifier>(attack: &impl Attack<C>, model: &C) -> Result<(usize, u64, u64)> {
    let (x, y, ids) = data(DType::F32)?;
    let run = Run::new(3, &Device::Cpu);
    let report = report(
        attack,
        model,
        &x,
        Aim::Away(&y),
        &run.eval(&ids),
        Norm::Linf,
    )?;
    let fooled = report.rows.iter().filter(|row| row.fooled).count();
    let sum = |f: fn(&theriac_attacks::Row) -> u64| report.rows.iter().map(f).sum::<u64>();
    Ok((
        fooled,
        sum(|r| r.work.zero_gradients),
        sum(|r| r.work.gradients),
    ))
}

#[test]
fn without_a_mask_the_models_are_weak() -> Result<()> {
    let model = Net::relu(36, 8, 3, 4)?;
    let (fooled, zero, gradients) = outcome(&pgd(), &model)?;
    assert!(
        fooled > IMAGES / 2 && zero == 0 && gradients == 20 * IMAGES as u64,
        "{fooled}"
    );
    assert!(outcome(&square(), &model)?.0 + 2 >= fooled);
    Ok(())
}

#[test]
fn rounded_images_stop_gradients_but_not_queries_or_bpda() -> Result<()> {
    let model = masked(Mask::Rounded(16))?;
    let (fooled, zero, gradients) = outcome(&pgd(), &model)?;
    assert_eq!(zero, gradients);
    let by_queries = outcome(&square(), &model)?.0;
    assert!(
        by_queries > fooled,
        "{by_queries} by queries, {fooled} by gradients"
    );
    assert!(
        outcome(
            &Spsa {
                delta: "0.1".parse()?,
                ..Spsa::new(budget())?
            },
            &model
        )?
        .0 > fooled
    );
    let rounds = |x: &Tensor| Ok(((x * 15.0)?.round()? / 15.0)?);
    let (through, zero, _) = outcome(
        &pgd(),
        &Bpda::straight_through(Net::relu(36, 8, 3, 4)?, rounds),
    )?;
    assert!(
        zero == 0 && through > fooled,
        "{through} through the rounding, {fooled} before"
    );
    Ok(())
}

#[test]
fn saturated_logits_stop_cross_entropy_but_not_dlr() -> Result<()> {
    let model = masked(Mask::Saturated(1e5))?;
    let (fooled, zero, gradients) = outcome(&pgd(), &model)?;
    assert!(zero * 2 > gradients, "{zero} of {gradients}");
    for loss in [Loss::Margin, Loss::Dlr] {
        let (by_logits, zero, gradients) = outcome(&Apgd::new(budget(), loss), &model)?;
        // With three classes the DLR is flat where the label comes last.
        assert!(
            by_logits > fooled && zero * 4 < gradients,
            "{loss:?}: {by_logits}, {zero}"
        );
    }
    Ok(())
}

#[test]
fn a_layer_without_gradient_does_not_stop_decisions() -> Result<()> {
    let model = masked(Mask::ZeroGradient)?;
    let (fooled, zero, gradients) = outcome(&pgd(), &model)?;
    assert_eq!(zero, gradients);
    let attack = HopSkipJump {
        steps: 8,
        ..HopSkipJump::new(Norm::Linf)
    };
    let walk = Within {
        budget: budget(),
        attack,
    };
    assert!(outcome(&walk, &model)?.0 > fooled);
    Ok(())
}

#[test]
fn noise_yields_to_the_mean_of_draws() -> Result<()> {
    let model = masked(Mask::Noisy(2.0))?;
    let attack = pgd();
    let (one, _, passes) = outcome(&attack, &model)?;
    let (mean, _, more) = outcome(&Eot { attack, draws: 10 }, &model)?;
    assert_eq!(more, 10 * passes);
    // Success is judged on one noisy pass, so a few images come and go.
    assert!(
        mean + 2 >= one && mean > IMAGES / 2,
        "{mean} by the mean, {one} by single draws"
    );
    Ok(())
}

#[test]
fn a_mean_over_draws_refuses_noise_that_is_shared_over_the_batch() -> Result<()> {
    let model = masked(Mask::BatchNorm)?;
    let error = outcome(
        &Eot {
            attack: pgd(),
            draws: 5,
        },
        &model,
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("shared over the batch"), "{error}");
    Ok(())
}

#[test]
fn logits_that_are_not_finite_name_the_image() -> Result<()> {
    let model = Constant(vec![0.0, f64::NAN, 1.0]);
    let (x, y, ids) = data(DType::F32)?;
    let run = Run::new(3, &Device::Cpu);
    let pass = run.eval(&ids);
    let attacks: [Box<dyn Attack<Constant>>; 4] = [
        Box::new(pgd()),
        Box::new(square()),
        Box::new(Apgd::new(budget(), Loss::Dlr)),
        Box::new(HopSkipJump::new(Norm::L2)),
    ];
    for attack in attacks {
        let said = attack
            .perturb(&model, &x, Aim::Away(&y), &pass)
            .unwrap_err()
            .to_string();
        assert!(
            said.contains("not finite") && said.contains("with id 1"),
            "{said}"
        );
    }
    Ok(())
}

#[test]
fn a_success_on_the_way_that_is_given_up_is_reported() -> Result<()> {
    /// Fooled in a narrow band of brightness only.
    struct Band;
    impl Classifier for Band {
        fn logits(&self, x: &Pixels, _: &theriac::Pass<'_>) -> Result<Tensor> {
            let mean = x.tensor().flatten_from(1)?.mean_keepdim(1)?;
            let inside = ((mean.affine(1.0, -0.56)?.sqr()? * -1.0)? + 0.02f64.powi(2))?;
            // Grows with brightness beyond the band too, so that steps go on.
            let beyond = (mean * 1e-6)?;
            Ok(Tensor::cat(
                &[&inside.zeros_like()?, &(inside + beyond)?],
                1,
            )?)
        }

        fn classes(&self) -> usize {
            2
        }
    }
    let x = Pixels::new(Tensor::full(0.5f64, (2, 1, 2, 2), &Device::Cpu)?)?;
    let (run, ids) = (Run::new(0, &Device::Cpu), [4, 9]);
    let labels = Labels::new(&[0, 0], 2, &Device::Cpu)?;
    let steps = Pgd {
        start: theriac_attacks::Start::Clean,
        ..Pgd::new(Budget::linf("0.1".parse()?)?, "0.05".parse()?, 2)
    };
    let report = report(
        &steps,
        &Band,
        &x,
        Aim::Away(&labels),
        &run.eval(&ids),
        Norm::Linf,
    )?;
    for row in &report.rows {
        assert!(
            !row.fooled && row.best_fooled && row.first == Some(1),
            "{row:?}"
        );
        assert!(
            (row.best_distance - 0.05).abs() < 1e-9 && row.work.gradients == 2,
            "{row:?}"
        );
    }
    Ok(())
}
