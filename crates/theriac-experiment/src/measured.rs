//! What an evaluation found, as the value of a cell.

use theriac_eval::{Accuracy, Finding, Robust, Verdict};
use theriac_tables::{Check, CheckOutcome, Measured};

/// Accuracy in percent with its interval.
pub fn share(accuracy: Accuracy) -> Measured {
    let (low, high) = accuracy.interval();
    Measured {
        value: 100.0 * accuracy.value(),
        n: accuracy.n,
        interval: Some((100.0 * low, 100.0 * high)),
        ..Measured::default()
    }
}

/// The accuracy under an attack over all images, with everything that must travel with it.
pub fn measured(robust: &Robust) -> Measured {
    let checks = robust.checks.iter().map(|check| Check {
        name: check.name.to_owned(),
        outcome: match check.finding {
            Finding::Passed => CheckOutcome::Passed,
            Finding::Questionable | Finding::Invalid => CheckOutcome::Failed,
            Finding::Stated | Finding::NotApplicable | Finding::NotRun => {
                CheckOutcome::NotApplicable
            }
        },
        detail: check.detail.clone(),
    });
    let verdict = match robust.verdict {
        Verdict::Reliable => "reliable",
        Verdict::Questionable => "questionable",
        Verdict::Invalid => "invalid",
    };
    Measured {
        threat_model: Some(robust.threat_model.to_string()),
        attack: Some(robust.attack.clone()),
        checks: checks.collect(),
        verdict: Some(verdict.to_owned()),
        ..share(robust.attacked)
    }
}
