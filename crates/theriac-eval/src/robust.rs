//! A robust accuracy and everything that must travel with it.

use std::fmt;

use serde::Serialize;
use theriac::Budget;
use theriac_attacks::Access;

use crate::{Accuracy, Check, Finding, Verdict};

/// What the attacker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Knowledge {
    /// Nothing of the model: the images were crafted on another one, such as the model without its
    /// defence.
    None,
    /// The whole model, its defence included, and its gradients.
    WhiteBox,
    /// Logits.
    Scores,
    /// Predicted classes.
    Decisions,
}

impl From<Access> for Knowledge {
    fn from(access: Access) -> Self {
        match access {
            Access::None => Self::None,
            Access::Gradients => Self::WhiteBox,
            Access::Scores => Self::Scores,
            Access::Decisions => Self::Decisions,
        }
    }
}

/// The label that an attack refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reference {
    /// Away from the true label.
    #[default]
    Label,
    /// Away from the model's prediction on the clean image: avoids label leaking (Kurakin et al.
    /// 2017).
    Prediction,
    /// Toward a class other than the true one, drawn once for each image: a targeted attack. What
    /// counts is still whether the true label is predicted.
    Other,
}

/// What the attacker may do, know and want.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ThreatModel {
    /// The ball around each clean image, in pixels of the range 0 to 1.
    pub budget: Budget,
    /// What the attacker knows.
    pub knowledge: Knowledge,
    /// The label that the attack refers to.
    pub reference: Reference,
}

impl fmt::Display for ThreatModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let knowledge = match self.knowledge {
            Knowledge::None => "oblivious (crafted on another model)",
            Knowledge::WhiteBox => "white-box",
            Knowledge::Scores => "black-box by logits",
            Knowledge::Decisions => "black-box by decisions",
        };
        let aim = match self.reference {
            Reference::Label => "untargeted away from the true label",
            Reference::Prediction => "untargeted away from the predicted label",
            Reference::Other => "targeted at a random other class",
        };
        let (norm, eps) = (self.budget.norm(), self.budget.eps());
        write!(f, "{norm} {eps}, {knowledge}, {aim}")
    }
}

/// What happened to one image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Index of the image in its data set.
    pub sample: u32,
    /// Its label.
    pub label: u32,
    /// Prediction on the clean image.
    pub clean: u32,
    /// Prediction on the image that the attack returned.
    pub moved: u32,
    /// Distance between the two images in the budget's norm, computed in f64.
    pub spent: f64,
}

impl Outcome {
    /// Correct on the clean image and on the attack's: both lie in the ball, so a robust image
    /// must survive both.
    pub fn robust(&self) -> bool {
        self.clean == self.label && self.moved == self.label
    }
}

/// A robust accuracy with its interval, threat model, attack, outcomes and checks. Only
/// [`crate::Evaluator`] makes one, so none exists without its verdict.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Robust {
    /// Images that stay correct: [`Outcome::robust`].
    pub accuracy: Accuracy,
    /// Images that are correct after the attack, whatever they were before. Most papers print
    /// this; it is never below `accuracy`.
    pub attacked: Accuracy,
    /// Images that are correct before the attack.
    pub clean: Accuracy,
    /// What the attacker may do.
    pub threat_model: ThreatModel,
    /// The attack with its settings.
    pub attack: String,
    /// The worst finding of the checks.
    pub verdict: Verdict,
    /// Every check, those that were not run included.
    pub checks: Vec<Check>,
    /// Images that went forward and backward during the attack (not during the checks).
    pub gradients: u64,
    /// Images that went forward only during the attack.
    pub forwards: u64,
    /// Image by image, sorted by sample id.
    pub outcomes: Vec<Outcome>,
}

impl Robust {
    /// Share of the images correct before the attack that are wrong after it; none when no image
    /// was correct.
    pub fn attack_success(&self) -> Option<f64> {
        let (kept, before) = (self.accuracy.correct, self.clean.correct);
        (before > 0).then(|| 1.0 - kept as f64 / before as f64)
    }

    /// The checks that failed: the reasons of a verdict that is not [`Verdict::Reliable`].
    pub fn reasons(&self) -> impl Iterator<Item = &Check> {
        self.checks
            .iter()
            .filter(|check| matches!(check.finding, Finding::Questionable | Finding::Invalid))
    }

    pub(crate) fn push(&mut self, check: Check) {
        self.verdict = self.verdict.max(check.finding.verdict());
        self.checks.push(check);
    }
}

impl fmt::Display for Robust {
    /// Number, interval, threat model and attack; then the verdict with every reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "robust accuracy {} (clean {:.2} %)",
            self.accuracy,
            100.0 * self.clean.value()
        )?;
        writeln!(f, "  {}; {}", self.threat_model, self.attack)?;
        let passed = self
            .checks
            .iter()
            .filter(|c| c.finding == Finding::Passed)
            .count();
        write!(
            f,
            "  {}: {passed} of {} checks passed",
            self.verdict,
            self.checks.len()
        )?;
        for finding in [Finding::NotApplicable, Finding::NotRun] {
            let names: Vec<&str> = self
                .checks
                .iter()
                .filter(|c| c.finding == finding)
                .map(|c| c.name)
                .collect();
            if !names.is_empty() {
                write!(f, "; {finding}: {}", names.join(", "))?;
            }
        }
        for check in self.reasons() {
            write!(f, "\n  {check}")?;
        }
        Ok(())
    }
}
