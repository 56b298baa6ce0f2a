//! What attacks on classifiers climb.

use std::fmt;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{Aim, Classifier, Error, Labels, Model, Pass, Pixels, Result, finite_rows, gradient};

/// A loss by logits z (N, K) and labels y; its value for the attacker is larger the better.
///
/// Away from y (untargeted) or toward y (targeted):
///
/// ```text
/// cross-entropy   +-(log sum_i exp z_i - z_y)
/// margin          +-(max_{i != y} z_i - z_y)                                    Carlini & Wagner
/// dlr             (max_{i != y} z_i - z_y) / (z_(1) - z_(3) + 1e-12)            away, Croce & Hein
///                 (z_y - max_{i != y} z_i) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)    toward
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Cross entropy.
    #[default]
    CrossEntropy,
    /// Difference of logits.
    Margin,
    /// Difference of logits ratio, which no scale or shift of the logits changes; needs 3
    /// classes, 4 when targeted. Croce & Hein, ICML 2020, section 4.
    Dlr,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CrossEntropy => "cross entropy",
            Self::Margin => "margin",
            Self::Dlr => "DLR",
        })
    }
}

const DLR_FLOOR: f64 = 1e-12;

impl Loss {
    /// [`Loss::Margin`] of rows of logits on the host.
    pub(crate) fn margins(rows: &[Vec<f64>], aim: Aim<'_, Labels>) -> Result<Vec<f64>> {
        let labels = aim.target().to_vec()?;
        let rows = rows.iter().zip(labels);
        Ok(rows.map(|(row, y)| aim.sign() * margin(row, y)).collect())
    }

    /// The value of each image, shape (N), differentiable.
    ///
    /// # Errors
    /// [`Error::Setting`] for a DLR with too few classes; a candle error when shapes differ.
    pub fn of(self, logits: &Tensor, aim: Aim<'_, Labels>) -> Result<Tensor> {
        let labels = aim.target().to_vec()?;
        match (self, aim) {
            (Self::CrossEntropy, _) => {
                let loss = theriac_ops::cross_entropy(logits, aim.target().tensor())?;
                Ok((loss * aim.sign())?)
            }
            (Self::Margin, _) => {
                let best_other = rivals(&rankings(logits)?, &labels);
                let margin = (entries(logits, &best_other)? - entries(logits, &labels)?)?;
                Ok((margin * aim.sign())?)
            }
            (Self::Dlr, Aim::Away(_)) => {
                let ranked = ranked(logits, 3)?;
                let margin =
                    (entries(logits, &rivals(&ranked, &labels))? - entries(logits, &labels)?)?;
                let span = (place(logits, &ranked, 0)? - place(logits, &ranked, 2)?)?;
                Ok((margin / (span + DLR_FLOOR)?)?)
            }
            (Self::Dlr, Aim::Toward(_)) => {
                let rivals = rivals(&rankings(logits)?, &labels);
                targeted_dlr(logits, &rivals, &labels)
            }
        }
    }
}

/// AutoAttack's targeted DLR, `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)`: between the
/// label and one other class.
pub(crate) fn targeted_dlr(logits: &Tensor, labels: &[u32], targets: &[u32]) -> Result<Tensor> {
    let ranked = ranked(logits, 4)?;
    let margin = (entries(logits, targets)? - entries(logits, labels)?)?;
    let third_and_fourth = (place(logits, &ranked, 2)? + place(logits, &ranked, 3)?)?;
    let span = (place(logits, &ranked, 0)? - (third_and_fourth * 0.5)?)?;
    Ok((margin / (span + DLR_FLOOR)?)?)
}

/// The classes of each row from the largest logit to the smallest; the first among equals first.
pub(crate) fn rankings(logits: &Tensor) -> Result<Vec<Vec<u32>>> {
    Ok(finite_rows(logits, &[])?
        .iter()
        .map(|row| ranking(row))
        .collect())
}

