//! The images that an attack still works on.

use candle_core::Tensor;
use theriac::{Aim, Model, Pass, Pixels, Result, Target};

/// Images leave the batch when they are done: the rest of the work is spent on the others. No
/// result depends on who left, since attacks treat images one by one.
pub(crate) struct Active<T> {
    /// Positions in the whole batch.
    at: Vec<u32>,
    /// Their ids.
    pub(crate) samples: Vec<u32>,
    /// Their clean images.
    pub(crate) clean: Pixels,
    /// Their targets.
    pub(crate) target: T,
    /// The whole batch, with the results of those that left.
    result: Pixels,
}

impl<T: Target> Active<T> {
    pub(crate) fn all(clean: &Pixels, target: &T, samples: &[u32]) -> Result<Self> {
        Ok(Self {
            at: (0..clean.len() as u32).collect(),
            samples: samples.to_vec(),
            clean: clean.clone(),
            target: target.narrow(0, clean.len())?,
            result: clean.clone(),
        })
    }

    /// The images that do not fool the model as they are: the others have nothing to gain and stay
    /// clean. `None` when nobody is left; the positions of those that are, otherwise.
    pub(crate) fn unbroken<M>(
        model: &M,
        clean: &Pixels,
        aim: Aim<'_, T>,
        pass: &Pass<'_>,
    ) -> Result<(Self, Option<Vec<u32>>)>
    where
        M: Model<Target = T> + ?Sized,
    {
        let mut left = Self::all(clean, aim.target(), pass.samples)?;
        pass.meter.forward(pass.samples);
        let (_, hits) = model.loss_and_hits(clean, aim.target(), pass)?;
        let Some(hits) = hits else {
            let stay = (0..clean.len() as u32).collect();
            return Ok((left, Some(stay)));
        };
        let done: Vec<bool> = hits.into_iter().map(|hit| aim.reached(hit)).collect();
        let stay = left.leave(&done, clean)?;
        Ok((left, stay))
    }

    /// Lets the images go that are `done`, each with its image of `x`. Gives the positions of the
    /// others among the current ones, if any are left, for the caller to pick from its own state;
    /// `None` when nobody is left.
    pub(crate) fn leave(&mut self, done: &[bool], x: &Pixels) -> Result<Option<Vec<u32>>> {
        let (gone, stay): (Vec<u32>, Vec<u32>) =
            (0..self.at.len() as u32).partition(|&i| done[i as usize]);
        if gone.is_empty() {
            return Ok(Some(stay));
        }
        self.put(&gone, x)?;
        self.at = pick(&self.at, &stay);
        self.samples = pick(&self.samples, &stay);
        if stay.is_empty() {
            return Ok(None);
        }
        self.clean = self.clean.pick(&stay)?;
        self.target = self.target.pick(&stay)?;
        Ok(Some(stay))
    }

    /// The whole batch, those that are left with their images of `x`.
    pub(crate) fn finish(mut self, x: &Pixels) -> Result<Pixels> {
        if self.at.len() == self.result.len() {
            return Ok(x.clone());
        }
        if !self.at.is_empty() {
            let all: Vec<u32> = (0..self.at.len() as u32).collect();
            self.put(&all, x)?;
        }
        Ok(self.result)
    }

    fn put(&mut self, from: &[u32], x: &Pixels) -> Result<()> {
        let at = pick(&self.at, from);
        self.result = self.result.with(&at, &x.pick(from)?)?;
        Ok(())
    }
}

/// The entries at these positions.
pub(crate) fn pick<V: Clone>(values: &[V], at: &[u32]) -> Vec<V> {
    at.iter().map(|&i| values[i as usize].clone()).collect()
}

/// The rows at these positions.
pub(crate) fn pick_rows(tensor: &Tensor, at: &[u32]) -> Result<Tensor> {
    if at.len() == tensor.dim(0)? {
        return Ok(tensor.clone());
    }
    Ok(tensor.index_select(&Tensor::new(at, tensor.device())?, 0)?)
}
