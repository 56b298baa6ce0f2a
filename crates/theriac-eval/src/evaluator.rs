//! From a model, an attack and images to a robust accuracy with its verdict.

use candle_core::DType;
use theriac::{
    Aim, Attack, Batch, Budget, Classifier, Eps, Error, Labels, Meter, Model, Norm, Pass, Pixels,
    Result, Rng, Run, Target, craft, gradient, in_chunks, largest, scores,
};
use theriac_attacks::{Declare, Keep, Pgd, Spec, Start};

use crate::accuracy::{labels_of, predict, sort_by_sample};
use crate::checks::{self, Check, Checks, Verdict};
use crate::doubled::doubled;
use crate::{Accuracy, Declared, Outcome, Reference, Robust, ThreatModel};

/// Images that the checks on a few images use: those with the smallest ids.
const FEW: usize = 200;
/// Steps of the attack with the whole pixel range; each is two of them wide.
const HUGE_STEPS: u32 = 20;
/// Randomness of the scoring pass. It differs from the attack's, which must not have seen the
/// very noise that a randomised model is scored with.
const SCORING: u64 = 0x5c0e_0000_0000_0001;
const AGAIN: u64 = 0x5c0e_0000_0000_0002;

/// Measures robust accuracy and checks what it measured.
///
/// Outcomes do not depend on the size or order of the batches, nor on the number of threads.
#[derive(Debug)]
pub struct Evaluator<'a, C: ?Sized> {
    /// The model, in evaluation mode.
    pub model: &'a C,
    /// Seed and counters.
    pub run: &'a Run,
    /// The checks to run.
    pub checks: Checks,
    /// The label that attacks refer to.
    pub reference: Reference,
}

impl<C: ?Sized> Clone for Evaluator<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: ?Sized> Copy for Evaluator<'_, C> {}

impl<'a, C: Classifier + ?Sized> Evaluator<'a, C> {
    /// With every check, leading away from the true label.
    pub fn new(model: &'a C, run: &'a Run) -> Self {
        Self {
            model,
            run,
            checks: Checks::all(),
            reference: Reference::Label,
        }
    }

    /// Robust accuracy under an attack given as data. `observe` gets the number of images done
    /// after each batch; the checks on a few images come after the last.
    ///
    /// # Errors
    /// Those of the batches, the attack and the model; [`Error::Empty`] without images;
    /// [`Error::Range`] or [`Error::NotFinite`] for clean images outside [0, 1] and for losses,
    /// gradients or logits that are NaN or infinite; [`Error::Setting`] when a sample id comes
    /// twice.
    pub fn spec<E: Into<Error>>(
        &self,
        spec: Spec,
        batches: impl IntoIterator<Item = Result<Batch<Labels>, E>>,
        observe: impl FnMut(usize),
    ) -> Result<Robust> {
        spec.check()?;
        let declared = spec.declared();
        let larger = match doubled(spec.clone())? {
            Some(larger) => Some((larger.declared().ball()?, Box::new(larger) as Box<_>)),
            None => None,
        };
        self.evaluate(&spec, larger, &declared, batches, observe)
    }

    /// Robust accuracy under any attack, described by `declared`. The check at twice the epsilon
    /// does not apply, because the attack cannot be rebuilt there.
    ///
    /// # Errors
    /// Those of [`Evaluator::spec`].
    pub fn attack<A, E>(
        &self,
        attack: &A,
        declared: &Declared,
        batches: impl IntoIterator<Item = Result<Batch<Labels>, E>>,
        observe: impl FnMut(usize),
    ) -> Result<Robust>
    where
        A: Attack<C> + ?Sized,
        E: Into<Error>,
    {
        self.evaluate(attack, None, declared, batches, observe)
    }

