//! What must hold before a robust accuracy can be believed.
//!
//! After Carlini et al., "On evaluating adversarial robustness", 2019; Athalye, Carlini &
//! Wagner, "Obfuscated gradients give a false sense of security", ICML 2018; and the flags of
//! AutoAttack. Each check is a function of counted facts, so that its thresholds stand in one
//! place; [`crate::Evaluator`] collects the facts.

use std::fmt;

use serde::Serialize;
use theriac::Budget;

use crate::Declared;
use crate::interval::Accuracy;

/// Rounding of `x + eps` in f32; for an L2 radius above 1, relative to it.
const BOUND_SLACK: f64 = 1e-6;
/// Share of images with a zero gradient above which the attack saw no model.
pub(crate) const FLAT_SHARE: f64 = 0.05;
/// Largest difference between the logits of two passes over one image.
pub(crate) const DRIFT: f64 = 1e-4;
/// Share of images by which a comparison of two attacks may go the wrong way.
pub(crate) const TOLERANCE: f64 = 0.002;
/// Largest pixel of data that was divided by 255 twice, with room to spare.
pub(crate) const DARK: f64 = 1.0 / 64.0;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// Nothing wrong.
    Passed,
    /// Nothing to judge: a fact that belongs beside the number.
    Stated,
    /// The check says nothing about this attack.
    NotApplicable,
    /// Switched off.
    NotRun,
    /// The number may be too high.
    Questionable,
    /// The number is wrong.
    Invalid,
}

impl Finding {
    pub(crate) fn verdict(self) -> Verdict {
        match self {
            Self::Passed | Self::Stated | Self::NotApplicable | Self::NotRun => Verdict::Reliable,
            Self::Questionable => Verdict::Questionable,
            Self::Invalid => Verdict::Invalid,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Stated => "stated",
            Self::NotApplicable => "not applicable",
            Self::NotRun => "not run",
            Self::Questionable => "questionable",
            Self::Invalid => "invalid",
        })
    }
}

/// Whether a robust accuracy can be believed: the worst finding of its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// No check failed. Checks can refute a number, not prove it.
    Reliable,
    /// The true robust accuracy may be lower.
    Questionable,
    /// The number is not the accuracy under this threat model.
    Invalid,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reliable => "reliable",
            Self::Questionable => "questionable",
            Self::Invalid => "invalid",
        })
    }
}

/// One check and what it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Name.
    pub name: &'static str,
    /// What it found.
    pub finding: Finding,
    /// The facts, and what to do when it failed.
    pub detail: String,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name, self.finding, self.detail)
    }
}

impl Check {
    pub(crate) fn new(name: &'static str, finding: Finding, detail: String) -> Self {
        Self {
            name,
            finding,
            detail,
        }
    }

    pub(crate) fn not_run(name: &'static str) -> Self {
        Self::new(name, Finding::NotRun, "switched off".to_owned())
    }

    pub(crate) fn not_applicable(name: &'static str, why: &str) -> Self {
        Self::new(name, Finding::NotApplicable, why.to_owned())
    }
}

/// Which of the checks that cost passes to run. Input range, bound and reachability cost nothing
/// and always run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Two passes over a few images agree, and take no gradients.
    pub repeatable: bool,
    /// Gradients at the clean images are not zero: one gradient an image, shared with `fgsm`.
    pub gradients: bool,
    /// FGSM on the same images is not stronger than an iterative attack.
    pub fgsm: bool,
    /// The same attack at twice the epsilon is not weaker, on a few images.
    pub larger_eps: bool,
    /// PGD with the whole pixel range leaves no more than chance, on a few images.
    pub huge_eps: bool,
}

impl Checks {
    /// Every check.
    pub const fn all() -> Self {
        Self {
            repeatable: true,
            gradients: true,
            fgsm: true,
            larger_eps: true,
            huge_eps: true,
        }
    }

    /// Those that cost about one gradient an image: no attack is run a second time.
    pub const fn cheap() -> Self {
        Self {
            larger_eps: false,
            huge_eps: false,
            ..Self::all()
        }
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self::all()
    }
}

pub(crate) const INPUT: &str = "input range";
pub(crate) const BOUND: &str = "bound";
pub(crate) const REACH: &str = "reachability";
pub(crate) const GRADIENTS: &str = "zero gradients";
pub(crate) const FGSM: &str = "FGSM shadow";
pub(crate) const LARGER: &str = "larger epsilon";
pub(crate) const HUGE: &str = "huge epsilon";
pub(crate) const REPEATABLE: &str = "repeatability";
pub(crate) const DYNAMIC: &str = "dynamic defence";

/// The clean images use the range [0, 1]. (Outside it they are an error, not a finding.)
pub(crate) fn input_range((min, max): (f64, f64)) -> Check {
    if max <= DARK {
        let detail = format!(
            "the brightest pixel of all images is {max:.5}: were they divided by 255 twice?"
        );
        return Check::new(INPUT, Finding::Questionable, detail);
    }
    Check::new(
        INPUT,
        Finding::Passed,
        format!("clean pixels in [{min}, {max}]"),
    )
}

