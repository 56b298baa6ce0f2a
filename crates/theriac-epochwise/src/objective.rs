//! The training step.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use theriac::{
    Batch, Budget, Classifier, Eps, Error, Labels, Model, Pass, Pixels, Result, gradient,
    over_chunks,
};
use theriac_nn::{Entry, Saved, Twin};
use theriac_train::{LabelSource, Objective, mixture};

use crate::{Carry, Store};

/// Steps that add up to eps.
const STEPS: u32 = 10;

/// What `eps / 10` limits (the paper's section 5 can be read both ways).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// The step of one epoch; the sum is limited by eps.
    #[default]
    Step,
    /// The whole perturbation: a literal reading, too weak for the printed numbers.
    Total,
}

/// What happens once enough steps for the full eps are taken, ten epochs into a cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AfterCap {
    /// Keep stepping inside the ball.
    #[default]
    Project,
    /// Keep the images as they are until the reset.
    Freeze,
    /// Start again from the clean images.
    Reset,
}

/// The paper's open points, each default our reading of it. No code was published.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reading {
    /// Epochs between resets; 20 in the paper.
    pub reset_every: usize,
    /// What eps / 10 limits.
    pub limit: Limit,
    /// After the steps have added up to eps.
    pub after_cap: AfterCap,
    /// Whether the step comes before the weight update; otherwise the images of the last epoch
    /// are learned and the step follows on the updated weights.
    pub attack_first: bool,
    /// Whether the first epoch of a cycle learns x itself as its adversarial half, the step being
    /// taken for the next epoch.
    pub use_x0: bool,
    /// Standard deviation of Gaussian noise added at a reset; 0 in ours, 0.001 in ATTA (Zheng et
    /// al. 2020), a later method with the same idea.
    pub reset_noise: f64,
    /// Weight w of the clean half.
    pub clean_weight: f64,
    /// The label that the step moves away from.
    pub label: LabelSource,
    /// How the carried images are kept.
    pub store: Store,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            reset_every: 20,
            limit: Limit::Step,
            after_cap: AfterCap::Project,
            attack_first: true,
            use_x0: false,
            reset_noise: 0.0,
            clean_weight: 0.5,
            label: LabelSource::True,
            store: Store::F32,
        }
    }
}

/// Single-step adversarial training whose perturbation is carried over epochs.
///
/// ```text
/// every `reset_every` epochs:  x'_i <- x_i for all images
/// every batch I:               x'_I <- P(x'_I + step * sign(grad_x L(x'_I, y)))
///                              loss = w * mean CE(z(x_I), y) + (1 - w) * mean CE(z(x'_I), y)
/// ```
///
/// Liu, Khalil & Khreishah, "Using intuition from empirical properties to simplify adversarial
/// training defense", 2019, section 4 and figure 3b: BIM's iterations are spread over epochs, so
/// an epoch costs two gradient passes a batch whatever the strength reached.
#[derive(Clone, Debug)]
pub struct EpochWise {
    budget: Budget,
    step: Eps,
    reading: Reading,
    carry: Carry,
    epoch: usize,
}

impl EpochWise {
    /// A Linf ball of radius `eps` (the paper: 0.3 on MNIST, 0.2 on Fashion-MNIST) and steps of
    /// eps / 10.
    ///
    /// # Errors
    /// When `eps` is above 1 or 0, or `reset_every` is 0.
    pub fn new(eps: Eps, reading: Reading) -> Result<Self> {
        if reading.reset_every == 0 || eps.get() == 0.0 {
            let value = format!("{}, eps = {eps}", reading.reset_every);
            let remedy = "give both a value above 0";
            return Err(Error::Setting {
                name: "reset_every",
                value,
                remedy,
            });
        }
        let carry = Carry::new(reading.store, eps.get());
        Ok(Self {
            budget: Budget::linf(eps)?,
            step: eps.over(STEPS)?,
            reading,
            carry,
            epoch: 0,
        })
    }