    /// Robust accuracy at several epsilons, in ascending order, each checked not to exceed the
    /// one before. `observe` gets the number of epsilons and of images done.
    ///
    /// # Errors
    /// Those of [`Evaluator::spec`] and of `at`.
    pub fn curve<B, E>(
        &self,
        at: impl Fn(Eps) -> Result<Spec>,
        epsilons: &[Eps],
        batches: impl Fn() -> B,
        mut observe: impl FnMut(usize, usize),
    ) -> Result<Vec<Robust>>
    where
        B: IntoIterator<Item = Result<Batch<Labels>, E>>,
        E: Into<Error>,
    {
        let mut epsilons = epsilons.to_vec();
        epsilons.sort_by(|a, b| a.get().total_cmp(&b.get()));
        // The next point of the curve is the larger epsilon; no need to attack there twice.
        let each = Self {
            checks: Checks {
                larger_eps: false,
                ..self.checks
            },
            ..*self
        };
        let mut points: Vec<Robust> = Vec::with_capacity(epsilons.len());
        for (done, eps) in epsilons.into_iter().enumerate() {
            let mut point = each.spec(at(eps)?, batches(), |images| observe(done, images))?;
            point.checks.retain(|check| check.name != checks::LARGER);
            point.push(match points.last() {
                None => Check::not_applicable(checks::LARGER, "the first point of the curve"),
                Some(last) => {
                    let size = |robust: &Robust| robust.threat_model.budget.eps().get();
                    checks::larger((size(last), last.accuracy), (size(&point), point.accuracy))
                }
            });
            points.push(point);
        }
        Ok(points)
    }

