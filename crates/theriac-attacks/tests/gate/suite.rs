//! What any attack must pass, as functions that say what is wrong.

use candle_core::{DType, Device};
use theriac::{
    Aim, Attack, Budget, Classifier, Eps, Labels, Norm, Pixels, Result, Run, contract, scores,
};

use crate::models::{
    Constant, Net, distance_by_enumeration, distance_to_plane, images, worst_by_enumeration,
};

/// An attack on any classifier.
pub(crate) type Any = Box<dyn Attack<Model>>;

type Model = dyn Classifier;

fn ensure(holds: bool, broken: impl FnOnce() -> String) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(theriac::BoxError::from(broken()).into())
}

fn eps(size: f64) -> Eps {
    Eps::unit(size).unwrap()
}

fn margins(model: &Model, x: &Pixels, labels: &[u32], ids: &[u32]) -> Result<Vec<f64>> {
    let run = Run::new(1, &Device::Cpu);
    let rows = scores(model, x, &run.eval(ids))?;
    let margin = |(row, label): (&Vec<f64>, &u32)| {
        let label = *label as usize;
        let others = row.iter().enumerate().filter(|(class, _)| *class != label);
        others.map(|(_, z)| *z).fold(f64::NEG_INFINITY, f64::max) - row[label]
    };
    Ok(rows.iter().zip(labels).map(margin).collect())
}

/// How close to the true optimum an attack must come.
#[derive(Clone, Copy)]
pub(crate) struct Strength {
    /// Share of the largest possible rise of the margin, on a linear model.
    pub(crate) linear: f64,
    /// Share of images that must come to the true worst case on a small network, in the best of
    /// ten runs: an ascent can end on a lower hill.
    pub(crate) network: f64,
}

/// An attack inside a ball, given as a function of the ball.
pub(crate) fn in_a_ball(
    at: &dyn Fn(Budget) -> Result<Any>,
    norm: Norm,
    strength: Strength,
) -> Result<()> {
    let size = if norm == Norm::L2 { 0.4 } else { 0.1 };
    let budget = Budget::new(norm, eps(size))?;
    shapes(&*at(budget)?, Some(budget))?;
    let (model, dtype) = (Net::linear(16, 2, 5)?, DType::F64);
    // Away from black and white, where the optimum is known in both norms.
    let (x, y, ids) = images(&model, [12, 1, 4, 4], (0.35, 0.65), dtype)?;
    let run = Run::new(1, &Device::Cpu);
    let pass = run.eval(&ids);
    let wanted = y.to_vec()?;
    let nothing = at(Budget::new(norm, eps(0.0))?)?.perturb(&model, &x, Aim::Away(&y), &pass)?;
    let moved = norm.of(&(nothing.tensor() - x.tensor())?)?;
    ensure(moved.iter().all(|d| *d == 0.0), || {
        "an epsilon of 0 moved an image".to_owned()
    })?;
    let before = margins(&model, &x, &wanted, &ids)?;
    let (w, _) = model.plane();
    let slope = match norm {
        Norm::L2 => w.iter().map(|w| w * w).sum::<f64>().sqrt(),
        _ => w.iter().map(|w| w.abs()).sum(),
    };
    let mut best = vec![0.0f64; before.len()];
    for size in [0.02, 0.05, 0.1, 0.2] {
        let attack = at(Budget::new(norm, eps(size))?)?;
        let moved = attack.perturb(&model, &x, Aim::Away(&y), &pass)?;
        let after = margins(&model, &moved, &wanted, &ids)?;
        for i in 0..before.len() {
            let (rise, most) = (after[i] - before[i], slope * size);
            // Attacks that stop at the first success owe no more than that.
            let enough = after[i] >= 0.0;
            ensure(rise <= most * (1.0 + 1e-6), || {
                format!("image {i} rose by {rise} where {most} is the most at epsilon {size}")
            })?;
            ensure(enough || rise >= strength.linear * most, || {
                format!("image {i} rose by {rise} of {most} on a linear model at epsilon {size}")
            })?;
            ensure(enough || rise >= best[i] * strength.linear, || {
                format!("image {i}: epsilon {size} is weaker than a smaller one")
            })?;
            best[i] = best[i].max(rise);
        }
    }
    small_network(at, norm, strength.network)?;
    toward(at, norm)
}

