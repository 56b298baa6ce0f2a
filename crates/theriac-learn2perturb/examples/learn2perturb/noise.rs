//! How large the learnt noise is.

use candle_core::DType;
use serde::{Deserialize, Serialize};
use theriac_nn::Params;
use theriac_tables::{BoxError, Cell, Lab, Measured};

use crate::Settings;

/// A number that says something of all thetas, or of all alphas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Statistic {
    Mean,
    /// A tenth is below it.
    Low,
    Median,
    /// A tenth is above it.
    High,
    /// Share at the least value that there is, in percent.
    Least,
}

/// A statistic of the absolute values of theta (Learn2Perturb) or alpha (PNI).
pub(crate) fn noise(settings: &Settings, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError> {
    let device = theriac::device(&lab.device)?;
    let twin = settings
        .recipe
        .trained(settings.after, cell, lab, &device)?;
    let statistic = settings.statistic.ok_or("statistic: name one")?;
    let mut values = values(&twin.params)?;
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let (Some(first), Some(_)) = (values.first().copied(), values.last()) else {
        return Err("the network has no noise of its own".into());
    };
    let value = match statistic {
        Statistic::Mean => values.iter().sum::<f64>() / n as f64,
        Statistic::Low => values[n / 10],
        Statistic::Median => values[n / 2],
        Statistic::High => values[n - 1 - n / 10],
        Statistic::Least => {
            let least = values.iter().filter(|v| **v <= first * (1.0 + 1e-6));
            100.0 * least.count() as f64 / n as f64
        }
    };
    Ok(Measured {
        value,
        n,
        ..Measured::default()
    })
}

fn values(params: &Params) -> Result<Vec<f64>, BoxError> {
    let mut values = Vec::new();
    for (path, var) in params.trainable() {
        if matches!(path.rsplit('.').next(), Some("theta" | "alpha")) {
            let all = var.abs()?.flatten_all()?.to_dtype(DType::F64)?;
            values.extend(all.to_vec1::<f64>()?);
        }
    }
    Ok(values)
}
