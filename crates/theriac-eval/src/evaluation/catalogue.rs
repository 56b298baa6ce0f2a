//! The checks, each with its number in the list of expectations, its source, what it means and
//! what to do when it fails.

use crate::Check;

/// What a check is about, whatever it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number, as in docs/evaluation.md.
    pub number: u8,
    /// Name.
    pub name: &'static str,
    /// Who asks for it.
    pub source: &'static str,
    /// What it looks at, in plain words.
    pub meaning: &'static str,
    /// What to do when it fails.
    pub remedy: &'static str,
    /// The sign of obfuscated gradients that it is, in the words of Athalye, Carlini & Wagner
    /// (ICML 2018, section 3.1).
    pub sign: Option<&'static str>,
}

const CARLINI: &str = "Carlini et al., On evaluating adversarial robustness, 2019";
const ATHALYE: &str = "Athalye, Carlini & Wagner, ICML 2018";
const AUTO: &str = "Croce & Hein, ICML 2020, checks of the AutoAttack code";
const PINTOR: &str = "Pintor et al., Indicators of attack failure, NeurIPS 2022";

const fn entry(
    number: u8,
    name: &'static str,
    source: &'static str,
    meaning: &'static str,
    remedy: &'static str,
) -> Entry {
    Entry {
        number,
        name,
        source,
        meaning,
        remedy,
        sign: None,
    }
}

const fn sign(entry: Entry, sign: &'static str) -> Entry {
    Entry {
        sign: Some(sign),
        ..entry
    }
}

pub(crate) const THREAT: &str = "threat model";
pub(crate) const RANGE: &str = "input range";
pub(crate) const BOUND: &str = "bound";
pub(crate) const DETERMINISTIC: &str = "determinism";
pub(crate) const DRAWS: &str = "randomised scoring";
pub(crate) const GRADIENTS: &str = "zero gradients";
pub(crate) const LOGITS: &str = "logits";
pub(crate) const SLOPES: &str = "finite differences";
pub(crate) const ONE_STEP: &str = "one step";
pub(crate) const REACH: &str = "reachability";
pub(crate) const STEPS: &str = "enough steps";
pub(crate) const STARTS: &str = "enough starts";
pub(crate) const LARGER: &str = "larger epsilon";
pub(crate) const HUGE: &str = "whole range";
pub(crate) const QUERIES: &str = "queries";
pub(crate) const NOISE: &str = "random noise";
pub(crate) const TRANSFER: &str = "transfer";
pub(crate) const IMAGES: &str = "image by image";
pub(crate) const LOST: &str = "lost successes";
pub(crate) const CURVE: &str = "security curve";
pub(crate) const QUALITY: &str = "attack quality";
pub(crate) const COST: &str = "cost";
pub(crate) const STATE: &str = "model state";
pub(crate) const DYNAMIC: &str = "dynamic defence";
pub(crate) const BPDA: &str = "parts without a gradient";
pub(crate) const CONTROL: &str = "undefended control";
pub(crate) const PLANTED: &str = "active test";
pub(crate) const CLASSES: &str = "number of classes";
pub(crate) const SIZE: &str = "sample size";
pub(crate) const EIGHT: &str = "8 bits";
pub(crate) const MANIFEST: &str = "manifest";
pub(crate) const AIM: &str = "aim";

