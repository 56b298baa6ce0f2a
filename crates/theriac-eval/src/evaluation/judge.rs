//! From facts to findings. Thresholds stand here and in `checks`.

use theriac::Norm;
use theriac_attacks::{Access, Declare};

use super::catalogue as c;
use super::facts::{Attacked, Clean, Facts};
use super::plan::{Plan, Role, Stage, access};
use super::store::Manifest;
use super::table::{Image, Table};
use crate::checks::{DARK, DRIFT, FLAT_SHARE, TOLERANCE, edge};
use crate::interval::Mean;
use crate::{Check, Finding};

/// A gradient so much smaller than the median is none.
const FLAT_RATIO: f64 = 1e-12;
/// Cosine between autodiff and finite differences, in the median.
const COSINE: f64 = 0.9;
/// Share of images that more steps may add.
const MORE: f64 = 0.005;
/// Share of images that resist at a larger epsilon and not at a smaller.
const REVERSED: f64 = 0.05;
/// Success that an attack must have where the answer is known.
const FOUND: f64 = 0.95;
/// Images below which an accuracy says little.
const SMALL: usize = 100;

/// Whether `count` of `n` images are more than a share; one alone proves nothing.
fn more_than(count: usize, n: usize, share: f64) -> bool {
    count > 1 && count as f64 > share * n as f64
}

/// Everything that is known when checks are made.
pub(crate) struct Known<'a> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) facts: &'a Facts,
    pub(crate) table: &'a Table,
    /// Whether the model's state is as before; `None` if nobody looked.
    pub(crate) state_kept: Option<bool>,
}

impl Known<'_> {
    fn plan(&self) -> &Plan {
        &self.manifest.plan
    }

    /// Images that are correct before any attack.
    fn correct(&self) -> usize {
        let images = self.table.images.iter();
        images.filter(|image| image.clean > 0.0).count()
    }

    fn clean(&self) -> Vec<&Clean> {
        let stage = self.plan().of(Role::Clean).next();
        let facts = stage.into_iter();
        facts
            .flat_map(|stage| self.facts.of_clean(&stage.name))
            .map(|(_, clean)| clean)
            .collect()
    }

    fn of(&self, role: Role) -> Vec<(u32, &Attacked)> {
        let stages = self.plan().of(role);
        stages
            .flat_map(|stage| self.facts.of(&stage.name))
            .collect()
    }

    fn few(&self) -> usize {
        let few = |image: &&Image| image.position < self.plan().few && image.clean > 0.0;
        self.table.images.iter().filter(few).count()
    }

    fn image(&self, position: u32) -> Option<&Image> {
        self.table.at(position)
    }

    /// Positions of images that stages of a role break though the ensemble did not.
    fn beyond(&self, role: Role) -> Vec<u32> {
        let missed = |position: u32| {
            let image = self.image(position);
            image.is_some_and(|image| image.after_ensemble >= 0.5)
        };
        let mut beyond: Vec<u32> = self
            .of(role)
            .into_iter()
            .filter(|(position, fact)| {
                let near = role != Role::Nearest || fact.distance <= edge(self.plan().budget);
                fact.correct < 0.5 && near && missed(*position)
            })
            .map(|(position, _)| position)
            .collect();
        beyond.sort_unstable();
        beyond.dedup();
        beyond
    }
}

/// Every check of the catalogue, in its order.
pub(crate) fn checks(known: &Known<'_>) -> Vec<Check> {
    let mut checks = vec![
        threat(known),
        range(known),
        bound(known),
        deterministic(known),
        draws(known),
        gradients(known),
        logits(known),
        slopes(known),
        one_step(known),
        reach(known),
        steps(known),
        starts(known),
        larger(known),
        huge(known),
        queries(known),
        noise(known),
        transfer(known),
        images(known),
        lost(known),
        curve(known),
        quality(known),
        cost(known),
        state(known),
        dynamic(known),
    ];
    let cut = |name: &str| {
        let found = checks.iter().find(|check| check.name == name);
        found.is_some_and(|check| check.finding > Finding::NotRun)
    };
    checks.push(match cut(c::GRADIENTS) || cut(c::SLOPES) {
        true => Check::new(
            c::BPDA,
            Finding::Questionable,
            "some part of the model lets no gradient, or a wrong one, through".to_owned(),
        ),
        false => Check::not_applicable(c::BPDA, "gradients are there and agree with differences"),
    });
    checks.extend([
        control(known),
        planted(known),
        classes(known),
        size(known),
        eight(known),
        manifest(known),
        aim(known),
    ]);
    checks
}