/// The largest distance that still counts as inside a ball.
pub(crate) fn edge(budget: Budget) -> f64 {
    let eps = budget.eps().get();
    eps + BOUND_SLACK * eps.max(1.0)
}

/// What the attack returned lies in the ball and in [0, 1]. `worst` is (sample, distance).
pub(crate) fn bound(budget: Budget, worst: (u32, f64), (min, max): (f64, f64)) -> Check {
    let eps = budget.eps().get();
    let (sample, spent) = worst;
    if !(min >= 0.0 && max <= 1.0) {
        let detail = format!("the attack returned pixels in [{min}, {max}], expected [0, 1]");
        return Check::new(BOUND, Finding::Invalid, detail);
    }
    let within = spent <= edge(budget);
    let (finding, verb) = if within {
        (Finding::Passed, "at most")
    } else {
        (Finding::Invalid, "as much as")
    };
    let norm = budget.norm();
    let detail = format!("sample {sample} moved {verb} {spent:.8} in {norm}, allowed {eps:.8}");
    Check::new(BOUND, finding, detail)
}

/// `steps * step >= eps`: the attack can cross its ball from the centre.
pub(crate) fn reachable(declared: &Declared, budget: Budget) -> Check {
    let eps = budget.eps().get();
    let Some(reach) = declared.reach else {
        return Check::not_applicable(REACH, "the attack has no steps of a known size");
    };
    // eps / 10 added ten times may fall short of eps by rounding.
    if reach >= eps * (1.0 - 1e-9) {
        let detail = format!("steps add up to {reach:.5}, epsilon {eps:.5}");
        return Check::new(REACH, Finding::Passed, detail);
    }
    let detail = format!(
        "steps add up to {reach:.5} and cannot cross a ball of {eps:.5}; a random start does not \
         change that: take more or larger steps"
    );
    Check::new(REACH, Finding::Questionable, detail)
}

/// Zero gradients: `flat` of `n` images resisted with a gradient that is zero at the clean image;
/// during the attack `zero` of `gradients` were.
pub(crate) fn gradients(flat: usize, n: usize, zero: u64, gradients: u64) -> Check {
    if gradients == 0 {
        return Check::not_applicable(GRADIENTS, "the attack takes no gradients");
    }
    let share = flat as f64 / n as f64;
    let during = zero as f64 / gradients as f64;
    let finding = if share > FLAT_SHARE {
        Finding::Invalid
    } else if flat > 0 || during > FLAT_SHARE {
        Finding::Questionable
    } else {
        Finding::Passed
    };
    let advice = match finding {
        Finding::Passed => "",
        _ => ": the attack had nothing to follow; attack the logits, or a smooth stand-in",
    };
    let detail = format!(
        "{flat} of {n} images resist with a gradient that is exactly zero; during the attack \
         {zero} of {gradients} gradients were{advice}"
    );
    Check::new(GRADIENTS, finding, detail)
}

/// An iterative attack leaves no more images correct than FGSM.
pub(crate) fn shadow(attack: Accuracy, fgsm: Accuracy) -> Check {
    let finding = weaker(attack, fgsm, Finding::Invalid);
    let (left, by_fgsm, n) = (attack.correct, fgsm.correct, attack.n);
    let advice = match finding {
        Finding::Passed => "",
        _ => ": weaker than one step, so gradients are masked or the attack is broken",
    };
    let detail = format!("of {n} images the attack leaves {left} correct, FGSM {by_fgsm}{advice}");
    Check::new(FGSM, finding, detail)
}

/// A larger epsilon leaves no more images correct.
pub(crate) fn larger(at: (f64, Accuracy), larger: (f64, Accuracy)) -> Check {
    let finding = weaker(larger.1, at.1, Finding::Questionable);
    let advice = match finding {
        Finding::Passed => "",
        _ => ": the smaller ball is part of the larger, so the attack misses what it contains",
    };
    let detail = format!(
        "of {} images {} resist at {:.5}, {} at {:.5}{advice}",
        at.1.n, at.1.correct, at.0, larger.1.correct, larger.0
    );
    Check::new(LARGER, finding, detail)
}

/// With the whole pixel range any image can become any other, so no more than chance may resist.
pub(crate) fn huge(left: Accuracy, classes: usize) -> Check {
    let chance = left.n as f64 / classes.max(1) as f64;
    let masked = left.correct as f64 > chance;
    let (finding, advice) = if masked {
        (
            Finding::Questionable,
            ": gradients are masked, they do not lead to the errors",
        )
    } else {
        (Finding::Passed, "")
    };
    let detail = format!(
        "PGD with Linf 1 leaves {} of {} images correct, chance is {chance:.1}{advice}",
        left.correct, left.n
    );
    Check::new(HUGE, finding, detail)
}

