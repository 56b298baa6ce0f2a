//! What a defence costs.

use std::time::Instant;

use candle_core::DType;
use theriac::{Classifier as _, Pixels, Run, gradient, in_chunks, scores};
use theriac_data::Dataset as _;
use theriac_tables::{BoxError, Cell, Lab, Measured};

use crate::Settings;
use crate::defended::{Defended, pool};
use crate::scoring::test_images;

/// Images in a measurement, and measurements, of which the fastest counts.
const IMAGES: usize = 128;
const ROUNDS: usize = 5;

/// Passes of one image or milliseconds, all threads working on a batch.
pub(crate) fn cost(settings: &Settings, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError> {
    let device = theriac::device(&lab.device)?;
    // Untrained weights cost the same, but images without a gradient would not.
    let twin = settings.recipe.trained(cell, lab, &device)?;
    let network = &twin.frozen;
    let pool = pool(settings, network.classes(), lab, &device)?;
    let defended = Defended {
        network,
        defence: &settings.defence,
        pool: pool.as_ref(),
    };
    let data = test_images(settings, lab)?;
    let indices: Vec<u32> = (0..data.len().min(IMAGES) as u32).collect();
    let batch = data.batch(&indices, DType::F32, &device)?;
    let run = Run::new(cell.seed, &device);
    let pass = run.eval(&batch.samples);
    let classify = || scores(&defended, &batch.pixels, &pass).map(|_| ());
    let climb = || {
        let slopes = |_, x: &Pixels, pass: &theriac::Pass<'_>| {
            let sum = |x: &Pixels| Ok(network.logits(x, pass)?.sqr()?.sum(1)?);
            Ok(vec![gradient(x, pass, sum)?.1])
        };
        in_chunks(&batch.pixels, &pass, slopes).map(|_| ())
    };
    let n = batch.len();
    let each = |total: u64| total as f64 / n as f64;
    let value = match cell.column.measure.as_str() {
        "milliseconds" => milliseconds(n, classify)?,
        "gradient-milliseconds" => milliseconds(n, climb)?,
        measure => {
            classify()?;
            let work = run.meter().total();
            match measure {
                "gradients" => each(work.gradients),
                _ => each(work.forwards),
            }
        }
    };
    Ok(Measured {
        value,
        n,
        ..Measured::default()
    })
}

/// Of one image, in the fastest of a few rounds.
fn milliseconds(n: usize, work: impl Fn() -> theriac::Result<()>) -> theriac::Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        work()?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(1000.0 * best / n as f64)
}
