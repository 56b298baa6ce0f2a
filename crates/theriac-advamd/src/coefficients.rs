//! How vulnerable each class is.
//!
//! ```text
//! A_k = 1 - (sum_{i != k} alpha_k^i + sum_{j != k} alpha_j^k) / (2 (K - 1))        equation 6
//! alpha_k^i in [0, 1]: how hard it is to change the decision from class k to class i
//! ```
//!
//! The paper does not say how alpha is measured. Ours: alpha = 1 - r, where r is the share of attacked
//! images of class k that end as class i, with half an image added to either side. Then A_k is the
//! mean of the shares out of k and into k. [`Ladder`] has a graded alpha.

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
        images: (&Pixels, &Labels),
        pass: &Pass<'_>,
    ) -> Result<()> {
        let Some(right) = Right::of(model, images, pass)? else {
            return Ok(());
        };
        let classes = self.tried.len() as u32;
        let all: Vec<u32> = (0..right.truth.len() as u32).collect();
        let steps = match alpha {
            Alpha::Targeted => 1..classes,
            Alpha::Untargeted => 0..1,
        };
        for step in steps {
            let aimed = right.aimed(step, classes);
            let ended = right.attacked(model, attack, (&aimed, &all), step, pass)?;
            for ((&k, &aimed), &ended) in right.truth.iter().zip(&aimed).zip(&ended) {
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
        self.equation_6(|k, i| self.share(k, i))
    }

    /// Equation 6 with `ease(k, i) = 1 - alpha_k^i`.
    fn equation_6(&self, ease: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        let classes = self.tried.len();
        let others = |k: usize| (0..classes).filter(move |&i| i != k);
        let known = |k: &usize| others(*k).any(|i| self.tried[*k][i] > 0);
        let mean = |values: Vec<f64>| match values.len() {
            0 => 0.5,
            n => values.iter().sum::<f64>() / n as f64,
        };
        let out_of = |k: usize| mean(others(k).map(|i| ease(k, i)).collect());
        let usual = mean((0..classes).filter(known).map(out_of).collect());
        let coefficient = |k: usize| {
            let out = if known(&k) { out_of(k) } else { usual };
            let into = others(k).filter(known).map(|j| ease(j, k));
            0.5 * (out + mean(into.collect()))
        };
        (0..classes).map(coefficient).collect()
    }

    /// Whether at least half of the attacks from class k ended as class i.
    fn mostly(&self, k: usize, i: usize) -> bool {
        self.tried[k][i] > 0 && 2 * self.ended[k][i] >= self.tried[k][i]
    }
}

/// A graded alpha: the median over images of class k of the least tested size of attack that ends as
/// class i, over the largest tested size; 1 where half of the images hold out against all sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ladder {
    /// Tested sizes in units of the first one, ascending.
    sizes: Vec<f64>,
    /// What this size or a smaller one has done.
    tallies: Vec<Tally>,
}

impl Ladder {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// [`Error::Setting`] unless sizes are positive and ascend.
    pub fn new(sizes: &[f64], classes: usize) -> Result<Self> {
        let ascend = sizes.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascend
            || sizes
                .first()
                .is_none_or(|&first| first.is_nan() || first <= 0.0)
        {
            return Err(Error::Setting {
                name: "sizes",
                value: format!("{sizes:?}"),
                remedy: "give positive ones that ascend",
            });
        }
        Ok(Self {
            sizes: sizes.to_vec(),
            tallies: vec![Tally::new(classes); sizes.len()],
        })
    }

    /// Attacks images that the model has right toward every other class, with one attack for each
    /// size; what one size has moved, larger ones need not attack.
    ///
    /// # Errors
    /// [`Error::Setting`] for another number of attacks; those of the model and the attacks.
    pub fn count<C: Classifier, A: Attack<C>>(
        &mut self,
        model: &C,
        attacks: &[A],
        images: (&Pixels, &Labels),
        pass: &Pass<'_>,
    ) -> Result<()> {
        if attacks.len() != self.sizes.len() {
            return Err(Error::Setting {
                name: "attacks",
                value: attacks.len().to_string(),
                remedy: "give one for each size",
            });
        }
        let Some(right) = Right::of(model, images, pass)? else {
            return Ok(());
        };
        let classes = self.tallies[0].tried.len();
        for step in 1..classes as u32 {
            let aimed = right.aimed(step, classes as u32);
            let mut left: Vec<u32> = (0..aimed.len() as u32).collect();
            for (attack, tally) in attacks.iter().zip(&mut self.tallies) {
                if !left.is_empty() {
                    let ended = right.attacked(model, attack, (&aimed, &left), step, pass)?;
                    left = left
                        .into_iter()
                        .zip(ended)
                        .filter_map(|(i, ended)| (ended != aimed[i as usize]).then_some(i))
                        .collect();
                }
                for (i, (&k, &aimed)) in right.truth.iter().zip(&aimed).enumerate() {
                    let held = left.binary_search(&(i as u32)).is_ok();
                    let ended = if held { k } else { aimed };
                    tally.note(Alpha::Targeted, k, aimed, ended);
                }
            }
        }
        Ok(())
    }