    fn evaluate<A, E>(
        &self,
        attack: &A,
        larger: Option<(Budget, Box<dyn Attack<C> + '_>)>,
        declared: &Declared,
        batches: impl IntoIterator<Item = Result<Batch<Labels>, E>>,
        mut observe: impl FnMut(usize),
    ) -> Result<Robust>
    where
        A: Attack<C> + ?Sized,
        E: Into<Error>,
    {
        let budget = declared.ball()?;
        let effort = Effort::default();
        let mut rows: Vec<Row> = Vec::new();
        let mut few = Few::default();
        let (mut clean_range, mut moved_range) = (EMPTY_RANGE, EMPTY_RANGE);
        for batch in batches {
            let batch = batch.map_err(Into::into)?;
            let labels = labels_of(&batch, self.model)?;
            Pixels::new(batch.pixels.tensor().clone())?;
            let shadow = self.checks.fgsm && declared.iterative;
            let facts = self.batch(attack, (budget, shadow), &batch, &labels, &effort)?;
            clean_range = join(clean_range, range(&batch.pixels)?);
            moved_range = join(moved_range, facts.moved_range);
            rows.extend(facts.rows);
            few.offer(&batch, &labels)?;
            observe(rows.len());
        }
        sort_by_sample(&mut rows, |row| row.outcome.sample)?;
        let few = few.into_batch(self.model.classes())?;

        let outcomes: Vec<Outcome> = rows.iter().map(|row| row.outcome).collect();
        let accuracy = Accuracy::over(&outcomes, Outcome::robust);
        let worst = outcomes.iter().max_by(|a, b| a.spent.total_cmp(&b.spent));
        let worst = worst.map_or((0, 0.0), |outcome| (outcome.sample, outcome.spent));
        let mut robust = Robust {
            accuracy,
            attacked: Accuracy::over(&outcomes, |o| o.moved == o.label),
            clean: Accuracy::over(&outcomes, |o| o.clean == o.label),
            threat_model: ThreatModel {
                budget,
                knowledge: declared.access.into(),
                reference: self.reference,
            },
            attack: declared.name.clone(),
            verdict: Verdict::Reliable,
            checks: Vec::new(),
            gradients: effort.attack.gradients(),
            forwards: effort.attack.forwards(),
            outcomes,
        };
        robust.push(checks::input_range(clean_range));
        robust.push(checks::bound(budget, worst, moved_range));
        robust.push(checks::reachable(declared, budget));
        for check in self.twice(&few, &effort.checks)? {
            robust.push(check);
        }
        robust.push(if self.checks.gradients {
            let resists = |row: &&Row| row.flat && row.outcome.robust();
            let flat = rows.iter().filter(resists).count();
            let meter = &effort.attack;
            checks::gradients(flat, rows.len(), meter.zero_gradients(), meter.gradients())
        } else {
            Check::not_run(checks::GRADIENTS)
        });
        robust.push(if !declared.iterative {
            Check::not_applicable(checks::FGSM, "the attack takes one step itself")
        } else if self.checks.fgsm {
            checks::shadow(accuracy, Accuracy::over(&rows, Row::survives_fgsm))
        } else {
            Check::not_run(checks::FGSM)
        });
        let here = Accuracy::over(&rows[..few.len()], |row| row.outcome.robust());
        robust.push(match larger {
            _ if !self.checks.larger_eps => Check::not_run(checks::LARGER),
            None => Check::not_applicable(checks::LARGER, "the attack has no larger epsilon"),
            Some((larger, attack)) => {
                let there = self.survivors(&*attack, &few, &effort.checks)?;
                let size = |budget: Budget| budget.eps().get();
                checks::larger((size(budget), here), (size(larger), there))
            }
        });
        robust.push(if self.checks.huge_eps {
            let left = self.survivors(&whole_range()?, &few, &effort.checks)?;
            checks::huge(left, self.model.classes())
        } else {
            Check::not_run(checks::HUGE)
        });
        effort.credit(self.run);
        match robust.verdict {
            Verdict::Reliable => tracing::info!(attack = %robust.attack, "{robust}"),
            _ => tracing::warn!(attack = %robust.attack, "{robust}"),
        }
        Ok(robust)
    }

    /// Everything that is learnt from one batch.
    fn batch<A: Attack<C> + ?Sized>(
        &self,
        attack: &A,
        (budget, shadow): (Budget, bool),
        batch: &Batch<Labels>,
        labels: &[u32],
        effort: &Effort,
    ) -> Result<Facts> {
        let Batch {
            pixels, samples, ..
        } = batch;
        let crafting = Pass {
            meter: &effort.attack,
            ..self.run.eval(samples)
        };
        let checking = Pass {
            meter: &effort.checks,
            ..crafting
        };
        let clean = predict(self.model, pixels, &checking)?;
        let reference = self.labels(batch, &clean)?;
        let aim = self.reference.aim(&reference);
        let moved = craft(attack, self.model, pixels, aim, &crafting)?;
        let spent = budget.spent(&moved, pixels)?;
        let predicted = predict(self.model, &moved, &checking.fork(SCORING))?;
        let mut rows: Vec<Row> = Vec::with_capacity(labels.len());
        for (i, &sample) in samples.iter().enumerate() {
            let (label, clean, moved) = (labels[i], clean[i], predicted[i]);
            let outcome = Outcome {
                sample,
                label,
                clean,
                moved,
                spent: spent[i],
            };
            rows.push(Row {
                outcome,
                flat: false,
                fgsm: moved,
            });
        }
        if self.checks.gradients || shadow {
            let (fgsm, flat) = one_step(self.model, pixels, aim, budget, &checking)?;
            for (row, flat) in rows.iter_mut().zip(flat) {
                row.flat = flat;
            }
            if shadow {
                let predicted = predict(self.model, &fgsm, &checking.fork(SCORING))?;
                for (row, predicted) in rows.iter_mut().zip(predicted) {
                    row.fgsm = predicted;
                }
            }
        }
        Ok(Facts {
            rows,
            moved_range: range(&moved)?,
        })
    }

    fn labels(&self, batch: &Batch<Labels>, clean: &[u32]) -> Result<Labels> {
        let (classes, device) = (self.model.classes(), batch.target.tensor().device());
        match self.reference {
            Reference::Prediction => Labels::new(clean, classes, device),
            Reference::Label => Ok(batch.target.clone()),
            Reference::Other => others(batch, classes, self.run.rng()),
        }
    }

    /// How many of a few images resist an attack.
    fn survivors<A: Attack<C> + ?Sized>(
        &self,
        attack: &A,
        few: &Batch<Labels>,
        meter: &Meter,
    ) -> Result<Accuracy> {
        let pass = Pass {
            meter,
            ..self.run.eval(&few.samples)
        };
        let labels = few.target.to_vec()?;
        let clean = predict(self.model, &few.pixels, &pass)?;
        let reference = self.labels(few, &clean)?;
        let aim = self.reference.aim(&reference);
        let moved = craft(attack, self.model, &few.pixels, aim, &pass)?;
        let moved = predict(self.model, &moved, &pass.fork(SCORING))?;
        let rows: Vec<_> = labels
            .into_iter()
            .zip(clean.into_iter().zip(moved))
            .collect();
        Ok(Accuracy::over(&rows, |(label, (clean, moved))| {
            clean == label && moved == label
        }))
    }

    /// What two passes over a few images show: whether they agree, and whether they take gradients.
    fn twice(&self, few: &Batch<Labels>, meter: &Meter) -> Result<[Check; 2]> {
        if !self.checks.repeatable {
            return Ok([checks::REPEATABLE, checks::DYNAMIC].map(Check::not_run));
        }
        let own = Meter::default();
        let pass = Pass {
            meter: &own,
            ..self.run.eval(&few.samples)
        };
        let one = scores(self.model, &few.pixels, &pass.fork(SCORING))?;
        let two = scores(self.model, &few.pixels, &pass.fork(AGAIN))?;
        meter.add(&own);
        let pairs = || one.iter().flatten().zip(two.iter().flatten());
        let drift = pairs().fold(0f64, |most, (a, b)| most.max((a - b).abs()));
        let flips = one
            .iter()
            .zip(&two)
            .filter(|(a, b)| largest(a) != largest(b))
            .count();
        Ok([
            checks::repeatable(drift, flips, few.len()),
            checks::dynamic(own.gradients(), 2 * few.len()),
        ])
    }
}

/// One image's facts.
struct Row {
    outcome: Outcome,
    /// Its gradient at the clean image is exactly zero.
    flat: bool,
    /// Prediction on the image that FGSM returned.
    fgsm: u32,
}

impl Row {
    fn survives_fgsm(&self) -> bool {
        self.outcome.clean == self.outcome.label && self.fgsm == self.outcome.label
    }
}

struct Facts {
    rows: Vec<Row>,
    moved_range: (f64, f64),
}

/// The attack's work apart from that of the checks.
#[derive(Default)]
struct Effort {
    attack: Meter,
    checks: Meter,
}

impl Effort {
    /// Adds all of it to the counters of the run.
    fn credit(&self, run: &Run) {
        for meter in [&self.attack, &self.checks] {
            run.meter().add(meter);
        }
    }
}

/// The images with the smallest ids: a choice that no order or size of batches changes.
#[derive(Default)]
struct Few(Vec<(u32, u32, Pixels)>);

impl Few {
    fn offer(&mut self, batch: &Batch<Labels>, labels: &[u32]) -> Result<()> {
        for (i, (&sample, &label)) in batch.samples.iter().zip(labels).enumerate() {
            let place = self.0.partition_point(|kept| kept.0 < sample);
            if place < FEW {
                // A clamp is a copy; a cut would keep the whole batch in memory.
                let image = Pixels::clamp(batch.pixels.narrow(i, 1)?.tensor())?;
                self.0.insert(place, (sample, label, image));
                self.0.truncate(FEW);
            }
        }
        Ok(())
    }