fn passed(name: &'static str, detail: String) -> Check {
    Check::new(name, Finding::Passed, detail)
}

fn stated(name: &'static str, detail: String) -> Check {
    Check::new(name, Finding::Stated, detail)
}

fn graded(name: &'static str, finding: Finding, detail: String) -> Check {
    Check::new(name, finding, detail)
}

fn threat(known: &Known<'_>) -> Check {
    let plan = known.plan();
    let stages = plan.of(Role::Cascade);
    let sees = stages.filter_map(access).max();
    let knowledge = match sees {
        Some(Access::None) => "another model",
        Some(Access::Gradients) => "white box",
        Some(Access::Scores) => "logits",
        Some(Access::Decisions) => "decisions",
        None => "nothing",
    };
    stated(
        c::THREAT,
        format!(
            "{}, {knowledge}, untargeted away from the label",
            plan.budget
        ),
    )
}

fn range(known: &Known<'_>) -> Check {
    let clean = known.clean();
    let low = clean.iter().map(|fact| fact.low).fold(1.0, f64::min);
    let high = clean.iter().map(|fact| fact.high).fold(0.0, f64::max);
    let detail = format!("clean pixels lie in [{low:.4}, {high:.4}]");
    if high <= DARK {
        let detail = format!("{detail}: were they divided by 255 twice?");
        return graded(c::RANGE, Finding::Questionable, detail);
    }
    let clean = Mean::over(known.table.images.iter().map(|image| image.clean));
    let guesses = clean.interval().0 <= 1.0 / known.manifest.subject.classes as f64;
    if guesses && clean.n > 0 {
        let detail = format!(
            "{detail}, but the model knows them no better than a guess ({clean}): other data, other \
             labels, or pixels that it was not trained to see?"
        );
        return graded(c::RANGE, Finding::Questionable, detail);
    }
    passed(c::RANGE, detail)
}

fn bound(known: &Known<'_>) -> Check {
    let (eps, edge) = (known.plan().budget.eps().get(), edge(known.plan().budget));
    let roles = known.plan().stages.iter().map(|stage| stage.role);
    let mut worst: Option<(u32, f64)> = None;
    let mut outside = None;
    for role in roles.filter(|role| role.counts()) {
        for (position, fact) in known.of(role) {
            if !(fact.low >= 0.0 && fact.high <= 1.0) {
                outside = Some((position, fact.low, fact.high));
            }
            if role != Role::Nearest && worst.is_none_or(|(_, most)| fact.distance > most) {
                worst = Some((position, fact.distance));
            }
        }
    }
    if let Some((position, low, high)) = outside {
        let detail = format!("image {position} was given back with pixels in [{low}, {high}]");
        return graded(c::BOUND, Finding::Invalid, detail);
    }
    let Some((position, most)) = worst else {
        return Check::not_applicable(c::BOUND, "no image was attacked");
    };
    let finding = match most <= edge {
        true => Finding::Passed,
        false => Finding::Invalid,
    };
    let detail = format!("the largest distance is {most:.8} (image {position}), allowed {eps:.8}");
    graded(c::BOUND, finding, detail)
}

/// Whether passes with fresh randomness differ.
fn is_random(clean: &[&Clean]) -> bool {
    clean.iter().any(|fact| fact.flips || fact.drift > DRIFT)
}

fn deterministic(known: &Known<'_>) -> Check {
    let clean = known.clean();
    let drift = clean.iter().map(|fact| fact.drift).fold(0.0, f64::max);
    let flips = clean.iter().filter(|fact| fact.flips).count();
    let detail = format!(
        "logits of two passes differ by {drift:.1e} at most; {flips} of {} predictions change",
        clean.len()
    );
    match is_random(&clean) {
        true => graded(
            c::DETERMINISTIC,
            Finding::Questionable,
            format!(
                "{detail}: the model is randomised, and an attacker may average over more draws"
            ),
        ),
        false => passed(c::DETERMINISTIC, detail),
    }
}