    /// alpha_k^i in (0, 1].
    pub fn alpha(&self, k: usize, i: usize) -> f64 {
        let rungs = self.sizes.iter().zip(&self.tallies);
        let least = rungs.clone().find(|(_, tally)| tally.mostly(k, i));
        match (least, self.sizes.last()) {
            (Some((size, _)), Some(largest)) => size / largest,
            _ => 1.0,
        }
    }

    /// The coefficients A_k of all classes, in [0, 1): 0 for a class that nothing moves.
    pub fn coefficients(&self) -> Vec<f64> {
        self.tallies[0].equation_6(|k, i| 1.0 - self.alpha(k, i))
    }
}

/// The images of a batch that a model has right.
struct Right {
    images: Pixels,
    truth: Vec<u32>,
    samples: Vec<u32>,
}

impl Right {
    /// `None` when there are none.
    fn of<C: Classifier>(
        model: &C,
        (images, labels): (&Pixels, &Labels),
        pass: &Pass<'_>,
    ) -> Result<Option<Self>> {
        let (truth, said) = (labels.to_vec()?, predict(model, images, pass)?.to_vec()?);
        let right = |i: &u32| truth[*i as usize] == said[*i as usize];
        let right: Vec<u32> = (0..truth.len() as u32).filter(right).collect();
        if right.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            images: images.pick(&right)?,
            samples: right.iter().map(|&i| pass.samples[i as usize]).collect(),
            truth: right.iter().map(|&i| truth[i as usize]).collect(),
        }))
    }

    /// For each image the class so many after its own, round about.
    fn aimed(&self, step: u32, classes: u32) -> Vec<u32> {
        self.truth.iter().map(|k| (k + step) % classes).collect()
    }

    /// What some of the images are taken for after an attack toward (`step` 0: away from) a class.
    fn attacked<C: Classifier, A: Attack<C>>(
        &self,
        model: &C,
        attack: &A,
        (aimed, of): (&[u32], &[u32]),
        step: u32,
        pass: &Pass<'_>,
    ) -> Result<Vec<u32>> {
        let images = self.images.pick(of)?;
        let samples: Vec<u32> = of.iter().map(|&i| self.samples[i as usize]).collect();
        let aimed: Vec<u32> = of.iter().map(|&i| aimed[i as usize]).collect();
        let aimed = Labels::new(&aimed, model.classes(), images.tensor().device())?;
        let aim = match step {
            0 => Aim::Away(&aimed),
            _ => Aim::Toward(&aimed),
        };
        let pass = pass.over(&samples).fork(u64::from(step));
        let moved = craft(attack, model, &images, aim, &pass)?;
        predict(model, &moved, &pass)?.to_vec()
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

    /// Half of the images of class 0 give way to the second of three sizes; class 1 to the first;
    /// none of class 2.
    #[test]
    fn a_ladder_takes_the_median_of_the_least_size() {
        let tried = [[0, 4, 4], [4, 0, 4], [4, 4, 0]];
        let rung = |of_0, of_1| tally(&tried, &[[0, of_0, of_0], [of_1, 0, of_1], [1, 1, 0]]);
        let mut ladder = Ladder::new(&[0.5, 1.0, 4.0], 3).unwrap();
        ladder.tallies = vec![rung(1, 2), rung(2, 4), rung(3, 4)];
        let alpha = |k, i| ladder.alpha(k, i);
        assert_eq!([alpha(0, 1), alpha(1, 2), alpha(2, 0)], [0.25, 0.125, 1.0]);
        // 1 - (sum out of k + sum into k) / 4
        let expected = [
            1.0 - (0.25 + 0.25 + 0.125 + 1.0) / 4.0,
            1.0 - (0.125 + 0.125 + 0.25 + 1.0) / 4.0,
            1.0 - (1.0 + 1.0 + 0.25 + 0.125) / 4.0,
        ];
        for (a, e) in ladder.coefficients().iter().zip(expected) {
            assert!((a - e).abs() < 1e-12, "{a} against {e}");
        }
        for sizes in [&[][..], &[0.0, 1.0], &[2.0, 1.0], &[f64::NAN]] {
            assert!(Ladder::new(sizes, 3).is_err(), "{sizes:?}");
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
