//! Pixels to other pixels.

use rayon::prelude::*;
use theriac_ops::network::PreparedCache;

use crate::{Error, Model, Pass, Pixels, Result, Target};

/// Images in one task of [`craft`]. Fixed, so that no result can depend on the number of threads;
/// small, so that a task's activations stay in a core's cache.
pub const CHUNK: usize = 16;

/// Images that are cut in tasks of twice as many.
const MANY: usize = 512;

/// Where the loss should go.
#[derive(Debug)]
pub enum Aim<'a, T> {
    /// Raise the loss of this target (untargeted: the true label).
    Away(&'a T),
    /// Lower the loss of this target (targeted: the label to reach).
    Toward(&'a T),
}

impl<T> Clone for Aim<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Aim<'_, T> {}

impl<'a, T> Aim<'a, T> {
    /// The target.
    pub fn target(self) -> &'a T {
        match self {
            Self::Away(target) | Self::Toward(target) => target,
        }
    }

    /// The factor that turns the loss into something to maximise: 1 away, -1 toward.
    pub fn sign(self) -> f64 {
        match self {
            Self::Away(_) => 1.0,
            Self::Toward(_) => -1.0,
        }
    }
}

/// A way to turn clean images into adversarial ones.
///
/// The result of an image is a function of the model, the image, its target, its sample id and
/// the pass's generator: never of the other images in the batch. Attacks do not grade themselves;
/// success is judged by the evaluator.
pub trait Attack<M: Model + ?Sized>: Send + Sync {
    /// Adversarial images, shape (N, C, H, W), in the pixel cube and in the attack's budget.
    ///
    /// # Errors
    /// When the model fails or a gradient is not finite.
    fn perturb(
        &self,
        model: &M,
        clean: &Pixels,
        aim: Aim<'_, M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Pixels>;
}

impl<M: Model + ?Sized, A: Attack<M> + ?Sized> Attack<M> for Box<A> {
    fn perturb(
        &self,
        model: &M,
        clean: &Pixels,
        aim: Aim<'_, M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        (**self).perturb(model, clean, aim, pass)
    }
}

impl<M: Model + ?Sized, A: Attack<M> + ?Sized> Attack<M> for &A {
    fn perturb(
        &self,
        model: &M,
        clean: &Pixels,
        aim: Aim<'_, M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        (**self).perturb(model, clean, aim, pass)
    }
}

/// [`Attack::perturb`] over threads: on a CPU the batch is cut into tasks of [`CHUNK`] images, or
/// twice as many of a large batch, each of which runs its whole attack on one core; elsewhere it
/// stays whole. Results do not depend on the cut.
///
/// # Errors
/// Those of the attack.
pub fn craft<M, A>(
    attack: &A,
    model: &M,
    clean: &Pixels,
    aim: Aim<'_, M::Target>,
    pass: &Pass<'_>,
) -> Result<Pixels>
where
    M: Model + ?Sized,
    A: Attack<M> + ?Sized,
{
    let _span = tracing::debug_span!("craft", images = clean.len()).entered();
    over_chunks(&[clean], aim.target(), pass, |images, target, pass| {
        let aim = match aim {
            Aim::Away(_) => Aim::Away(target),
            Aim::Toward(_) => Aim::Toward(target),
        };
        attack.perturb(model, &images[0], aim, pass)
    })
}

/// Runs `f` on fixed chunks of batches that belong together (clean images, carried images) over
/// threads and joins the results in order. `f` must treat images independently.
///
/// # Errors
/// Those of `f`; [`Error::Empty`] without any batch.
pub fn over_chunks<T: Target>(
    images: &[&Pixels],
    target: &T,
    pass: &Pass<'_>,
    f: impl Fn(&[Pixels], &T, &Pass<'_>) -> Result<Pixels> + Sync,
) -> Result<Pixels> {
    let first = images.first().ok_or(Error::Empty {
        what: "list of batches",
    })?;
    let n = first.len();
    let on_cpu = first.tensor().device().is_cpu();
    // A batch that is large enough for many cores is cut in larger tasks, which read weights less
    // often.
    let chunk = match n {
        _ if !on_cpu => n,
        0..MANY => CHUNK,
        _ => 2 * CHUNK,
    };
    let starts: Vec<usize> = (0..n).step_by(chunk).collect();
    // No parameter changes while `f` runs.
    let prepared = PreparedCache::default();
    let pass = Pass {
        prepared: Some(&prepared),
        ..*pass
    };
    let part = |start: usize| {
        let len = chunk.min(n - start);
        let cut = images.iter().map(|batch| batch.narrow(start, len));
        let cut = cut.collect::<Result<Vec<_>>>()?;
        f(&cut, &target.narrow(start, len)?, &pass.narrow(start, len)?)
    };
    match starts.as_slice() {
        [only] => part(*only),
        _ => Pixels::cat(
            &starts
                .into_par_iter()
                .map(part)
                .collect::<Result<Vec<_>>>()?,
        ),
    }
}
