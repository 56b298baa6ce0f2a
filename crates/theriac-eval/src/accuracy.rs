//! Predictions on clean images.

use serde::Serialize;
use theriac::{
    Batch, Classifier, Error, Labels, Pass, Pixels, Result, Run, Target, largest, scores,
};

use crate::Accuracy;

/// What a model said about one clean image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Prediction {
    /// Index of the image in its data set.
    pub sample: u32,
    /// Its label.
    pub label: u32,
    /// The predicted class.
    pub predicted: u32,
}

/// Accuracy on clean images and every prediction, sorted by sample id. `observe` gets the
/// number of images done after each batch.
///
/// # Errors
/// Those of the batches and the model; [`Error::Empty`] without images; [`Error::Range`] or
/// [`Error::NotFinite`] for images outside [0, 1] or logits that are NaN or infinite;
/// [`Error::Setting`] when a sample id comes twice.
pub fn clean_accuracy<C, E>(
    model: &C,
    batches: impl IntoIterator<Item = Result<Batch<Labels>, E>>,
    run: &Run,
    mut observe: impl FnMut(usize),
) -> Result<(Accuracy, Vec<Prediction>)>
where
    C: Classifier + ?Sized,
    E: Into<Error>,
{
    let mut predictions = Vec::new();
    for batch in batches {
        let batch = batch.map_err(Into::into)?;
        let labels = labels_of(&batch, model)?;
        Pixels::new(batch.pixels.tensor().clone())?;
        let predicted = predict(model, &batch.pixels, &run.eval(&batch.samples))?;
        let rows = batch.samples.iter().zip(labels).zip(predicted);
        predictions.extend(rows.map(|((&sample, label), predicted)| Prediction {
            sample,
            label,
            predicted,
        }));
        observe(predictions.len());
    }
    sort_by_sample(&mut predictions, |prediction| prediction.sample)?;
    Ok((
        Accuracy::over(&predictions, |p| p.predicted == p.label),
        predictions,
    ))
}

/// Sorts rows by sample id, which makes every later sum and choice independent of the order of
/// the batches.
pub(crate) fn sort_by_sample<T>(rows: &mut [T], sample: impl Fn(&T) -> u32) -> Result<()> {
    if rows.is_empty() {
        return Err(Error::Empty {
            what: "the data to evaluate on",
        });
    }
    rows.sort_by_key(&sample);
    match rows
        .windows(2)
        .find(|pair| sample(&pair[0]) == sample(&pair[1]))
    {
        None => Ok(()),
        Some(pair) => {
            let remedy = "the image came twice and would count twice; give each image once (a \
                          shorter last batch instead of a filled one)";
            Err(Error::Setting {
                name: "sample id",
                value: sample(&pair[0]).to_string(),
                remedy,
            })
        }
    }
}

/// The labels of a batch on the host, after checking that images, labels and ids belong together.
pub(crate) fn labels_of<C: Classifier + ?Sized>(
    batch: &Batch<Labels>,
    model: &C,
) -> Result<Vec<u32>> {
    let (images, samples, classes) = (batch.len(), batch.samples.len(), model.classes());
    if samples != images {
        return Err(Error::Samples { samples, images });
    }
    if batch.target.len() != images {
        let expected = format!("({images}), one label for each image");
        return Err(Error::Shape {
            what: "labels",
            got: vec![batch.target.len()],
            expected,
        });
    }
    let labels = batch.target.to_vec()?;
    if let Some(position) = labels.iter().position(|&label| label as usize >= classes) {
        return Err(Error::Label {
            label: labels[position],
            position,
            classes,
        });
    }
    Ok(labels)
}

/// The predicted class of each image; the first among equals.
pub(crate) fn predict<C: Classifier + ?Sized>(
    model: &C,
    images: &Pixels,
    pass: &Pass<'_>,
) -> Result<Vec<u32>> {
    Ok(scores(model, images, pass)?
        .iter()
        .map(|row| largest(row))
        .collect())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::testing::{Affine, batches, images};

    #[test]
    fn counts_and_sorts() -> Result<()> {
        let model = Affine::new();
        let run = Run::new(1, &Device::Cpu);
        let (accuracy, rows) = clean_accuracy(&model, batches(&images(50), 7), &run, |_| {})?;
        // Every tenth label is wrong by construction.
        assert_eq!(accuracy, Accuracy { correct: 45, n: 50 });
        assert!(rows.windows(2).all(|pair| pair[0].sample < pair[1].sample));
        assert_eq!(run.meter().forwards(), 50);
        let mut backwards: Vec<_> = batches(&images(50), 16).into_iter().rev().collect();
        let again = clean_accuracy(&model, backwards.drain(..), &run, |_| {})?;
        assert_eq!(again, (accuracy, rows));
        Ok(())
    }

    #[test]
    fn refuses_what_would_miscount() {
        let run = Run::new(1, &Device::Cpu);
        let model = Affine::new();
        let twice = [batches(&images(8), 8), batches(&images(3), 3)]
            .into_iter()
            .flatten();
        let error = clean_accuracy(&model, twice, &run, |_| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains("came twice"), "{error}");
        let none: [Result<Batch<Labels>>; 0] = [];
        assert!(clean_accuracy(&model, none, &run, |_| {}).is_err());
        let nan = Affine::new().scaled(f64::NAN);
        let error = clean_accuracy(&nan, batches(&images(3), 3), &run, |_| {}).unwrap_err();
        assert!(error.to_string().contains("the logits"), "{error}");
    }
}
