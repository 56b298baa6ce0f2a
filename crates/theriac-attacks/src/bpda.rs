//! Backward pass differentiable approximation.

use candle_core::Tensor;
use theriac::{Classifier, Pass, Pixels, Result, vjp};

/// A classifier behind a part that has no useful gradient (rounding, JPEG, a resize by nearest
/// neighbours): runs the part forward, and another function backward.
///
/// ```text
/// f(x) = model(part(x)),    d part / d x := d surrogate / d x
/// ```
///
/// Athalye, Carlini & Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
/// section 4.1. The identity is the usual surrogate ([`Bpda::straight_through`]).
///
/// ```
/// # use theriac_attacks::Bpda;
/// # use candle_core::Tensor;
/// # fn around<C: theriac::Classifier>(model: C) {
/// let rounds = |x: &Tensor| -> theriac::Result<Tensor> { Ok(((x * 255.0)?.round()? / 255.0)?) };
/// let attacked = Bpda::straight_through(model, rounds);
/// # let _ = attacked; }
/// ```
pub struct Bpda<C, P, S> {
    /// What follows the part.
    pub model: C,
    /// The part: pixels (N, C, H, W) to pixels.
    pub part: P,
    /// Pixels (N, C, H, W) and the gradient by the part's result to the gradient by the pixels.
    pub back: S,
}

/// The backward map of a surrogate.
type Back = fn(&Tensor, &Tensor) -> Result<Tensor>;

impl<C, P> Bpda<C, P, Back> {
    /// With the identity as surrogate, for parts that keep the shape.
    pub fn straight_through(model: C, part: P) -> Self {
        Self {
            model,
            part,
            back: |_, g| Ok(g.clone()),
        }
    }
}

impl<C, P, S> Classifier for Bpda<C, P, S>
where
    C: Classifier,
    P: Fn(&Tensor) -> Result<Tensor> + Send + Sync,
    S: Fn(&Tensor, &Tensor) -> Result<Tensor> + Clone + Send + Sync + 'static,
{
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let through = x.through(|x| {
            let value = (self.part)(&x.detach())?;
            let (back, at) = (self.back.clone(), x.detach());
            Ok(vjp(x, value, move |g| {
                back(&at, g).map_err(candle_core::Error::wrap)
            })?)
        })?;
        self.model.logits(&through, pass)
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }
}