fn draws(known: &Known<'_>) -> Check {
    let draws = known.plan().draws;
    if !is_random(&known.clean()) {
        return Check::not_applicable(c::DRAWS, "the model is deterministic");
    }
    match draws {
        1 => graded(
            c::DRAWS,
            Finding::Invalid,
            "the model is randomised and was attacked and judged by single draws".to_owned(),
        ),
        draws => passed(
            c::DRAWS,
            format!("attacks average over {draws} draws, predictions are shares of {draws} draws"),
        ),
    }
}

fn gradients(known: &Known<'_>) -> Check {
    let clean = known.clean();
    let right: Vec<&&Clean> = clean.iter().filter(|fact| fact.correct > 0.0).collect();
    let n = right.len();
    if n == 0 {
        return Check::not_applicable(c::GRADIENTS, "no image is classified correctly");
    }
    let flat = |slope: fn(&Clean) -> f64| {
        let mut all: Vec<f64> = right.iter().map(|fact| slope(fact)).collect();
        all.sort_by(f64::total_cmp);
        let floor = FLAT_RATIO * all[n / 2];
        let zero = right.iter().filter(|fact| slope(fact) == 0.0).count();
        (
            zero,
            right.iter().filter(|fact| slope(fact) <= floor).count(),
        )
    };
    let (zero_entropy, flat_entropy) = flat(|fact| fact.cross_entropy_slope);
    let (zero_margin, flat_margin) = flat(|fact| fact.margin_slope);
    let (mut zero, mut taken) = (0, 0);
    for stage in known.plan().of(Role::Cascade) {
        for (_, fact) in known.facts.of(&stage.name) {
            zero += fact.zero_gradients;
            taken += fact.gradients;
        }
    }
    let share = |count: usize| count as f64 / n as f64;
    let during = if taken == 0 {
        0.0
    } else {
        zero as f64 / taken as f64
    };
    let finding = if zero_margin > 0 && share(flat_margin) > FLAT_SHARE {
        Finding::Invalid
    } else if zero_margin > 0
        || share(flat_entropy.max(zero_entropy)) > FLAT_SHARE
        || during > FLAT_SHARE
    {
        Finding::Questionable
    } else {
        Finding::Passed
    };
    let detail = format!(
        "of {n} images classified correctly, {zero_entropy} have a zero gradient of the cross \
         entropy and {zero_margin} of the margin; during the attacks {zero} of {taken} gradients \
         were zero"
    );
    graded(c::GRADIENTS, finding, detail)
}

fn logits(known: &Known<'_>) -> Check {
    let clean = known.clean();
    let probabilities = clean.iter().filter(|fact| fact.probabilities).count();
    match !clean.is_empty() && probabilities == clean.len() {
        true => graded(
            c::LOGITS,
            Finding::Questionable,
            "every row of outputs lies in [0, 1] and adds up to 1: probabilities, not logits"
                .to_owned(),
        ),
        false => passed(c::LOGITS, "outputs are not probabilities".to_owned()),
    }
}

fn slopes(known: &Known<'_>) -> Check {
    let clean = known.clean();
    let mut cosines: Vec<f64> = clean.iter().filter_map(|fact| fact.cosine).collect();
    if cosines.is_empty() {
        return Check::not_applicable(c::SLOPES, "no slope could be measured");
    }
    cosines.sort_by(f64::total_cmp);
    let median = cosines[cosines.len() / 2];
    let finding = if median < COSINE / 2.0 {
        Finding::Invalid
    } else if median < COSINE {
        Finding::Questionable
    } else {
        Finding::Passed
    };
    let n = cosines.len();
    let detail = format!("cosine between the two: median {median:.4} over {n} images");
    graded(c::SLOPES, finding, detail)
}