/// Every check that [`super::Evaluation`] makes, by number.
pub const CATALOGUE: [Entry; 32] = [
    entry(
        1,
        THREAT,
        CARLINI,
        "Norm, radius with its unit, what the attacker knows and wants are stated with the number.",
        "State them.",
    ),
    entry(
        2,
        RANGE,
        CARLINI,
        "Clean pixels lie in [0, 1] and use that range, and the model knows them. Outside it they are \
         an error; normalisation belongs into the model.",
        "Divide bytes by 255 once, leave normalisation to the model's first layer, and take the data \
         that it was trained for.",
    ),
    entry(
        3,
        BOUND,
        CARLINI,
        "Distances of all returned images, computed again in f64, stay within the radius, and their \
         pixels in [0, 1].",
        "Project the attack's result; an image outside the ball proves nothing.",
    ),
    entry(
        4,
        DETERMINISTIC,
        AUTO,
        "Two passes over an image with fresh randomness give the same logits. Where they do not, the \
         model is randomised: attacks average over draws, predictions are means over draws.",
        "Report the mean over draws; attack with more draws, or the model's mean itself.",
    ),
    entry(
        5,
        DRAWS,
        AUTO,
        "A randomised model is judged by many draws of each attacked image, not by one lucky one.",
        "Evaluate with the plan for randomised models: 20 draws or more.",
    ),
    entry(
        6,
        GRADIENTS,
        PINTOR,
        "Gradients of the cross entropy and of the margin at clean images, and those met during the \
         attacks, are not zero. A zero gradient is a wall, not robustness.",
        "Attack the margin, scale the logits down, or replace the flat part by a smooth one on the \
         way back (Bpda).",
    ),
    entry(
        7,
        LOGITS,
        AUTO,
        "The model returns logits, not probabilities: a softmax in front of the loss flattens it.",
        "Return the values before the softmax.",
    ),
    entry(
        8,
        SLOPES,
        PINTOR,
        "Slopes of the margin along random directions agree between autodiff and finite differences. \
         Where they do not, the graph is cut or replaced somewhere.",
        "Find the operation whose gradient is missing; give it one (Bpda).",
    ),
    sign(
        entry(
            9,
            ONE_STEP,
            ATHALYE,
            "Iterated attacks break every image that one step of FGSM breaks.",
            "Look for a loss that is flat or wild near the images; take smaller steps, other losses, \
             more starts.",
        ),
        "One-step attacks perform better than iterative attacks",
    ),
    entry(
        10,
        REACH,
        "theriac; defaults of common libraries fail it",
        "Steps times step size reach the edge of the ball.",
        "Take larger or more steps.",
    ),
    entry(
        11,
        STEPS,
        CARLINI,
        "Twice the steps from the same starts break no more of the images that resist; and the loss \
         has stopped rising.",
        "Double the steps until nothing changes.",
    ),
    entry(
        12,
        STARTS,
        CARLINI,
        "The last of several further starts breaks no more images.",
        "Take more starts until nothing changes.",
    ),
    sign(
        entry(
            13,
            LARGER,
            ATHALYE,
            "The same attack in half the ball is not stronger, in twice the ball not weaker, image by \
             image.",
            "Look for masked gradients; a valid image of the smaller ball is valid in the larger.",
        ),
        "Increasing distortion bound does not increase success",
    ),
    sign(
        entry(
            14,
            HUGE,
            ATHALYE,
            "With the whole pixel range every image can become any other: accuracy falls to chance at \
             most.",
            "The attack does not see the model: look for masked gradients.",
        ),
        "Unbounded attacks do not reach 100% success",
    ),
    sign(
        entry(
            15,
            QUERIES,
            ATHALYE,
            "Attacks that see logits or decisions alone break no image that attacks with gradients \
             missed.",
            "The gradients are masked, or the attack with gradients is too weak: find out which.",
        ),
        "Black-box attacks are better than white-box attacks",
    ),
    sign(
        entry(
            16,
            NOISE,
            ATHALYE,
            "Random corners and points of the ball break no image that resists the attacks.",
            "Attack those images again: more starts, other losses.",
        ),
        "Random sampling finds adversarial examples",
    ),
    entry(
        17,
        TRANSFER,
        CARLINI,
        "Images crafted on another model break no image that resists the attacks on this one.",
        "As for queries: gradients of this model mislead.",
    ),
    entry(
        18,
        IMAGES,
        CARLINI,
        "Outcomes are kept image by image; an image is robust only if it resists every attack.",
        "Keep the table.",
    ),
    entry(
        19,
        LOST,
        PINTOR,
        "Attacks that pass an adversarial image and return another: the best image on the way counts.",
        "Keep the best iterate.",
    ),
    entry(
        20,
        CURVE,
        CARLINI,
        "Searches for the smallest distance give accuracy at every radius; at the radius of the threat \
         model they find no image that the ensemble missed.",
        "The ensemble is too weak there: attack those images again.",
    ),
    entry(
        21,
        QUALITY,
        "Cinà et al., AttackBench, AAAI 2025",
        "Mean of the smallest known distances over the mean of those that one search found: 1 is the \
         best known.",
        "Take more steps, or another search.",
    ),
    entry(
        22,
        COST,
        CARLINI,
        "Forward and backward passes of every attack are counted image by image.",
        "Count them.",
    ),
    entry(
        23,
        STATE,
        "Carlini et al. 2019; released code of several defences",
        "The model is in evaluation mode: weights and statistics are the same afterwards, and an \
         image's logits do not depend on its batch.",
        "Use running statistics of batch norm, one image at a time if need be.",
    ),
    entry(
        24,
        DYNAMIC,
        "RobustBench, rules for entries",
        "The model takes gradients inside its forward pass: it optimises at inference, and a general \
         attack does not follow it there.",
        "Attack the defence as a whole with an attack written for it.",
    ),
    entry(
        25,
        BPDA,
        ATHALYE,
        "Where gradients vanish or disagree with finite differences, a part of the model has none.",
        "Wrap that part in Bpda with a smooth stand-in and evaluate again.",
    ),
    entry(
        26,
        CONTROL,
        CARLINI,
        "The same attack breaks the model without its defence.",
        "The attack is broken or too weak: mend it before judging the defence.",
    ),
    entry(
        28,
        PLANTED,
        "Zimmermann et al., NeurIPS 2022, with the answer read from the logits",
        "In a question whose answer is planted among random points of the ball, the attack finds an \
         answer.",
        "The attack cannot search this model's ball: look for masked gradients.",
    ),
    entry(
        29,
        CLASSES,
        AUTO,
        "The difference of logits ratio needs three classes, four when targeted; with fewer the plain \
         margin takes its place.",
        "Nothing: it is said so that numbers are not compared by mistake.",
    ),
    entry(
        30,
        SIZE,
        CARLINI,
        "Accuracies come with a Wilson interval at 95 %; fewer than 100 images say little.",
        "Evaluate more images.",
    ),
    entry(
        31,
        EIGHT,
        "AutoAttack issues; image files hold 8 bits",
        "Adversarial images are rounded to k/255 inside the ball and judged again.",
        "If images come as files, quote the second number.",
    ),
    entry(
        32,
        MANIFEST,
        CARLINI,
        "Seeds, versions, SHA-256 of weights and data, plan and device are kept with the number.",
        "Keep the folder.",
    ),
    entry(
        35,
        AIM,
        CARLINI,
        "Attacks lead away from the true label; targeted attacks serve that aim. A model that may \
         refuse needs a ROC curve instead.",
        "State another aim where it is meant.",
    ),
];

/// The entry of a check.
pub fn entry_of(check: &Check) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.name == check.name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_the_same() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/evaluation.md");
        let text = std::fs::read_to_string(path).unwrap();
        let chapters: Vec<String> = text.split("\n### ").skip(1).map(plain).collect();
        assert_eq!(chapters.len(), CATALOGUE.len());
        for (entry, chapter) in CATALOGUE.iter().zip(&chapters) {
            let title = format!("{}. {} ", entry.number, entry.name);
            assert!(chapter.starts_with(&title), "{title}: {chapter}");
            let (sign, source, remedy) = (
                entry.sign.unwrap_or_default(),
                format!("- Source: {}. - Finding: ", entry.source),
                format!("- If it fails: {}", entry.remedy),
            );
            for part in [entry.meaning, sign, &source, &remedy] {
                assert!(chapter.contains(part), "{title}: no {part:?} in {chapter}");
            }
        }
    }

    /// One space between words.
    fn plain(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}