    fn into_batch(self, classes: usize) -> Result<Batch<Labels>> {
        let samples = self.0.iter().map(|kept| kept.0).collect();
        let labels: Vec<u32> = self.0.iter().map(|kept| kept.1).collect();
        let images: Vec<Pixels> = self.0.into_iter().map(|kept| kept.2).collect();
        let pixels = Pixels::cat(&images)?;
        let target = Labels::new(&labels, classes, pixels.tensor().device())?;
        Ok(Batch {
            pixels,
            target,
            samples,
        })
    }
}

/// FGSM from the gradient that shows whether it is zero: one gradient serves two checks.
fn one_step<C: Classifier + ?Sized>(
    model: &C,
    clean: &Pixels,
    aim: Aim<'_, Labels>,
    budget: Budget,
    pass: &Pass<'_>,
) -> Result<(Pixels, Vec<bool>)> {
    let parts = in_chunks(clean, pass, |start, x, pass| {
        let y = aim.target().narrow(start, x.len())?;
        let (_, g) = gradient(x, pass, |x| model.loss(x, &y, pass))?;
        let flat: Vec<bool> = Norm::Linf
            .of(&g)?
            .into_iter()
            .map(|norm| norm == 0.0)
            .collect();
        let step = (budget.norm().steepest(&g)? * (aim.sign() * budget.eps().get()))?;
        Ok(vec![(budget.project(&(x.tensor() + step)?, x)?, flat)])
    })?;
    let (images, flat): (Vec<Pixels>, Vec<Vec<bool>>) = parts.into_iter().unzip();
    Ok((Pixels::cat(&images)?, flat.concat()))
}

impl Reference {
    /// The labels that an attack on a batch refers to; those of [`Reference::Other`] are a function
    /// of the pass's seed and the image's id.
    ///
    /// # Errors
    /// Those of the model, and of labels that are no classes.
    pub fn labels<C: Classifier + ?Sized>(
        self,
        model: &C,
        batch: &Batch<Labels>,
        pass: &Pass<'_>,
    ) -> Result<Labels> {
        match self {
            Self::Label => Ok(batch.target.clone()),
            Self::Prediction => theriac::predict(model, &batch.pixels, pass),
            Self::Other => others(batch, model.classes(), pass.rng),
        }
    }