fn one_step(known: &Known<'_>) -> Check {
    let shadow = known.of(Role::Shadow);
    if shadow.is_empty() {
        return Check::not_run(c::ONE_STEP);
    }
    // Square sees no gradient: what it broke does not speak for the iterated attacks.
    let iterated = |position: u32| {
        let stages = known.plan().of(Role::Cascade);
        let stages = stages.filter(|stage| access(stage) == Some(Access::Gradients));
        let facts = stages.filter_map(|stage| known.facts.attacked(&stage.name, position));
        facts.map(|fact| fact.correct).fold(1.0, f64::min)
    };
    let n = shadow.len();
    let by_one = shadow.iter().filter(|(_, fact)| fact.correct < 0.5);
    let missed = match known.plan().draws {
        1 => by_one
            .clone()
            .filter(|(at, _)| iterated(*at) >= 0.5)
            .count(),
        // Shares of few draws cross one half by chance; their sum does not.
        _ => {
            let ahead = shadow.iter().map(|(at, fact)| iterated(*at) - fact.correct);
            ahead.sum::<f64>().max(0.0).round() as usize
        }
    };
    let finding = match more_than(missed, n, TOLERANCE) {
        true => Finding::Invalid,
        false => Finding::Passed,
    };
    let detail = format!(
        "FGSM breaks {} of {n} images; iterated attacks miss {missed} of them",
        by_one.count()
    );
    graded(c::ONE_STEP, finding, detail)
}

fn reach(known: &Known<'_>) -> Check {
    let eps = known.plan().budget.eps().get();
    let stages = known.plan().of(Role::Cascade);
    let reaches: Vec<(String, f64)> = stages
        .filter_map(|stage| {
            let declared = stage.attack.as_ref()?.declared();
            Some((stage.name.clone(), declared.reach?))
        })
        .collect();
    let short = reaches
        .iter()
        .find(|(_, reach)| *reach < eps * (1.0 - 1e-9));
    match (reaches.is_empty(), short) {
        (true, _) => Check::not_applicable(c::REACH, "the attacks choose their step sizes"),
        (_, Some((name, reach))) => graded(
            c::REACH,
            Finding::Questionable,
            format!("the steps of {name} add up to {reach:.5}, epsilon is {eps:.5}"),
        ),
        (_, None) => passed(c::REACH, format!("steps add up to {eps:.5} and more")),
    }
}

fn steps(known: &Known<'_>) -> Check {
    if known.plan().of(Role::Doubled).next().is_none() {
        return Check::not_run(c::STEPS);
    }
    let (n, doubled) = (known.few(), known.of(Role::Doubled));
    let gained = doubled
        .iter()
        .filter(|(_, fact)| fact.correct < 0.5)
        .count();
    let resisting: Vec<u32> = doubled.iter().map(|(position, _)| *position).collect();
    let same = known.of(Role::Same).into_iter();
    let rising = same
        .filter(|(at, fact)| resisting.contains(at) && fact.unfinished == Some(true))
        .count();
    let finding = match more_than(gained, n, MORE) {
        true => Finding::Questionable,
        false => Finding::Passed,
    };
    let detail = format!(
        "twice the steps break {gained} more of {n} images; the loss of {rising} of the {} that \
         resist still rose by more than 5 % in the last tenth of the steps",
        resisting.len()
    );
    graded(c::STEPS, finding, detail)
}

fn starts(known: &Known<'_>) -> Check {
    let Some(stage) = known.plan().of(Role::Restarted).next() else {
        return Check::not_run(c::STARTS);
    };
    let (n, facts) = (known.few(), known.of(Role::Restarted));
    let times = stage.times as usize;
    let after = |k: usize| {
        let broken = |fact: &Attacked| fact.broken_after.get(k).copied().unwrap_or(false);
        facts.iter().filter(|(_, fact)| broken(fact)).count()
    };
    let counts: Vec<usize> = (0..times).map(after).collect();
    let before = counts.iter().rev().nth(1).copied().unwrap_or(0);
    let last = counts.last().copied().unwrap_or(0) - before;
    let finding = match more_than(last, n, TOLERANCE) {
        true => Finding::Questionable,
        false => Finding::Passed,
    };
    let counts: Vec<String> = counts.iter().map(ToString::to_string).collect();
    let detail = format!(
        "of {n} images, {} more are broken after 1 to {times} further starts",
        counts.join(", ")
    );
    graded(c::STARTS, finding, detail)
}