/// The classes of one row from the largest logit to the smallest.
pub(crate) fn ranking(row: &[f64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
    order
}

fn ranked(logits: &Tensor, least: usize) -> Result<Vec<Vec<u32>>> {
    let classes = logits.dim(1)?;
    if classes < least {
        return Err(Error::Setting {
            name: "loss",
            value: format!("dlr with {classes} classes"),
            remedy: "DLR needs 3 classes, 4 when targeted: take loss = \"margin\"",
        });
    }
    rankings(logits)
}

/// The most likely class of each row that is not its label.
fn rivals(rankings: &[Vec<u32>], labels: &[u32]) -> Vec<u32> {
    let rival =
        |(ranking, label): (&Vec<u32>, &u32)| ranking.iter().copied().find(|class| class != label);
    let rows = rankings.iter().zip(labels);
    rows.map(|row| rival(row).unwrap_or(*row.1)).collect()
}

fn place(logits: &Tensor, rankings: &[Vec<u32>], rank: usize) -> Result<Tensor> {
    let classes: Vec<u32> = rankings.iter().map(|ranking| ranking[rank]).collect();
    entries(logits, &classes)
}

/// One entry of each row, shape (N).
pub(crate) fn entries(logits: &Tensor, classes: &[u32]) -> Result<Tensor> {
    let index = Tensor::new(classes, logits.device())?.unsqueeze(1)?;
    Ok(logits.gather(&index, 1)?.squeeze(1)?)
}

/// `max_{i != y} z_i - z_y`.
pub(crate) fn margin(row: &[f64], label: u32) -> f64 {
    let label = label as usize;
    let others = row.iter().enumerate().filter(|(class, _)| *class != label);
    others.map(|(_, z)| *z).fold(f64::NEG_INFINITY, f64::max) - row[label]
}

/// Whether an attack on a classifier has got where it wants, image by image.
pub(crate) fn fooled(rows: &[Vec<f64>], aim: Aim<'_, Labels>) -> Result<Vec<bool>> {
    let labels = aim.target().to_vec()?;
    let rows = rows.iter().zip(labels);
    Ok(rows
        .map(|(row, label)| aim.reached(theriac::largest(row) == label))
        .collect())
}

/// What one gradient pass tells.
pub(crate) struct Look {
    /// The loss for the attacker.
    pub(crate) values: Vec<f64>,
    /// Whether the model is fooled.
    pub(crate) fooled: Vec<bool>,
    /// The way up, (N, C, H, W).
    pub(crate) gradient: Tensor,
}

/// One gradient pass of a loss that is given by logits; the average over the pass's draws.
pub(crate) fn look<C: Classifier + ?Sized>(
    model: &C,
    x: &Pixels,
    aim: Aim<'_, Labels>,
    pass: &Pass<'_>,
    loss: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Look> {
    let mut seen = Vec::new();
    for pass in pass.each_draw() {
        let mut rows = Vec::new();
        let (value, gradient) = gradient(x, &pass, |x| {
            let logits = model.logits(x, &pass)?;
            rows = finite_rows(&logits, pass.samples)?;
            loss(&logits)
        })?;
        seen.push((host(&value)?, rows, gradient));
    }
    let (values, rows, gradient) = average(seen)?;
    let look = Look {
        fooled: fooled(&rows, aim)?,
        values,
        gradient,
    };
    pass.show(x, &look.values, Some(&look.fooled))?;
    Ok(look)
}

type Seen = (Vec<f64>, Vec<Vec<f64>>, Tensor);

fn average(seen: Vec<Seen>) -> Result<Seen> {
    let draws = seen.len() as f64;
    let add = |(a, b): (&mut f64, f64)| *a += b;
    let mut seen = seen.into_iter();
    let Some((mut values, mut rows, mut gradient)) = seen.next() else {
        return Err(Error::Empty {
            what: "list of draws",
        });
    };
    if draws == 1.0 {
        return Ok((values, rows, gradient));
    }
    for (v, r, g) in seen {
        values.iter_mut().zip(v).for_each(add);
        let pairs = rows.iter_mut().zip(r);
        pairs.for_each(|(row, r)| row.iter_mut().zip(r).for_each(add));
        gradient = (gradient + g)?;
    }
    values.iter_mut().for_each(|v| *v /= draws);
    rows.iter_mut().flatten().for_each(|v| *v /= draws);
    Ok((values, rows, (gradient / draws)?))
}

/// What one gradient pass of the model's own loss tells; the average over the pass's draws.
pub(crate) struct Climb {
    /// The loss for the attacker.
    pub(crate) values: Vec<f64>,
    /// Whether the model is fooled, in most draws, if it can tell.
    pub(crate) fooled: Option<Vec<bool>>,
    /// The gradient of the loss, (N, C, H, W): an attack toward a target goes down it.
    pub(crate) gradient: Tensor,
}

/// One gradient pass of the model's own loss; the average over the pass's draws.
pub(crate) fn climb<M: Model + ?Sized>(
    model: &M,
    x: &Pixels,
    aim: Aim<'_, M::Target>,
    pass: &Pass<'_>,
) -> Result<Climb> {
    let mut seen = Vec::new();
    for pass in pass.each_draw() {
        let mut hits = None;
        let (value, gradient) = gradient(x, &pass, |x| {
            let (loss, told) = model.loss_and_hits(x, aim.target(), &pass)?;
            hits = told;
            Ok(loss)
        })?;
        let values = host(&value)?.into_iter().map(|v| aim.sign() * v).collect();
        let votes = |hit: bool| vec![f64::from(u8::from(aim.reached(hit)))];
        let rows = hits.map(|hits| hits.into_iter().map(votes).collect());
        seen.push((values, rows.unwrap_or_default(), gradient));
    }
    let (values, votes, gradient) = average(seen)?;
    let told = votes.len() == x.len();
    let climb = Climb {
        values,
        fooled: told.then(|| votes.iter().map(|vote| vote[0] > 0.5).collect()),
        gradient,
    };
    pass.show(x, &climb.values, climb.fooled.as_deref())?;
    Ok(climb)
}

/// A tensor (N) on the host.
pub(crate) fn host(values: &Tensor) -> Result<Vec<f64>> {
    Ok(values
        .detach()
        .to_dtype(candle_core::DType::F64)?
        .to_vec1()?)
}