    /// The same objective, with memory for sample ids 0..images taken at once. Without it the
    /// carried images still find room, but growing needs twice their memory for a moment.
    pub fn for_images(mut self, images: usize) -> Self {
        self.carry.expect(images);
        self
    }

    /// The carried version of a batch; clean where there is none.
    ///
    /// # Errors
    /// When the ids are not one for each image.
    pub fn carried(&self, batch: &Batch<Labels>) -> Result<Pixels> {
        self.carry.get(&batch.samples, &batch.pixels)
    }

    /// Takes one step from the carried images on the frozen network and carries the result.
    fn advance<C: Classifier>(
        &mut self,
        twin: &Twin<C>,
        batch: &Batch<Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let from = self.version(batch, pass)?;
        if self.reading.after_cap == AfterCap::Freeze && self.capped() {
            return Ok(from);
        }
        let pass = pass.eval();
        let labels = self.reading.label.labels(&twin.frozen, batch, &pass)?;
        let (ball, size) = (self.ball()?, self.step.get());
        let moved = over_chunks(
            &[&from, &batch.pixels],
            &labels,
            &pass,
            |images, labels, pass| {
                let [from, clean] = images else {
                    return Err(Error::Empty { what: "chunk" });
                };
                let (_, g) = gradient(from, pass, |x| twin.frozen.loss(x, labels, pass))?;
                let step = (ball.norm().steepest(&g)? * size)?;
                ball.project(&(from.tensor() + step)?, clean)
            },
        )?;
        self.carry.put(&batch.samples, &moved, &batch.pixels)?;
        Ok(moved)
    }

    /// x'_I, or x'_0 for images not carried since the reset.
    fn version(&self, batch: &Batch<Labels>, pass: &Pass<'_>) -> Result<Pixels> {
        let carried = self.carried(batch)?;
        if self.reading.reset_noise == 0.0 {
            return Ok(carried);
        }
        let fresh: Vec<bool> = batch.samples.iter().map(|&s| !self.carry.has(s)).collect();
        let noise = (pass.normal("reset", batch.pixels.tensor())? * self.reading.reset_noise)?;
        let noisy = self
            .budget
            .project(&(carried.tensor() + noise)?, &batch.pixels)?;
        noisy.select(&fresh, &carried)
    }

    fn ball(&self) -> Result<Budget> {
        match self.reading.limit {
            Limit::Step => Ok(self.budget),
            Limit::Total => Budget::linf(self.step),
        }
    }

    /// Epochs since the reset.
    fn since_reset(&self) -> usize {
        self.epoch % self.cycle()
    }

    fn cycle(&self) -> usize {
        match self.reading.after_cap {
            AfterCap::Reset => self.reading.reset_every.min(STEPS as usize),
            AfterCap::Project | AfterCap::Freeze => self.reading.reset_every,
        }
    }

    fn capped(&self) -> bool {
        self.since_reset() >= STEPS as usize
    }
}

impl<C: Classifier> Objective<C> for EpochWise {
    fn loss(&mut self, twin: &Twin<C>, batch: &Batch<Labels>, pass: &Pass<'_>) -> Result<Tensor> {
        let moved = if !self.reading.attack_first {
            self.version(batch, pass)?
        } else if self.reading.use_x0 {
            let before = self.version(batch, pass)?;
            self.advance(twin, batch, pass)?;
            before
        } else {
            self.advance(twin, batch, pass)?
        };
        mixture(twin, batch, &moved, self.reading.clean_weight, pass)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.epoch = epoch;
        if self.since_reset() == 0 {
            self.carry.reset();
        }
        Ok(())
    }

    fn after_update(
        &mut self,
        twin: &Twin<C>,
        batch: &Batch<Labels>,
        pass: &Pass<'_>,
    ) -> Result<()> {
        if !self.reading.attack_first {
            self.advance(twin, batch, pass)?;
        }
        Ok(())
    }

    fn state(&self) -> Result<Vec<Entry<'_>>> {
        Ok(self.carry.state())
    }

    fn restore(&mut self, saved: &Saved, prefix: &str) -> Result<()> {
        self.carry.restore(saved, prefix)
    }
}