fn larger(known: &Known<'_>) -> Check {
    let (same, larger) = (known.of(Role::Same), known.of(Role::Larger));
    let smaller = known.of(Role::Smaller);
    if same.is_empty() || (larger.is_empty() && smaller.is_empty()) {
        return Check::not_applicable(c::LARGER, "the ball cannot be halved or doubled");
    }
    let resists =
        |facts: &[(u32, &Attacked)]| -> f64 { facts.iter().map(|(_, fact)| fact.correct).sum() };
    let reversed = |near: &[(u32, &Attacked)], far: &[(u32, &Attacked)]| {
        let far: std::collections::BTreeMap<u32, f64> =
            far.iter().map(|(at, fact)| (*at, fact.correct)).collect();
        let back = |at: &u32, fact: &Attacked| {
            fact.correct < 0.5 && far.get(at).is_some_and(|correct| *correct >= 0.5)
        };
        near.iter().filter(|(at, fact)| back(at, fact)).count()
    };
    let n = same.len();
    let back = reversed(&smaller, &same) + reversed(&same, &larger);
    let weaker = (!larger.is_empty()
        && resists(&larger) > resists(&same) + 1.0 + TOLERANCE * n as f64)
        || (!smaller.is_empty() && resists(&same) > resists(&smaller) + 1.0 + TOLERANCE * n as f64);
    let finding = match weaker || more_than(back, n, REVERSED) {
        true => Finding::Questionable,
        false => Finding::Passed,
    };
    let of = |facts: &[(u32, &Attacked)]| match facts.is_empty() {
        true => "-".to_owned(),
        false => format!("{:.1}", resists(facts)),
    };
    let detail = format!(
        "of {n} images, {} resist at half the radius, {} at the radius, {} at twice; {back} are \
         broken in a ball and not in a larger one",
        of(&smaller),
        of(&same),
        of(&larger)
    );
    graded(c::LARGER, finding, detail)
}

fn huge(known: &Known<'_>) -> Check {
    let facts = known.of(Role::Huge);
    if facts.is_empty() {
        return Check::not_run(c::HUGE);
    }
    let (n, classes) = (facts.len(), known.manifest.subject.classes);
    let left: f64 = facts.iter().map(|(_, fact)| fact.correct).sum();
    let (share, chance) = (left / n as f64, 1.0 / classes.max(1) as f64);
    let finding = if share > 0.5_f64.max(chance) {
        Finding::Invalid
    } else if share > chance {
        Finding::Questionable
    } else {
        Finding::Passed
    };
    let detail = format!(
        "{left:.1} of {n} images resist PGD with the whole range, chance is {:.1}",
        chance * n as f64
    );
    graded(c::HUGE, finding, detail)
}

fn queries(known: &Known<'_>) -> Check {
    let mut gained = known.beyond(Role::Decisions).len();
    let asked = known.of(Role::Decisions).len();
    let mut ran = asked > 0;
    let n = known.correct();
    for stage in known.plan().of(Role::Cascade) {
        if matches!(access(stage), Some(Access::Scores | Access::Decisions)) {
            ran = true;
            let broken = |stage: &Stage| {
                let facts = known.facts.of(&stage.name);
                facts.filter(|(_, fact)| fact.correct < 0.5).count()
            };
            gained += broken(stage);
        }
    }
    if !ran {
        return Check::not_run(c::QUERIES);
    }
    let finding = match more_than(gained, n, TOLERANCE) {
        true => Finding::Questionable,
        false => Finding::Passed,
    };
    let detail = format!(
        "attacks without gradients break {gained} of {n} images that attacks with gradients \
         missed (decisions alone were asked for on {asked})"
    );
    graded(c::QUERIES, finding, detail)
}

fn noise(known: &Known<'_>) -> Check {
    let Some(stage) = known.plan().of(Role::Noise).next() else {
        return Check::not_run(c::NOISE);
    };
    let (hits, n) = (known.beyond(Role::Noise).len(), known.of(Role::Noise).len());
    let finding = match hits {
        0 => Finding::Passed,
        _ => Finding::Questionable,
    };
    let detail = format!(
        "{} random corners and points break {hits} of {n} images that resist",
        stage.times
    );
    graded(c::NOISE, finding, detail)
}