    /// Where the attack leads.
    pub fn aim(self, labels: &Labels) -> Aim<'_, Labels> {
        match self {
            Self::Label | Self::Prediction => Aim::Away(labels),
            Self::Other => Aim::Toward(labels),
        }
    }
}

/// A class of each image other than its label, uniform among them: a function of the seed and of
/// the image's id.
fn others(batch: &Batch<Labels>, classes: usize, rng: Rng) -> Result<Labels> {
    let draw = |(label, &sample): (u32, &u32)| {
        let bound = (classes as u32).saturating_sub(1);
        let other = rng.below("target class", u64::from(sample), bound);
        if other < label { other } else { other + 1 }
    };
    let labels = batch.target.to_vec()?.into_iter().zip(&batch.samples);
    let labels: Vec<u32> = labels.map(draw).collect();
    Labels::new(&labels, classes, batch.target.tensor().device())
}

/// PGD that may turn any image into any other.
fn whole_range() -> Result<Pgd> {
    let budget = Budget::linf(Eps::unit(1.0)?)?;
    let step = Eps::unit(2.0 / f64::from(HUGE_STEPS))?;
    Ok(Pgd {
        start: Start::Clean,
        keep: Keep::Best,
        ..Pgd::new(budget, step, HUGE_STEPS)
    })
}

const EMPTY_RANGE: (f64, f64) = (f64::INFINITY, f64::NEG_INFINITY);

/// Smallest and largest value; NaN when there is one.
fn range(pixels: &Pixels) -> Result<(f64, f64)> {
    let values = pixels
        .tensor()
        .flatten_all()?
        .to_dtype(DType::F64)?
        .to_vec1::<f64>()?;
    Ok(values
        .into_iter()
        .fold(EMPTY_RANGE, |known, value| join(known, (value, value))))
}

