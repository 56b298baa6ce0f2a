//! The rules of the traits as checks that any implementation can run in its tests.
//!
//! ```toml
//! [dev-dependencies]
//! theriac = { version = "0.1", features = ["contract"] }
//! ```

use candle_core::{DType, Tensor};
use theriac_ops::network::PreparedCache;

use crate::{
    Aim, Attack, Budget, Classifier, Labels, Model, Pass, Pixels, Result, Run, Target, craft,
    finite_rows, gradient,
};

/// Rounding of `x + eps` in f32.
const SLACK: f64 = 1e-6;

fn ensure(holds: bool, broken: impl FnOnce() -> String) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(crate::BoxError::from(broken()).into())
    }
}

fn bytes(pixels: &Pixels) -> Result<Vec<u64>> {
    let values = pixels
        .tensor()
        .flatten_all()?
        .to_dtype(DType::F64)?
        .to_vec1::<f64>()?;
    Ok(values.into_iter().map(f64::to_bits).collect())
}

/// What every attack promises: images in the pixel cube and, if it has one, in the ball; the same
/// seed gives the same bits; a batch of N gives the bits of N batches of one, in any order; a
/// larger batch cut over threads gives the same bits; images and model are left as they were; the
/// loss does not fall on average.
///
/// # Errors
/// Names the broken promise.
pub fn attack<C, A>(
    attack: &A,
    model: &C,
    clean: &Pixels,
    labels: &Labels,
    budget: impl Into<Option<Budget>>,
) -> Result<()>
where
    C: Classifier + ?Sized,
    A: Attack<C> + ?Sized,
{
    let n = clean.len();
    let ids: Vec<u32> = (0..n as u32).map(|i| i * 7 + 3).collect();
    let run = Run::new(17, clean.tensor().device());
    let pass = run.eval(&ids);
    let before = (
        bytes(clean)?,
        finite_rows(&model.logits(clean, &pass)?, &ids)?,
    );
    let moved = attack.perturb(model, clean, Aim::Away(labels), &pass)?;
    Pixels::new(moved.tensor().clone())?;
    ensure(bytes(clean)? == before.0, || {
        "the attack wrote into its input".to_owned()
    })?;
    if let Some(budget) = budget.into() {
        for (i, spent) in budget.spent(&moved, clean)?.into_iter().enumerate() {
            ensure(spent <= budget.eps().get() + SLACK, || {
                format!("image {i} moved by {spent} where {budget} is allowed")
            })?;
        }
    }
    let again = attack.perturb(model, clean, Aim::Away(labels), &pass)?;
    ensure(bytes(&again)? == bytes(&moved)?, || {
        "the same seed gave other images".to_owned()
    })?;
    let after = finite_rows(&model.logits(clean, &pass)?, &ids)?;
    ensure(after == before.1, || {
        "the attack left the model changed".to_owned()
    })?;
    let over_threads = craft(attack, model, clean, Aim::Away(labels), &pass)?;
    ensure(bytes(&over_threads)? == bytes(&moved)?, || {
        "cutting the batch over threads gave other images".to_owned()
    })?;
    for i in (0..n).rev() {
        let (one, label) = (clean.narrow(i, 1)?, labels.narrow(i, 1)?);
        let alone = attack.perturb(model, &one, Aim::Away(&label), &pass.narrow(i, 1)?)?;
        ensure(bytes(&alone)? == bytes(&moved.narrow(i, 1)?)?, || {
            format!("image {i} alone and in a batch of {n} gave different images")
        })?;
    }
    let turned: Vec<u32> = (0..n as u32).rev().collect();
    let turned_ids: Vec<u32> = turned.iter().map(|&i| ids[i as usize]).collect();
    let (images, classes) = (clean.pick(&turned)?, labels.pick(&turned)?);
    let turned_pass = pass.over(&turned_ids);
    let backwards = attack.perturb(model, &images, Aim::Away(&classes), &turned_pass)?;
    ensure(bytes(&backwards.pick(&turned)?)? == bytes(&moved)?, || {
        "another order of the batch gave other images".to_owned()
    })?;
    let mean = |x: &Pixels| -> Result<f64> {
        Ok(model
            .loss(x, labels, &pass)?
            .to_dtype(DType::F64)?
            .mean_all()?
            .to_scalar()?)
    };
    let (before, after) = (mean(clean)?, mean(&moved)?);
    ensure(after >= before - SLACK, || {
        format!("the mean loss fell from {before} to {after}")
    })
}

