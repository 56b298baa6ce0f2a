//! Pixels to other pixels.

use rayon::prelude::*;
use theriac_ops::network::PreparedCache;

use crate::{Error, Mode, Model, Pass, Pixels, Result, Target};

/// Images in one task of [`craft`]. Fixed, so that no result can depend on the number of threads;
/// small, so that a task's activations stay in a core's cache.
pub const CHUNK: usize = 16;

/// Images that are cut in tasks of twice as many.
const MANY: usize = 512;

/// Images in one task of [`Cut::Large`].
const LARGE: usize = 64;

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

    /// The same aim at another target: that of a part of the batch.
    pub fn at(self, target: &T) -> Aim<'_, T> {
        match self {
            Self::Away(_) => Aim::Away(target),
            Self::Toward(_) => Aim::Toward(target),
        }
    }

    /// Whether an image that the model takes for the target, or not, is where it should be.
    pub fn reached(self, hit: bool) -> bool {
        match self {
            Self::Away(_) => !hit,
            Self::Toward(_) => hit,
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

    /// How [`craft`] cuts a batch for this attack.
    fn cut(&self) -> Cut {
        Cut::Small
    }
}

/// Size of the tasks that [`craft`] makes of a batch on a CPU. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// [`CHUNK`] images, twice as many of a large batch: their activations stay in a core's cache.
    Small,
    /// More images, for attacks whose finished images leave the batch: a task stays worth a pass.
    Large,
    /// The whole batch, for attacks that are made of attacks and call [`craft`] themselves.
    Whole,
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

    fn cut(&self) -> Cut {
        (**self).cut()
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

    fn cut(&self) -> Cut {
        (**self).cut()
    }
}

/// [`Attack::perturb`] over threads: on a CPU the batch is cut into tasks of [`CHUNK`] images, or
/// twice as many of a large batch, each of which runs its whole attack on one core; elsewhere it
/// stays whole, and so it does in training mode. Results do not depend on the cut.
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
    let cut = attack.cut();
    if cut == Cut::Whole {
        return attack.perturb(model, clean, aim, pass);
    }
    let chunk = chunk(clean, cut, pass);
    in_parts(
        &[clean],
        chunk,
        aim.target(),
        pass,
        |images, target, pass| attack.perturb(model, &images[0], aim.at(target), pass),
    )
}

/// Images in one task.
fn chunk(images: &Pixels, cut: Cut, pass: &Pass<'_>) -> usize {
    let n = images.len();
    match cut {
        _ if !images.tensor().device().is_cpu() => n,
        // Norms over the batch let images see each other.
        _ if pass.mode == Mode::Train => n,
        Cut::Small if n < MANY => CHUNK,
        // A batch that is large enough for many cores is cut in larger tasks, which read weights
        // less often.
        Cut::Small => 2 * CHUNK,
        Cut::Large => LARGE,
        Cut::Whole => n,
    }
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
    in_parts(images, chunk(first, Cut::Small, pass), target, pass, f)
}

fn in_parts<T: Target>(
    images: &[&Pixels],
    chunk: usize,
    target: &T,
    pass: &Pass<'_>,
    f: impl Fn(&[Pixels], &T, &Pass<'_>) -> Result<Pixels> + Sync,
) -> Result<Pixels> {
    let n = images.first().map_or(0, |batch| batch.len());
    let starts: Vec<usize> = (0..n).step_by(chunk.max(1)).collect();
    // No parameter changes while `f` runs.
    let fresh = PreparedCache::default();
    let pass = Pass {
        prepared: Some(pass.prepared.unwrap_or(&fresh)),
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

/// Runs `f` on fixed chunks of a batch over threads and joins its rows in order; `f` also gets
/// the position of its first image, and must treat images independently.
///
/// # Errors
/// Those of `f`; [`Error::Samples`] when the ids are not one for each image.
pub fn in_chunks<R: Send>(
    images: &Pixels,
    pass: &Pass<'_>,
    f: impl Fn(usize, &Pixels, &Pass<'_>) -> Result<Vec<R>> + Sync,
) -> Result<Vec<R>> {
    let (n, chunk) = (images.len(), chunk(images, Cut::Small, pass));
    if pass.samples.len() != n {
        let samples = pass.samples.len();
        return Err(Error::Samples { samples, images: n });
    }
    let fresh = PreparedCache::default();
    let pass = Pass {
        prepared: Some(pass.prepared.unwrap_or(&fresh)),
        ..*pass
    };
    let part = |start: usize| {
        let len = chunk.min(n - start);
        let (images, pass) = (images.narrow(start, len)?, pass.narrow(start, len)?);
        f(start, &images, &pass)
    };
    let starts: Vec<usize> = (0..n).step_by(chunk).collect();
    let parts: Vec<Vec<R>> = match starts.as_slice() {
        [only] => vec![part(*only)?],
        _ => starts.into_par_iter().map(part).collect::<Result<_>>()?,
    };
    Ok(parts.into_iter().flatten().collect())
}