/// Channels, sizes, class counts, batches of one, black and white, wrong labels, flat models, f32.
pub(crate) fn shapes(attack: &dyn Attack<Model>, budget: Option<Budget>) -> Result<()> {
    let check =
        |model: &Model, x: &Pixels, y: &Labels| contract::attack(attack, model, x, y, budget);
    for (shape, classes, dtype) in [
        ([5, 1, 4, 4], 2, DType::F64),
        ([1, 3, 5, 3], 3, DType::F32),
        ([3, 2, 3, 6], 4, DType::F64),
        ([4, 4, 3, 3], 6, DType::F32),
    ] {
        let pixels = shape[1] * shape[2] * shape[3];
        let model = Net::relu(pixels, 6, classes, 7)?;
        // Half of the pixels are black or white.
        let (x, y, _) = images(&model, shape, (-0.5, 1.5), dtype)?;
        check(&model, &x, &y).map_err(|e| named(&format!("{shape:?}, {classes} classes"), e))?;
        let wrong: Vec<u32> = y
            .to_vec()?
            .iter()
            .map(|y| (y + 1) % classes as u32)
            .collect();
        let wrong = Labels::new(&wrong, classes, &Device::Cpu)?;
        check(&model, &x, &wrong).map_err(|e| named("images that are wrong already", e))?;
    }
    for logits in [vec![0.0; 5], vec![3.0, 1.0, 0.0, -2.0]] {
        let model = Constant(logits);
        let (x, y, _) = images(&model, [2, 1, 3, 4], (-0.5, 1.5), DType::F64)?;
        check(&model, &x, &y).map_err(|e| named("a constant model", e))?;
    }
    Ok(())
}

fn named(what: &str, error: theriac::Error) -> theriac::Error {
    theriac::BoxError::from(format!("{what}: {error}")).into()
}

/// Two pixels, four hidden units, both classes among the images and no image where all units are
/// off, which no gradient would leave.
fn four_units() -> Result<Net> {
    Net::relu(2, 4, 2, 6)
}

/// Two pixels and four hidden units: the true worst case is known by enumeration.
fn small_network(at: &dyn Fn(Budget) -> Result<Any>, norm: Norm, strength: f64) -> Result<()> {
    if norm != Norm::Linf || strength == 0.0 {
        return Ok(());
    }
    let model = four_units()?;
    let (x, y, ids) = images(&model, [16, 1, 1, 2], (0.2, 0.8), DType::F64)?;
    let run = Run::new(1, &Device::Cpu);
    let wanted = y.to_vec()?;
    let before = margins(&model, &x, &wanted, &ids)?;
    let points: Vec<Vec<f64>> = x.tensor().flatten_from(1)?.to_vec2()?;
    let attack = at(Budget::linf(eps(0.08))?)?;
    let mut after = before.clone();
    for run_of_ten in 0..10 {
        let pass = run.eval(&ids);
        let moved = attack.perturb(&model, &x, Aim::Away(&y), &pass.fork(run_of_ten))?;
        let margins = margins(&model, &moved, &wanted, &ids)?;
        for (best, margin) in after.iter_mut().zip(margins) {
            *best = best.max(margin);
        }
    }
    let mut reached = 0;
    for (i, point) in points.iter().enumerate() {
        // The margin of label 0 is z_1 - z_0.
        let side = if wanted[i] == 0 { 1.0 } else { -1.0 };
        let worst = worst_by_enumeration(&model, [point[0], point[1]], 0.08, side);
        let (rise, most) = (after[i] - before[i], worst - before[i]);
        ensure(rise <= most + 1e-9, || {
            format!("image {i} rose by {rise} where enumeration finds {most}")
        })?;
        reached += usize::from(after[i] >= 0.0 || rise >= 0.999 * most - 1e-9);
    }
    ensure(reached as f64 >= strength * points.len() as f64, || {
        format!(
            "{reached} of {} images came to the worst case on four units",
            points.len()
        )
    })
}