/// What every deterministic, differentiable classifier promises: logits of shape (N, classes);
/// equal calls give equal bits; in evaluation mode images do not see each other; the gradient by
/// the pixels agrees with central differences. Give f64 images, away from 0 and 1.
///
/// # Errors
/// Names the broken promise.
pub fn classifier<C: Classifier + ?Sized>(model: &C, x: &Pixels, labels: &Labels) -> Result<()> {
    const STEP: f64 = 1e-6;
    let n = x.len();
    let ids: Vec<u32> = (0..n as u32).collect();
    let run = Run::new(23, x.tensor().device());
    let pass = run.eval(&ids);
    let logits = model.logits(x, &pass)?;
    ensure(logits.dims() == [n, model.classes()], || {
        format!(
            "logits {:?}, expected [{n}, {}]",
            logits.dims(),
            model.classes()
        )
    })?;
    let values = |t: &Tensor| -> Result<Vec<f64>> { Ok(t.flatten_all()?.to_vec1()?) };
    ensure(
        values(&model.logits(x, &pass)?)? == values(&logits)?,
        || "two calls with one pass differ".to_owned(),
    )?;
    let alone = model.logits(&x.narrow(n - 1, 1)?, &pass.narrow(n - 1, 1)?)?;
    ensure(
        values(&alone)? == values(&logits.narrow(0, n - 1, 1)?)?,
        || "the last image's logits depend on the rest of the batch".to_owned(),
    )?;
    let (_, g) = gradient(x, &pass, |x| model.loss(x, labels, &pass))?;
    let (analytic, at) = (values(&g)?, values(x.tensor())?);
    let total = |values: Vec<f64>| -> Result<f64> {
        let moved = Tensor::from_vec(values, x.tensor().shape(), x.tensor().device())?;
        let moved = Pixels::trusted(moved);
        Ok(model
            .loss(&moved, labels, &pass)?
            .sum_all()?
            .to_scalar::<f64>()?)
    };
    let scale = analytic.iter().fold(1e-3f64, |m, g| m.max(g.abs()));
    for i in (0..at.len()).step_by(at.len().div_ceil(24)) {
        let nudged = |by: f64| {
            let mut values = at.clone();
            values[i] += by;
            total(values)
        };
        let numeric = (nudged(STEP)? - nudged(-STEP)?) / (2.0 * STEP);
        ensure((numeric - analytic[i]).abs() <= 1e-4 * scale, || {
            format!(
                "gradient at value {i}: {} by autograd, {numeric} by differences",
                analytic[i]
            )
        })?;
    }
    Ok(())
}

/// What attacks and evaluations rely on: with parameters arranged once and kept for many passes
/// ([`Pass::prepared`]), logits and gradients by the pixels have the same bits. Give f32 images on
/// a CPU.
///
/// # Errors
/// Names the broken promise.
pub fn prepared<C: Classifier + ?Sized>(model: &C, x: &Pixels) -> Result<()> {
    let ids: Vec<u32> = (0..x.len() as u32).collect();
    let run = Run::new(29, x.tensor().device());
    let (pass, cache) = (run.eval(&ids), PreparedCache::default());
    let kept = Pass {
        prepared: Some(&cache),
        ..pass
    };
    let both = |pass: &Pass<'_>| -> Result<Vec<u32>> {
        let (logits, slopes) = gradient(x, pass, |x| Ok(model.logits(x, pass)?.sqr()?.sum(1)?))?;
        let mut bits = Vec::new();
        for t in [logits, slopes] {
            let values = t.flatten_all()?.to_vec1::<f32>()?;
            bits.extend(values.into_iter().map(f32::to_bits));
        }
        Ok(bits)
    };
    let alone = both(&pass)?;
    for call in ["first", "second"] {
        ensure(both(&kept)? == alone, || {
            format!("the {call} call with kept parameters gave other bits")
        })?;
    }
    Ok(())
}