fn transfer(known: &Known<'_>) -> Check {
    if known.plan().of(Role::Transfer).next().is_none() {
        return Check::not_applicable(c::TRANSFER, "no other model was given");
    }
    let (hits, n) = (
        known.beyond(Role::Transfer).len(),
        known.of(Role::Transfer).len(),
    );
    let finding = match more_than(hits, n, TOLERANCE) {
        true => Finding::Questionable,
        false => Finding::Passed,
    };
    graded(
        c::TRANSFER,
        finding,
        format!("images crafted on the surrogate break {hits} of {n} images that resist"),
    )
}

fn images(known: &Known<'_>) -> Check {
    let n = known.table.images.len();
    stated(c::IMAGES, format!("{n} images, each with every outcome"))
}

fn lost(known: &Known<'_>) -> Check {
    let roles = [Role::Shadow, Role::Cascade];
    let lost = roles
        .iter()
        .flat_map(|role| known.of(*role))
        .filter(|(_, fact)| fact.lost)
        .count();
    let detail = format!("{lost} successes were passed and given up by an attack; they count");
    stated(c::LOST, detail)
}

fn curve(known: &Known<'_>) -> Check {
    let nearest = known.of(Role::Nearest);
    if nearest.is_empty() {
        return Check::not_run(c::CURVE);
    }
    let n = known.correct();
    let missed = known.beyond(Role::Nearest).len();
    let finding = match more_than(missed, n, TOLERANCE) {
        true => Finding::Questionable,
        false => Finding::Passed,
    };
    let detail = format!(
        "searches for the smallest distance find {missed} of {n} images inside the ball that the \
         ensemble missed"
    );
    graded(c::CURVE, finding, detail)
}

fn quality(known: &Known<'_>) -> Check {
    let stages: Vec<&Stage> = known.plan().of(Role::Nearest).collect();
    if stages.is_empty() {
        return Check::not_run(c::QUALITY);
    }
    // A failure counts as the farthest that any image can be.
    let shape = &known.manifest.subject.shape;
    let farthest = match known.plan().budget.norm() {
        Norm::L2 => (shape.iter().product::<usize>() as f64).sqrt(),
        _ => 1.0,
    };
    let ratios: Vec<String> = stages
        .iter()
        .map(|stage| {
            let (mut best, mut found) = (0.0, 0.0);
            for (position, fact) in known.facts.of(&stage.name) {
                let known = known.image(position).and_then(|image| image.nearest);
                best += known.unwrap_or(farthest);
                found += if fact.correct < 0.5 {
                    fact.distance
                } else {
                    farthest
                };
            }
            let ratio = if found == 0.0 { 1.0 } else { best / found };
            format!("{} {ratio:.3}", stage.name)
        })
        .collect();
    stated(c::QUALITY, ratios.join(", "))
}

fn cost(known: &Known<'_>) -> Check {
    let (mut forwards, mut gradients) = (0, 0);
    for stage in &known.plan().stages {
        for (_, fact) in known.facts.of(&stage.name) {
            forwards += fact.forwards;
            gradients += fact.gradients;
        }
    }
    stated(
        c::COST,
        format!("{gradients} forward and backward passes, {forwards} forward passes alone"),
    )
}

fn state(known: &Known<'_>) -> Check {
    let clean = known.clean();
    let company = clean.iter().filter_map(|fact| fact.company);
    let company = company.fold(0.0, f64::max);
    // Noise may differ with the batch; that is found as randomness.
    if company > DRIFT && !is_random(&clean) {
        let detail = format!(
            "an image's logits change by {company:.1e} with its neighbour in the batch: images see \
             each other, as with batch norm in training mode"
        );
        return graded(c::STATE, Finding::Invalid, detail);
    }
    match known.state_kept {
        Some(false) => graded(
            c::STATE,
            Finding::Invalid,
            "weights or statistics changed during the evaluation".to_owned(),
        ),
        Some(true) => passed(
            c::STATE,
            "weights and statistics are as before; logits do not depend on the batch".to_owned(),
        ),
        None => passed(
            c::STATE,
            "logits do not depend on the batch (weights and statistics were not compared)"
                .to_owned(),
        ),
    }
}