/// `f64::min` and `f64::max` would drop a NaN.
fn join(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    let nan = |x: f64, y: f64| x.is_nan() || y.is_nan();
    let low = if nan(a.0, b.0) {
        f64::NAN
    } else {
        a.0.min(b.0)
    };
    let high = if nan(a.1, b.1) {
        f64::NAN
    } else {
        a.1.max(b.1)
    };
    (low, high)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use theriac_attacks::{Fgsm, bim};

    use super::*;
    use crate::Finding;
    use crate::testing::{Affine, Flaw, batches, images};

    fn eps(size: f64) -> Eps {
        Eps::unit(size).unwrap()
    }

    fn linf(size: f64) -> Budget {
        Budget::linf(eps(size)).unwrap()
    }

    fn pgd(size: f64) -> Spec {
        Spec::Pgd(Pgd::new(linf(size), eps(size / 4.0), 12))
    }

    fn evaluate(model: &Affine, spec: Spec) -> Result<Robust> {
        let run = Run::new(7, &Device::Cpu);
        Evaluator::new(model, &run).spec(spec, batches(&images(60), 25), |_| {})
    }

    fn finding(robust: &Robust, name: &str) -> Finding {
        robust
            .checks
            .iter()
            .find(|check| check.name == name)
            .unwrap()
            .finding
    }

    #[test]
    fn agrees_with_the_closed_form_of_a_linear_model() -> Result<()> {
        let model = Affine::new();
        let data = images(60);
        let resists = model.resists(&data, 0.05)?;
        for spec in [pgd(0.05), Spec::Fgsm(Fgsm { budget: linf(0.05) })] {
            let robust = evaluate(&model, spec)?;
            let got: Vec<bool> = robust.outcomes.iter().map(Outcome::robust).collect();
            assert_eq!(got, resists);
            let correct = resists.iter().filter(|&&resists| resists).count();
            assert!(
                correct > 5 && correct < 50,
                "{correct} of 60: the test would say little"
            );
            assert_eq!(robust.accuracy, Accuracy { correct, n: 60 });
            assert_eq!(robust.clean, Accuracy { correct: 54, n: 60 });
            let success = robust.attack_success().unwrap();
            assert!((success - (54 - correct) as f64 / 54.0).abs() < 1e-12);
            assert_eq!(robust.verdict, Verdict::Reliable, "{robust}");
            assert_eq!(robust.checks.len(), 9);
        }
        Ok(())
    }

    #[test]
    fn does_not_depend_on_batches_order_or_threads() -> Result<()> {
        let model = Affine::new();
        let data = images(60);
        let text = |batches: Vec<Result<Batch<Labels>>>| -> Result<String> {
            let run = Run::new(7, &Device::Cpu);
            let mut done = Vec::new();
            let robust = Evaluator::new(&model, &run)
                .spec(pgd(0.05), batches, |images| done.push(images))?;
            assert_eq!(done.last(), Some(&60));
            assert_eq!(robust.gradients, 60 * 12);
            Ok(serde_json::to_string(&robust).unwrap())
        };
        let one = text(batches(&data, 64))?;
        assert_eq!(text(batches(&data, 7))?, one);
        assert_eq!(text(batches(&data, 7).into_iter().rev().collect())?, one);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        assert_eq!(pool.install(|| text(batches(&data, 64)))?, one);
        Ok(())
    }

    #[test]
    fn the_shadow_is_fgsm() -> Result<()> {
        let (model, data) = (Affine::new(), images(20));
        let run = Run::new(7, &Device::Cpu);
        let pass = run.eval(&data.samples);
        for budget in [linf(0.05), Budget::l2(eps(0.4))?] {
            let aim = Aim::Away(&data.target);
            let fgsm = craft(&Fgsm { budget }, &model, &data.pixels, aim, &pass)?;
            let (shadow, flat) =
                one_step(&model, &data.pixels, Aim::Away(&data.target), budget, &pass)?;
            assert!(budget.spent(&shadow, &fgsm)?.iter().all(|d| *d == 0.0));
            assert_eq!(flat, [false; 20]);
        }
        Ok(())
    }

    /// Another attack under a declaration that does not fit it.
    struct Disguised {
        attack: Pgd,
        turned: bool,
    }

    impl<C: Classifier + ?Sized> Attack<C> for Disguised {
        fn perturb(
            &self,
            model: &C,
            clean: &Pixels,
            aim: Aim<'_, Labels>,
            pass: &Pass<'_>,
        ) -> Result<Pixels> {
            let aim = if self.turned {
                Aim::Toward(aim.target())
            } else {
                aim
            };
            self.attack.perturb(model, clean, aim, pass)
        }
    }

    fn disguised(actual: f64, turned: bool) -> Result<Robust> {
        let attack = Disguised {
            attack: Pgd::new(linf(actual), eps(0.02), 10),
            turned,
        };
        let declared = Declared {
            name: "disguised".to_owned(),
            ..pgd(0.05).declared()
        };
        let run = Run::new(7, &Device::Cpu);
        let model = Affine::new();
        Evaluator::new(&model, &run).attack(&attack, &declared, batches(&images(60), 25), |_| {})
    }

    #[test]
    fn an_attack_that_leaves_its_ball_is_invalid() -> Result<()> {
        let robust = disguised(0.06, false)?;
        assert_eq!(finding(&robust, checks::BOUND), Finding::Invalid);
        assert_eq!(robust.verdict, Verdict::Invalid);
        assert!(
            robust.to_string().contains("moved as much as 0.06"),
            "{robust}"
        );
        assert_eq!(disguised(0.05, false)?.verdict, Verdict::Reliable);
        Ok(())
    }

    #[test]
    fn an_attack_with_the_sign_turned_is_invalid() -> Result<()> {
        let robust = disguised(0.05, true)?;
        assert_eq!(finding(&robust, checks::FGSM), Finding::Invalid, "{robust}");
        assert_eq!(finding(&robust, checks::LARGER), Finding::NotApplicable);
        // It makes wrong predictions right, which must not count as robustness.
        assert!(robust.attacked.correct > robust.accuracy.correct);
        Ok(())
    }

    #[test]
    fn too_few_steps_are_questionable() -> Result<()> {
        let short = bim(eps(0.05), eps(0.005), 9)?;
        let refused = evaluate(&Affine::new(), Spec::Pgd(short)).unwrap_err();
        assert!(refused.to_string().contains("short_reach"), "{refused}");
        let short = Pgd {
            short_reach: true,
            ..short
        };
        let robust = evaluate(&Affine::new(), Spec::Pgd(short))?;
        assert_eq!(finding(&robust, checks::REACH), Finding::Questionable);
        assert_eq!(
            robust.verdict,
            Verdict::Invalid,
            "FGSM is stronger:\n{robust}"
        );
        let robust = evaluate(&Affine::new(), Spec::Pgd(bim(eps(0.05), eps(0.005), 10)?))?;
        assert_eq!(robust.verdict, Verdict::Reliable, "{robust}");
        Ok(())
    }

    #[test]
    fn masked_gradients_are_found() -> Result<()> {
        for flaw in [Flaw::Rounded, Flaw::Saturated] {
            let robust = evaluate(&Affine::with(flaw), pgd(0.05))?;
            assert_eq!(
                finding(&robust, checks::GRADIENTS),
                Finding::Invalid,
                "{robust}"
            );
            assert_eq!(
                finding(&robust, checks::HUGE),
                Finding::Questionable,
                "{robust}"
            );
        }
        Ok(())
    }

    #[test]
    fn a_randomised_model_is_questionable() -> Result<()> {
        let robust = evaluate(&Affine::with(Flaw::Noisy), pgd(0.05))?;
        assert_eq!(
            finding(&robust, checks::REPEATABLE),
            Finding::Questionable,
            "{robust}"
        );
        assert_ne!(robust.verdict, Verdict::Reliable);
        Ok(())
    }

    #[test]
    fn an_epsilon_that_overshoots_is_questionable() -> Result<()> {
        // One step of 0.1 crosses into the other class, one of 0.2 lands beyond it.
        let robust = evaluate(
            &Affine::with(Flaw::Periodic),
            Spec::Fgsm(Fgsm { budget: linf(0.1) }),
        )?;
        assert_eq!(
            finding(&robust, checks::LARGER),
            Finding::Questionable,
            "{robust}"
        );
        Ok(())
    }

    #[test]
    fn a_curve_never_rises() -> Result<()> {
        let model = Affine::new();
        let run = Run::new(7, &Device::Cpu);
        let data = images(60);
        let evaluator = Evaluator::new(&model, &run);
        let sizes = [eps(0.1), eps(0.0), eps(0.05)];
        let curve = |at: &dyn Fn(Eps) -> Result<Spec>| {
            evaluator.curve(at, &sizes, || batches(&data, 25), |_, _| {})
        };
        let points = curve(&|eps| Ok(pgd(eps.get())))?;
        let left: Vec<usize> = points.iter().map(|point| point.accuracy.correct).collect();
        assert_eq!(left[0], 54);
        assert!(left[0] > left[1] && left[1] > left[2], "{left:?}");
        assert!(
            points
                .iter()
                .all(|point| point.verdict == Verdict::Reliable)
        );
        let lazy = curve(&|size| {
            let step = if size.get() > 0.07 { eps(0.0) } else { size };
            Ok(Spec::Pgd(Pgd {
                short_reach: true,
                ..bim(size, step, 4)?
            }))
        })?;
        assert_eq!(finding(&lazy[2], checks::LARGER), Finding::Questionable);
        Ok(())
    }

    #[test]
    fn switched_off_checks_are_still_named() -> Result<()> {
        let (model, run) = (Affine::new(), Run::new(7, &Device::Cpu));
        let evaluator = Evaluator {
            checks: Checks::cheap(),
            reference: Reference::Prediction,
            ..Evaluator::new(&model, &run)
        };
        let robust = evaluator.spec(pgd(0.05), batches(&images(60), 25), |_| {})?;
        assert_eq!(finding(&robust, checks::HUGE), Finding::NotRun);
        let text = robust.to_string();
        assert!(
            text.contains("not run: larger epsilon, huge epsilon"),
            "{text}"
        );
        assert!(text.contains("away from the predicted label"), "{text}");
        assert!(
            text.contains("n = 60") && text.contains("Linf 0.05"),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn dark_and_broken_images_are_found() -> Result<()> {
        let (model, run) = (Affine::new(), Run::new(7, &Device::Cpu));
        let evaluator = Evaluator::new(&model, &run);
        let mapped = |factor: f64| -> Result<Robust> {
            let mut data = images(20);
            data.pixels = Pixels::clamp(&(data.pixels.tensor() * factor)?)?;
            evaluator.spec(pgd(0.05), batches(&data, 20), |_| {})
        };
        assert_eq!(
            finding(&mapped(1.0 / 255.0)?, checks::INPUT),
            Finding::Questionable
        );
        let error = mapped(f64::NAN).unwrap_err().to_string();
        assert!(error.contains("pixels holds"), "{error}");
        Ok(())
    }
}