/// An attack toward a class must favour that class.
fn toward(at: &dyn Fn(Budget) -> Result<Any>, norm: Norm) -> Result<()> {
    let model = Net::linear(16, 4, 9)?;
    let (x, y, ids) = images(&model, [12, 1, 4, 4], (0.35, 0.65), DType::F64)?;
    let run = Run::new(1, &Device::Cpu);
    let pass = run.eval(&ids);
    let target: Vec<u32> = y.to_vec()?.iter().map(|y| (y + 2) % 4).collect();
    let class = Labels::new(&target, 4, &Device::Cpu)?;
    let size = if norm == Norm::L2 { 0.1 } else { 0.03 };
    let attack = at(Budget::new(norm, eps(size))?)?;
    let toward = attack.perturb(&model, &x, Aim::Toward(&class), &pass)?;
    let away = attack.perturb(&model, &x, Aim::Away(&y), &pass)?;
    let mean = |x: &Pixels| -> Result<f64> {
        // The margin is that of the others over the class.
        let margins = margins(&model, x, &target, &ids)?;
        Ok(-margins.iter().sum::<f64>() / margins.len() as f64)
    };
    let (clean, away, toward) = (mean(&x)?, mean(&away)?, mean(&toward)?);
    ensure(toward > clean && toward > away, || {
        format!("toward a class its margin is {toward}, {away} without a class, {clean} at first")
    })
}

/// An attack that looks for the smallest distance: at most `ratio` times the true one, on a linear
/// model always, on a small network for the share `network` of the images.
pub(crate) fn closest(attack: &Any, norm: Norm, ratio: f64, network: f64) -> Result<()> {
    shapes(&**attack, None)?;
    let model = Net::linear(16, 2, 5)?;
    let (x, y, ids) = images(&model, [10, 1, 4, 4], (0.1, 0.9), DType::F64)?;
    let run = Run::new(1, &Device::Cpu);
    let pass = run.eval(&ids);
    let moved = attack.perturb(&model, &x, Aim::Away(&y), &pass)?;
    let wanted = y.to_vec()?;
    let after = margins(&model, &moved, &wanted, &ids)?;
    let spent = norm.of(&(moved.tensor() - x.tensor())?)?;
    let (w, b) = model.plane();
    let points: Vec<Vec<f64>> = x.tensor().flatten_from(1)?.to_vec2()?;
    for (i, point) in points.iter().enumerate() {
        let truth = distance_to_plane(norm, point, &w, b);
        ensure(after[i] >= 0.0, || {
            format!("image {i} does not fool a linear model")
        })?;
        ensure(spent[i] <= ratio * truth, || {
            format!(
                "image {i} moved by {} where {truth} is enough on a linear model",
                spent[i]
            )
        })?;
        ensure(spent[i] >= truth * (1.0 - 1e-6), || {
            format!(
                "image {i} moved by {}, less than the true distance {truth}",
                spent[i]
            )
        })?;
    }
    let model = four_units()?;
    let (x, y, ids) = images(&model, [16, 1, 1, 2], (0.2, 0.8), DType::F64)?;
    let pass = run.eval(&ids);
    let moved = attack.perturb(&model, &x, Aim::Away(&y), &pass)?;
    let after = margins(&model, &moved, &y.to_vec()?, &ids)?;
    let spent = norm.of(&(moved.tensor() - x.tensor())?)?;
    let points: Vec<Vec<f64>> = x.tensor().flatten_from(1)?.to_vec2()?;
    let mut near = 0;
    for (i, point) in points.iter().enumerate() {
        let truth = distance_by_enumeration(norm, &model, [point[0], point[1]]);
        ensure(after[i] < 0.0 || spent[i] >= truth * (1.0 - 1e-6), || {
            format!(
                "image {i} moved by {}, less than the true distance {truth}",
                spent[i]
            )
        })?;
        near += usize::from(after[i] >= 0.0 && spent[i] <= ratio * truth);
    }
    ensure(near as f64 >= network * points.len() as f64, || {
        format!(
            "{near} of {} images came near the true distance on four units",
            points.len()
        )
    })?;
    let model = Net::linear(16, 4, 9)?;
    let (x, y, ids) = images(&model, [6, 1, 4, 4], (0.35, 0.65), DType::F64)?;
    let target: Vec<u32> = y.to_vec()?.iter().map(|y| (y + 2) % 4).collect();
    let class = Labels::new(&target, 4, &Device::Cpu)?;
    let moved = attack.perturb(&model, &x, Aim::Toward(&class), &run.eval(&ids))?;
    let reached = theriac::predict(&model, &moved, &run.eval(&ids))?.to_vec()?;
    ensure(reached == target, || {
        format!("toward {target:?} the model says {reached:?}")
    })
}