fn dynamic(known: &Known<'_>) -> Check {
    match known.clean().iter().any(|fact| fact.optimises) {
        true => graded(
            c::DYNAMIC,
            Finding::Questionable,
            "the forward pass takes gradients: this ensemble is not adaptive to it".to_owned(),
        ),
        false => passed(c::DYNAMIC, "the forward pass takes no gradients".to_owned()),
    }
}

fn control(known: &Known<'_>) -> Check {
    let facts = known.of(Role::Control);
    if facts.is_empty() {
        return Check::not_applicable(c::CONTROL, "no undefended model was given");
    }
    let broken = facts.iter().filter(|(_, fact)| fact.correct < 0.5).count();
    let n = facts.len();
    let finding = match (broken as f64) < FOUND * n as f64 {
        true => Finding::Invalid,
        false => Finding::Passed,
    };
    let detail = format!("the attack breaks {broken} of {n} images without the defence");
    graded(c::CONTROL, finding, detail)
}

fn planted(known: &Known<'_>) -> Check {
    let facts = known.of(Role::Planted);
    if facts.is_empty() {
        return Check::not_run(c::PLANTED);
    }
    let found = facts.iter().filter(|(_, fact)| fact.correct < 0.5).count();
    let n = facts.len();
    let share = found as f64 / n as f64;
    let finding = if share < FOUND / 2.0 {
        Finding::Invalid
    } else if share < FOUND {
        Finding::Questionable
    } else {
        Finding::Passed
    };
    graded(
        c::PLANTED,
        finding,
        format!("the attack finds the planted answer for {found} of {n} images"),
    )
}

fn classes(known: &Known<'_>) -> Check {
    let classes = known.manifest.subject.classes;
    match classes < 4 {
        true => stated(
            c::CLASSES,
            format!("{classes} classes: the plain margin takes the place of the ratio"),
        ),
        false => stated(
            c::CLASSES,
            format!("{classes} classes: enough for every loss"),
        ),
    }
}

fn size(known: &Known<'_>) -> Check {
    let n = known.table.images.len();
    let (low, high) = known.table.robust().interval();
    let detail = format!(
        "{n} images: 95 % interval of {:.1} points",
        100.0 * (high - low)
    );
    match n < SMALL {
        true => graded(c::SIZE, Finding::Questionable, format!("only {detail}")),
        false => passed(c::SIZE, detail),
    }
}

fn eight(known: &Known<'_>) -> Check {
    let (robust, rounded) = (known.table.robust(), known.table.robust_rounded());
    stated(
        c::EIGHT,
        format!("robust accuracy {robust}; after rounding to 8 bits inside the ball {rounded}"),
    )
}

fn manifest(known: &Known<'_>) -> Check {
    let subject = &known.manifest.subject;
    let missing: Vec<&str> = [
        ("SHA-256 of the weights", &subject.weights_sha256),
        ("SHA-256 of the data", &subject.data_sha256),
    ]
    .into_iter()
    .filter(|(_, value)| value.is_empty())
    .map(|(name, _)| name)
    .collect();
    let seed = subject.seed;
    match missing.is_empty() {
        true => stated(c::MANIFEST, format!("complete; seed {seed}")),
        false => stated(
            c::MANIFEST,
            format!("seed {seed}; not given: {}", missing.join(", ")),
        ),
    }
}

fn aim(known: &Known<'_>) -> Check {
    let aim = "untargeted, away from the label";
    let roc = super::table::roc(known.plan(), known.facts, known.table);
    stated(
        c::AIM,
        match roc {
            Some(roc) => format!(
                "{aim}; the detector has an area under the curve of {:.3} and, refusing at most 5 % \
                 of the clean images, refuses {:.1} % of those that break the model",
                roc.area,
                100.0 * roc.caught(0.05)
            ),
            None => format!("{aim}; the model does not refuse images, so there is no ROC curve"),
        },
    )
}
