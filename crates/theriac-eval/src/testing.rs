//! A model whose robust accuracy is known, and ways to break it.

use candle_core::{D, DType, Device, Tensor};
use theriac::{Batch, Classifier, Labels, Pass, Pixels, Result, Rng, Target};

const SIDE: usize = 4;

/// What is wrong with a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flaw {
    None,
    /// Its input is rounded outside the graph: no gradient.
    Rounded,
    /// Its logits are so large that the cross entropy of a correct image is exactly zero in f32.
    Saturated,
    /// Fresh noise on the logits in every pass.
    Noisy,
    /// Its class alternates with the brightness, twice in 0.2.
    Periodic,
}

/// Logits (w.(x - 1/2), 0).
pub(crate) struct Affine {
    w: Tensor,
    flaw: Flaw,
}

impl Affine {
    pub(crate) fn new() -> Self {
        Self::with(Flaw::None)
    }

    pub(crate) fn with(flaw: Flaw) -> Self {
        let w = Tensor::from_vec(weights(), (SIDE * SIDE, 1), &Device::Cpu).unwrap();
        Self { w, flaw }
    }

    pub(crate) fn scaled(self, factor: f64) -> Self {
        Self {
            w: (self.w * factor).unwrap(),
            ..self
        }
    }

    /// Which images, sorted as given, no point of a Linf ball changes: `|score| > eps ||w||_1`,
    /// for images that stay away from 0 and 1.
    pub(crate) fn resists(&self, data: &Batch<Labels>, eps: f64) -> Result<Vec<bool>> {
        let reach = eps * weights().iter().map(|w| w.abs()).sum::<f64>();
        let rows = data.pixels.tensor().flatten_from(1)?.to_vec2::<f64>()?;
        let labels = data.target.to_vec()?;
        let robust = |(row, label): (&Vec<f64>, u32)| {
            let score = score(row);
            score.abs() > reach && u32::from(score <= 0.0) == label
        };
        Ok(rows.iter().zip(labels).map(robust).collect())
    }
}

fn weights() -> Vec<f64> {
    Rng::new(5)
        .normal("w", 0, SIDE * SIDE)
        .into_iter()
        .map(f64::from)
        .collect()
}

fn score(row: &[f64]) -> f64 {
    row.iter().zip(weights()).map(|(x, w)| (x - 0.5) * w).sum()
}

impl Classifier for Affine {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let x = x.tensor().flatten_from(1)?;
        let x = match self.flaw {
            Flaw::Rounded => ((x.detach() * 64.0)?.round()? / 64.0)?,
            _ => x,
        };
        let mut z = x.affine(1.0, -0.5)?.matmul(&self.w)?;
        match self.flaw {
            Flaw::Saturated => z = (z.to_dtype(DType::F32)? * 1e6)?,
            Flaw::Noisy => z = (&z + (pass.normal("noise", &z)? * 0.1)?)?,
            Flaw::Periodic => {
                let angle = std::f64::consts::PI / 0.1;
                // A small shift keeps images of brightness 0.5 off the flat top.
                z = x.mean_keepdim(D::Minus1)?.affine(angle, 0.3)?.cos()?;
            }
            Flaw::None | Flaw::Rounded => {}
        }
        Ok(Tensor::cat(&[&z, &z.zeros_like()?], 1)?)
    }

    fn classes(&self) -> usize {
        2
    }
}

/// `n` images in [0.2, 0.8] with the flawless model's labels, every tenth of them turned.
pub(crate) fn images(n: usize) -> Batch<Labels> {
    let size = SIDE * SIDE;
    let rng = Rng::new(2);
    let values: Vec<f64> = (0..n as u64)
        .flat_map(|i| rng.uniform("x", i, size))
        .map(|u| 0.2 + 0.6 * f64::from(u))
        .collect();
    let labels: Vec<u32> = values
        .chunks(size)
        .enumerate()
        .map(|(i, row)| u32::from(score(row) <= 0.0) ^ u32::from(i % 10 == 0))
        .collect();
    let pixels = Tensor::from_vec(values, (n, 1, SIDE, SIDE), &Device::Cpu).unwrap();
    Batch {
        pixels: Pixels::new(pixels).unwrap(),
        target: Labels::new(&labels, 2, &Device::Cpu).unwrap(),
        samples: (0..n as u32).map(|i| 3 * i + 1).collect(),
    }
}

/// The images in batches of `size`.
pub(crate) fn batches(data: &Batch<Labels>, size: usize) -> Vec<Result<Batch<Labels>>> {
    let n = data.len();
    let cut = |start: usize| {
        let len = size.min(n - start);
        Ok(Batch {
            pixels: data.pixels.narrow(start, len)?,
            target: data.target.narrow(start, len)?,
            samples: data.samples[start..start + len].to_vec(),
        })
    };
    (0..n).step_by(size).map(cut).collect()
}
