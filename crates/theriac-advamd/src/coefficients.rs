//! How vulnerable each class is.
//!
//! ```text
//! A_k = 1 - (sum_{i != k} alpha_k^i + sum_{j != k} alpha_j^k) / (2 (K - 1))        equation 6
//! alpha_k^i in [0, 1]: how hard it is to change the decision from class k to class i
//! ```
//!
//! The paper does not say how alpha is measured. Ours: alpha = 1 - r, where r is the share of attacked
//! images of class k that end as class i, with half an image added to either side. Then A_k is the
//! mean of the shares out of k and into k.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Classifier, Error, Labels, Pass, Pixels, Result, craft, predict};

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Alpha {
    /// Attacks toward each other class in turn.
    #[default]
    Targeted,
    /// One attack away from the label: rows of shares then sum to 1 at most, so coefficients are
    /// small for many classes.
    Untargeted,
}

/// Counts of attacked images by class and by what became of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Attacks on images of class k toward class i (all attacks of k, if untargeted).
    tried: Vec<Vec<u64>>,
    /// Those that ended as class i.
    ended: Vec<Vec<u64>>,
}

impl Tally {
    /// Nothing counted yet.
    pub fn new(classes: usize) -> Self {
        let none = vec![vec![0; classes]; classes];
        Self {
            tried: none.clone(),
            ended: none,
        }
    }

    /// Attacks images that the model has right, and counts. Use images of the training set that are
    /// not trained on, never of the test set.
    ///
    /// # Errors
    /// Those of the model and the attack.
    pub fn count<C: Classifier, A: Attack<C>>(
        &mut self,
        alpha: Alpha,
        model: &C,
        attack: &A,
        (images, labels): (&Pixels, &Labels),
        pass: &Pass<'_>,
    ) -> Result<()> {
        let (truth, predicted) = (labels.to_vec()?, predict(model, images, pass)?.to_vec()?);
        let right = |i: &u32| truth[*i as usize] == predicted[*i as usize];
        let right: Vec<u32> = (0..truth.len() as u32).filter(right).collect();
        if right.is_empty() {
            return Ok(());
        }
        let images = images.pick(&right)?;
        let samples: Vec<u32> = right.iter().map(|&i| pass.samples[i as usize]).collect();
        let truth: Vec<u32> = right.iter().map(|&i| truth[i as usize]).collect();
        let classes = self.tried.len() as u32;
        let device = images.tensor().device().clone();
        let pass = pass.over(&samples);
        let steps = match alpha {
            Alpha::Targeted => 1..classes,
            Alpha::Untargeted => 0..1,
        };
        // In step s every image goes toward the class s after its own, round about.
        for step in steps {
            let toward = |k: &u32| (k + step) % classes;
            let aimed: Vec<u32> = truth.iter().map(toward).collect();
            let aimed = Labels::new(&aimed, classes as usize, &device)?;
            let aim = match alpha {
                Alpha::Targeted => Aim::Toward(&aimed),
                Alpha::Untargeted => Aim::Away(&aimed),
            };
            let pass = pass.fork(u64::from(step));
            let moved = craft(attack, model, &images, aim, &pass)?;
            let ended = predict(model, &moved, &pass)?.to_vec()?;
            let aimed = aimed.to_vec()?;
            for ((&k, &aimed), &ended) in truth.iter().zip(&aimed).zip(&ended) {
                self.note(alpha, k, aimed, ended);
            }
        }
        Ok(())
    }

    /// Notes one attack on an image of class `k` that ended as class `ended`.
    fn note(&mut self, alpha: Alpha, k: u32, aimed: u32, ended: u32) {
        let k = k as usize;
        match alpha {
            Alpha::Targeted => {
                self.tried[k][aimed as usize] += 1;
                self.ended[k][aimed as usize] += u64::from(ended == aimed);
            }
            Alpha::Untargeted => {
                self.tried[k].iter_mut().for_each(|tried| *tried += 1);
                self.ended[k][ended as usize] += 1;
            }
        }
    }

