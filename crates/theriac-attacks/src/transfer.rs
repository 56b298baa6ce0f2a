//! Attacks crafted on another model.

use theriac::{Aim, Attack, Classifier, Cut, Labels, Model, Pass, Pixels, Result, predict};

/// Crafts on a surrogate and ignores the model that it is given.
///
/// ```
/// # use theriac_attacks::{Fgsm, Transfer};
/// # fn on<C: theriac::Classifier>(surrogate: C) -> Result<(), theriac::Error> {
/// let attack = Fgsm { budget: theriac::Budget::linf("8/255".parse()?)? };
/// let attack = Transfer { attack, surrogate };
/// # let _ = attack; Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Transfer<A, S> {
    /// The attack.
    pub attack: A,
    /// The model that it sees.
    pub surrogate: S,
}

impl<M, A, S> Attack<M> for Transfer<A, S>
where
    M: Model + ?Sized,
    S: Model<Target = M::Target>,
    A: Attack<S>,
{
    fn perturb(
        &self,
        _: &M,
        clean: &Pixels,
        aim: Aim<'_, M::Target>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        self.attack.perturb(&self.surrogate, clean, aim, pass)
    }

    fn cut(&self) -> Cut {
        self.attack.cut()
    }
}

/// How far adversarial images carry from the model that they were crafted on to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Images.
    pub n: usize,
    /// That fool the source.
    pub fool_source: usize,
    /// That fool the target.
    pub fool_target: usize,
    /// That both models classify correctly when clean.
    pub both_correct: usize,
    /// Of those, images that fool the target.
    pub both_correct_fool_target: usize,
}

/// Counts on which of two models moved images succeed.
///
/// # Errors
/// Those of the models.
pub fn transferred<S: Classifier + ?Sized, T: Classifier + ?Sized>(
    source: &S,
    target: &T,
    (clean, moved): (&Pixels, &Pixels),
    aim: Aim<'_, Labels>,
    labels: &Labels,
    pass: &Pass<'_>,
) -> Result<Transferred> {
    let (wanted, labels) = (aim.target().to_vec()?, labels.to_vec()?);
    let on_source = [predict(source, clean, pass)?, predict(source, moved, pass)?];
    let on_target = [predict(target, clean, pass)?, predict(target, moved, pass)?];
    let [source, fooled_source] = on_source.map(|labels| labels.to_vec());
    let [target, fooled_target] = on_target.map(|labels| labels.to_vec());
    let (source, fooled_source) = (source?, fooled_source?);
    let (target, fooled_target) = (target?, fooled_target?);
    let mut counts = Transferred {
        n: labels.len(),
        ..Transferred::default()
    };
    for i in 0..labels.len() {
        let fools = aim.reached(fooled_target[i] == wanted[i]);
        let both = source[i] == labels[i] && target[i] == labels[i];
        counts.fool_source += usize::from(aim.reached(fooled_source[i] == wanted[i]));
        counts.fool_target += usize::from(fools);
        counts.both_correct += usize::from(both);
        counts.both_correct_fool_target += usize::from(both && fools);
    }
    Ok(counts)
}