/// Two passes with independent randomness give the same logits.
pub(crate) fn repeatable(drift: f64, flips: usize, n: usize) -> Check {
    let randomised = drift > DRIFT || flips > 0;
    let (finding, advice) = if randomised {
        let advice = ": the model is randomised; attack its average and score over several draws";
        (Finding::Questionable, advice)
    } else {
        (Finding::Passed, "")
    };
    let detail = format!(
        "over two passes the logits of {n} images differ by at most {drift:.1e} and {flips} \
         predictions change{advice}"
    );
    Check::new(REPEATABLE, finding, detail)
}

/// The model takes no gradients to classify: `gradients` of them in passes over so many images.
pub(crate) fn dynamic(gradients: u64, images: usize) -> Check {
    if gradients == 0 {
        let detail = "the forward pass takes no gradients".to_owned();
        return Check::new(DYNAMIC, Finding::Passed, detail);
    }
    let each = gradients as f64 / images.max(1) as f64;
    let detail = format!(
        "the model takes {each:.1} gradients to classify an image: it moves in answer to the \
         attack, so attack it with its answer in the loop, or add the answer back"
    );
    Check::new(DYNAMIC, Finding::Questionable, detail)
}

/// Passed when `left` does not exceed `bound`; beyond the tolerance as bad as `beyond`, within it
/// questionable. The tolerance is one image or 0.2 points, whichever is more.
fn weaker(left: Accuracy, bound: Accuracy, beyond: Finding) -> Finding {
    let excess = left.correct.saturating_sub(bound.correct);
    if excess == 0 {
        Finding::Passed
    } else if excess as f64 > (TOLERANCE * left.n as f64).max(1.0) {
        beyond
    } else {
        Finding::Questionable
    }
}

#[cfg(test)]
mod tests {
    use theriac_attacks::{Declare, Fgsm};

    use super::*;

    fn budget() -> Budget {
        Budget::linf("0.1".parse().unwrap()).unwrap()
    }

    /// The check on an attack whose steps add up to `reach`.
    fn reachable(reach: Option<f64>) -> Check {
        let fgsm = Fgsm { budget: budget() };
        let declared = Declared {
            reach,
            ..fgsm.declared()
        };
        super::reachable(&declared, budget())
    }

    fn accuracy(correct: usize) -> Accuracy {
        Accuracy { correct, n: 1000 }
    }

    #[test]
    fn bound_names_the_sample() {
        let inside = bound(budget(), (3, 0.1 + 1e-8), (0.0, 1.0));
        assert_eq!(inside.finding, Finding::Passed);
        let outside = bound(budget(), (3, 0.11), (0.0, 1.0));
        assert_eq!(outside.finding, Finding::Invalid);
        assert!(
            outside.detail.contains("sample 3 moved as much as 0.11"),
            "{outside}"
        );
        for range in [(-0.1, 1.0), (0.0, 1.5), (f64::NAN, f64::NAN)] {
            assert_eq!(bound(budget(), (3, 0.0), range).finding, Finding::Invalid);
        }
        assert_eq!(
            bound(budget(), (3, f64::NAN), (0.0, 1.0)).finding,
            Finding::Invalid
        );
    }

    #[test]
    fn thresholds() {
        use Finding::{Invalid, NotApplicable, Passed, Questionable};
        assert_eq!(input_range((0.0, 1.0)).finding, Passed);
        assert_eq!(input_range((0.0, 1.0 / 255.0)).finding, Questionable);
        assert_eq!(reachable(Some(10.0 * (0.1 / 10.0))).finding, Passed);
        assert_eq!(reachable(Some(0.05)).finding, Questionable);
        assert_eq!(reachable(None).finding, NotApplicable);
        assert_eq!(gradients(0, 100, 0, 1000).finding, Passed);
        assert_eq!(gradients(1, 100, 10, 1000).finding, Questionable);
        assert_eq!(gradients(0, 100, 100, 1000).finding, Questionable);
        assert_eq!(gradients(6, 100, 60, 1000).finding, Invalid);
        assert_eq!(gradients(6, 100, 0, 0).finding, NotApplicable);
        assert_eq!(shadow(accuracy(400), accuracy(400)).finding, Passed);
        assert_eq!(shadow(accuracy(402), accuracy(400)).finding, Questionable);
        assert_eq!(shadow(accuracy(403), accuracy(400)).finding, Invalid);
        assert_eq!(
            larger((0.1, accuracy(40)), (0.2, accuracy(50))).finding,
            Questionable
        );
        assert_eq!(
            larger((0.1, accuracy(40)), (0.2, accuracy(40))).finding,
            Passed
        );
        assert_eq!(huge(accuracy(100), 10).finding, Passed);
        assert_eq!(huge(accuracy(101), 10).finding, Questionable);
        assert_eq!(repeatable(1e-5, 0, 10).finding, Passed);
        assert_eq!(repeatable(1e-3, 0, 10).finding, Questionable);
        assert_eq!(repeatable(0.0, 1, 10).finding, Questionable);
        assert_eq!(dynamic(0, 10).finding, Passed);
        assert_eq!(dynamic(1, 10).finding, Questionable);
    }
}