    /// Adds the counts of another part of the images.
    ///
    /// # Errors
    /// [`Error::Setting`] for another number of classes.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        if self.tried.len() != other.tried.len() {
            return Err(Error::Setting {
                name: "classes",
                value: format!("{} and {}", self.tried.len(), other.tried.len()),
                remedy: "add tallies of one data set",
            });
        }
        let pairs = [
            (&mut self.tried, &other.tried),
            (&mut self.ended, &other.ended),
        ];
        for (mine, others) in pairs {
            for (mine, others) in mine.iter_mut().flatten().zip(others.iter().flatten()) {
                *mine += others;
            }
        }
        Ok(())
    }

    /// Share of attacks from class k that ended as class i: `(ended + 1/2) / (tried + 1)`.
    pub fn share(&self, k: usize, i: usize) -> f64 {
        (self.ended[k][i] as f64 + 0.5) / (self.tried[k][i] as f64 + 1.0)
    }

    /// The coefficients A_k of all classes, in (0, 1). The shares out of a class without any image
    /// are the mean over the others.
    pub fn coefficients(&self) -> Vec<f64> {
        let classes = self.tried.len();
        let others = |k: usize| (0..classes).filter(move |&i| i != k);
        let known = |k: &usize| others(*k).any(|i| self.tried[*k][i] > 0);
        let mean = |values: Vec<f64>| match values.len() {
            0 => 0.5,
            n => values.iter().sum::<f64>() / n as f64,
        };
        let out_of = |k: usize| mean(others(k).map(|i| self.share(k, i)).collect());
        let usual = mean((0..classes).filter(known).map(out_of).collect());
        let coefficient = |k: usize| {
            let out = if known(&k) { out_of(k) } else { usual };
            let into = others(k).filter(known).map(|j| self.share(j, k));
            0.5 * (out + mean(into.collect()))
        };
        (0..classes).map(coefficient).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(tried: &[[u64; 3]; 3], ended: &[[u64; 3]; 3]) -> Tally {
        let rows = |of: &[[u64; 3]; 3]| of.iter().map(|row| row.to_vec()).collect();
        Tally {
            tried: rows(tried),
            ended: rows(ended),
        }
    }

    /// Equation 6 as printed, with alpha = 1 - share.
    fn printed(tally: &Tally, k: usize) -> f64 {
        let classes = tally.tried.len();
        let others = || (0..classes).filter(move |&i| i != k);
        let out: f64 = others().map(|i| 1.0 - tally.share(k, i)).sum();
        let into: f64 = others().map(|j| 1.0 - tally.share(j, k)).sum();
        1.0 - (out + into) / (2.0 * (classes as f64 - 1.0))
    }

    #[test]
    fn is_the_printed_formula() {
        let tally = tally(
            &[[0, 10, 10], [20, 0, 20], [5, 5, 0]],
            &[[0, 10, 3], [1, 0, 0], [5, 2, 0]],
        );
        for (k, coefficient) in tally.coefficients().into_iter().enumerate() {
            assert!((coefficient - printed(&tally, k)).abs() < 1e-12);
            assert!(0.0 < coefficient && coefficient < 1.0);
        }
    }

    /// All shares alike: so are the coefficients. (9 + 1/2) of (18 + 1) is one half.
    #[test]
    fn equal_shares_are_the_coefficient() {
        let tally = tally(
            &[[0, 18, 18], [18, 0, 18], [18, 18, 0]],
            &[[0, 9, 9], [9, 0, 9], [9, 9, 0]],
        );
        assert_eq!(tally.coefficients(), [0.5; 3]);
    }

    #[test]
    fn a_class_without_images_has_the_mean_of_the_others() {
        let tally = tally(
            &[[0, 18, 18], [18, 0, 18], [0, 0, 0]],
            &[[0, 9, 18], [9, 0, 18], [0, 0, 0]],
        );
        let (half, all) = (0.5, 18.5 / 19.0);
        let out = (half + all) / 2.0;
        let expected = [(out + half) / 2.0, (out + half) / 2.0, (out + all) / 2.0];
        for (a, e) in tally.coefficients().iter().zip(expected) {
            assert!((a - e).abs() < 1e-12, "{a} against {e}");
        }
    }

    #[test]
    fn parts_add_up() {
        let all = |value| [[value; 3]; 3];
        let (mut a, b) = (tally(&all(3), &all(1)), tally(&all(4), &all(2)));
        a.add(&b).unwrap();
        assert_eq!(a, tally(&all(7), &all(3)));
        assert!(a.add(&Tally::new(4)).is_err());
    }
}
