//! What an evaluation does, as data.

use std::fmt;

use serde::{Deserialize, Serialize};
use theriac::{Budget, Eps, Error, Norm, Result, Work};
use theriac_attacks::{
    Access, Apgd, ApgdT, AutoAttack, Ddn, Declare, Eot, Fab, Fgsm, Fmn, HopSkipJump, Keep, Loss,
    Pgd, Restarts, Spec, Square, Start, Version, Within,
};

/// How much work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Seconds for a small network: APGD-CE, APGD-T with three targets, a short Square.
    Quick,
    /// Standard AutoAttack with further starts, and every check.
    #[default]
    Standard,
    /// The plus version of AutoAttack, more images and draws for the checks.
    Thorough,
}

/// What a stage of an evaluation is for. Its images follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Predictions, logits and gradients of all clean images.
    Clean,
    /// FGSM on every image that is classified correctly, to compare iterated attacks with.
    Shadow,
    /// One attack of the ensemble, on the images that resist those before it.
    Cascade,
    /// A search for the smallest distance, on every image that is classified correctly: the
    /// security curve.
    Nearest,
    /// The first attack of the ensemble with twice the steps, on a few images that resist.
    Doubled,
    /// The first attack of the ensemble started again and again, on a few images that resist.
    Restarted,
    /// Random corners and points of the ball, on a few images that resist.
    Noise,
    /// An attack that sees predicted classes alone, on a few images that resist.
    Decisions,
    /// The first attack of the ensemble at half the epsilon, on a few images.
    Smaller,
    /// The first attack of the ensemble, on the same few images, whether or not they resist.
    Same,
    /// The first attack of the ensemble at twice the epsilon, on the same few images.
    Larger,
    /// PGD with the whole pixel range, on a few images.
    Huge,
    /// The first attack of the ensemble crafted on another model, on a few images that resist.
    Transfer,
    /// The first attack of the ensemble on the undefended model, on a few images.
    Control,
    /// The first attack of the ensemble on a question whose answer is known, on a few images.
    Planted,
}

impl Role {
    /// Whether only the first [`Plan::few`] images of the data are used.
    pub fn is_for_few(self) -> bool {
        !matches!(
            self,
            Self::Clean | Self::Shadow | Self::Cascade | Self::Nearest
        )
    }

    /// Whether only images that resist the whole ensemble are used.
    pub fn is_for_resisting(self) -> bool {
        matches!(
            self,
            Self::Doubled | Self::Restarted | Self::Noise | Self::Decisions | Self::Transfer
        )
    }

    /// Whether an image that the stage breaks is broken within the threat model.
    pub fn counts(self) -> bool {
        self.is_for_resisting() || matches!(self, Self::Shadow | Self::Cascade | Self::Nearest)
    }
}

/// One pass over images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Name, unique in the plan; also the name of its file.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The attack, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attack: Option<Spec>,
    /// Starts, random points, or planted answers tried, for each image.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub times: u32,
}

fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde wants a reference
fn is_one(times: &u32) -> bool {
    *times == 1
}

impl Stage {
    fn attack(name: &str, role: Role, attack: Spec) -> Self {
        Self {
            name: name.to_owned(),
            role,
            attack: Some(attack),
            times: 1,
        }
    }

    fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }
}

/// Everything that an evaluation does. Equal plans on equal models and images give equal tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The ball that the model shall be robust in.
    pub budget: Budget,
    /// Images, the first of the data, that the checks on a few use.
    pub few: u32,
    /// Passes with fresh noise that each prediction is the mean of: 1 for a model that draws no
    /// random numbers.
    pub draws: u32,
    /// Passes over images, in order.
    pub stages: Vec<Stage>,
}

/// Draws of noise by which a randomised model is attacked and judged.
const DRAWS: u32 = 20;

impl Plan {
    /// The plan of a profile against a model with so many classes, which draws random numbers or
    /// does not.
    ///
    /// # Errors
    /// [`Error::Setting`] for fewer than two classes; [`Error::Eps`] for a radius that cannot be
    /// halved.
    pub fn new(profile: Profile, budget: Budget, classes: usize, random: bool) -> Result<Self> {
        if classes < 2 {
            return Err(Error::Setting {
                name: "classes",
                value: classes.to_string(),
                remedy: "a classifier has at least 2",
            });
        }
        let (few, points, starts, queries) = match profile {
            Profile::Quick => (32, 100, 3, 50),
            Profile::Standard => (128, 1_000, 5, 100),
            Profile::Thorough => (256, 10_000, 10, 200),
        };
        let ensemble = ensemble(profile, budget, classes, random);
        let draws = if random { DRAWS } else { 1 };
        let averaged = |attack: Spec| match random {
            true => Spec::Eot(Eot {
                attack: Box::new(attack),
                draws,
            }),
            false => attack,
        };
        let mut stages = vec![
            Stage {
                name: "clean".to_owned(),
                role: Role::Clean,
                attack: None,
                times: 1,
            },
            Stage::attack("fgsm", Role::Shadow, averaged(Spec::Fgsm(Fgsm { budget }))),
        ];
        for (name, attack) in &ensemble {
            stages.push(Stage::attack(name, Role::Cascade, attack.clone()));
        }
        if !random {
            for (name, attack) in nearest(profile, budget.norm()) {
                stages.push(Stage::attack(name, Role::Nearest, attack));
            }
        }
        let first = apgd(profile, budget, Loss::CrossEntropy);
        let decisions = HopSkipJump {
            steps: match profile {
                Profile::Quick => 5,
                Profile::Standard => 10,
                Profile::Thorough => 30,
            },
            draws: queries,
            most_draws: 10 * queries,
            trials: queries,
            ..HopSkipJump::new(budget.norm())
        };
        let decisions = Spec::Within(Within {
            budget,
            attack: Box::new(Spec::HopSkipJump(decisions)),
        });
        let longer = Apgd {
            steps: 2 * first.steps,
            ..first
        };
        let alone = averaged(Spec::Apgd(first));
        stages.extend([
            Stage::attack("doubled", Role::Doubled, averaged(Spec::Apgd(longer))),
            Stage::attack("restarts", Role::Restarted, alone.clone()).times(starts),
            Stage {
                name: "noise".to_owned(),
                role: Role::Noise,
                attack: None,
                times: points,
            },
            Stage::attack("half-epsilon", Role::Smaller, alone.clone().scaled(0.5)?),
            Stage::attack("same-epsilon", Role::Same, alone.clone()),
        ]);
        if let Some(larger) = crate::doubled::doubled(alone.clone())? {
            stages.push(Stage::attack("twice-epsilon", Role::Larger, larger));
        }
        stages.push(Stage::attack(
            "whole-range",
            Role::Huge,
            averaged(Spec::Pgd(whole_range()?)),
        ));
        if !random {
            stages.push(Stage::attack("decisions", Role::Decisions, decisions));
        }
        Ok(Self {
            budget,
            few,
            draws,
            stages,
        })
    }

    /// With the attack crafted on a surrogate as well.
    #[must_use]
    pub fn with_transfer(self) -> Self {
        self.with("transfer", Role::Transfer, 1)
    }

    /// With the attack on the undefended model as well.
    #[must_use]
    pub fn with_control(self) -> Self {
        self.with("control", Role::Control, 1)
    }

    /// With the active test: the attack has to find a planted answer in the ball.
    #[must_use]
    pub fn with_active_test(self) -> Self {
        self.with("planted", Role::Planted, PLANTED)
    }

    fn with(mut self, name: &str, role: Role, times: u32) -> Self {
        let same = self.stages.iter().find(|stage| stage.role == Role::Same);
        if let Some(attack) = same.and_then(|stage| stage.attack.clone()) {
            self.stages
                .push(Stage::attack(name, role, attack).times(times));
        }
        self
    }

    /// The stages of a role, in order.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Stage> {
        self.stages.iter().filter(move |stage| stage.role == role)
    }

    /// Looks at the settings before any work is done.
    ///
    /// # Errors
    /// [`Error::Setting`] for stages in a wrong order, without their attack, or with equal names;
    /// the errors of [`Declare::check`].
    pub fn check(&self) -> Result<()> {
        let wrong = |value: &str, remedy| {
            Err(Error::Setting {
                name: "stages",
                value: value.to_owned(),
                remedy,
            })
        };
        if self.stages.first().map(|stage| stage.role) != Some(Role::Clean) {
            return wrong("the first is another", "start with role = \"clean\"");
        }
        let rank = |role: Role| u8::from(role != Role::Clean) + u8::from(role.is_for_resisting());
        let ensemble_ends = self.stages.iter().rposition(|s| s.role == Role::Cascade);
        let resisting = self.stages.iter().position(|s| s.role.is_for_resisting());
        if resisting < ensemble_ends && resisting.is_some() {
            return wrong(
                "a check of resisting images before the end of the ensemble",
                "put every stage with role = \"cascade\" before it",
            );
        }
        for (i, stage) in self.stages.iter().enumerate() {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
            if stage.name.is_empty() || !stage.name.chars().all(plain) {
                return wrong(&stage.name, "name stages by letters, digits and hyphens");
            }
            if self.stages[..i].iter().any(|s| s.name == stage.name) {
                return wrong(&stage.name, "give every stage a name of its own");
            }
            if i > 0 && rank(stage.role) == 0 {
                return wrong(&stage.name, "only the first stage has role = \"clean\"");
            }
            let free = matches!(stage.role, Role::Clean | Role::Noise);
            match &stage.attack {
                None if !free => return wrong(&stage.name, "name its attack"),
                Some(_) if free => return wrong(&stage.name, "it takes no attack"),
                None => {}
                Some(attack) => attack.check()?,
            }
        }
        Ok(())
    }

    /// At most this many passes for an image that resists to the end, by stage; `None` where that
    /// is not known.
    pub fn forecast(&self, classes: usize) -> Vec<(String, Option<Work>)> {
        let stages = self.stages.iter();
        stages
            .map(|stage| (stage.name.clone(), stage.passes(self.draws, classes)))
            .collect()
    }
}

/// Points among which the active test plants its answer.
const PLANTED: u32 = 1_000;

impl Stage {
    fn passes(&self, draws: u32, classes: usize) -> Option<Work> {
        let score = u64::from(draws);
        let work = match (&self.attack, self.role) {
            (_, Role::Clean) => work(2, 19 + score),
            (None, _) => work(0, u64::from(self.times)),
            (Some(attack), Role::Restarted) => {
                let one = passes(attack, classes)?;
                times(one, u64::from(self.times))
            }
            (Some(attack), Role::Planted) => {
                let one = passes(attack, classes)?;
                work(one.gradients, one.forwards + u64::from(self.times))
            }
            (Some(attack), _) => passes(attack, classes)?,
        };
        Some(Work {
            forwards: work.forwards + 2 * score,
            ..work
        })
    }
}

fn work(gradients: u64, forwards: u64) -> Work {
    Work {
        forwards,
        gradients,
        zero_gradients: 0,
    }
}

fn times(one: Work, factor: u64) -> Work {
    work(one.gradients * factor, one.forwards * factor)
}

/// Passes of an attack for an image that resists to the end; as in docs/attacks.md.
fn passes(attack: &Spec, classes: usize) -> Option<Work> {
    let others = classes.saturating_sub(1) as u64;
    Some(match attack {
        Spec::Fgsm(_) => work(1, 0),
        Spec::Pgd(pgd) => work(u64::from(pgd.steps), 1),
        Spec::Apgd(apgd) => work(u64::from(apgd.steps) + 1, 1),
        Spec::ApgdT(apgd) => times(
            work(u64::from(apgd.steps) + 1, 1),
            others.min(u64::from(apgd.targets)),
        ),
        Spec::Fmn(fmn) => work(u64::from(fmn.steps), 0),
        Spec::Ddn(ddn) => work(u64::from(ddn.steps), 0),
        Spec::Fab(fab) => {
            let steps = u64::from(fab.steps);
            match fab.targets {
                Some(targets) => times(work(steps, steps + 1), others.min(u64::from(targets))),
                None => work(steps * others, steps + 1),
            }
        }
        Spec::Square(square) => work(0, u64::from(square.queries) + 1),
        Spec::HopSkipJump(attack) => {
            let each = |step: u32| {
                let draws = f64::from(attack.draws) * f64::from(step).sqrt();
                (draws as u64).min(u64::from(attack.most_draws)) + 40
            };
            let steps: u64 = (1..=attack.steps).map(each).sum();
            work(0, steps + u64::from(attack.trials))
        }
        Spec::Within(within) => passes(&within.attack, classes)?,
        Spec::Restarts(many) => times(passes(&many.attack, classes)?, u64::from(many.times)),
        Spec::Eot(eot) => times(passes(&eot.attack, classes)?, u64::from(eot.draws)),
        _ => return None,
    })
}

fn apgd(profile: Profile, budget: Budget, loss: Loss) -> Apgd {
    let apgd = Apgd::new(budget, loss);
    match profile {
        Profile::Quick => Apgd { steps: 50, ..apgd },
        _ => apgd,
    }
}

/// The attacks of the ensemble and their names.
fn ensemble(profile: Profile, budget: Budget, classes: usize, random: bool) -> Vec<(String, Spec)> {
    if profile == Profile::Quick && !random {
        let apgd_t = ApgdT {
            steps: 50,
            targets: 3,
            ..ApgdT::new(budget)
        };
        let square = Square {
            queries: 500,
            ..Square::new(budget)
        };
        let first = apgd(profile, budget, Loss::CrossEntropy);
        return vec![
            ("apgd-ce".to_owned(), Spec::Apgd(first)),
            ("apgd-t".to_owned(), Spec::ApgdT(apgd_t)),
            ("square".to_owned(), Spec::Square(square)),
        ];
    }
    let version = match (random, profile) {
        (true, _) => Version::Rand,
        (_, Profile::Thorough) => Version::Plus,
        _ => Version::Standard,
    };
    let attacks = AutoAttack { budget, version }.attacks(classes);
    let mut named: Vec<(String, Spec)> = Vec::new();
    for attack in attacks {
        named.push((short_name(&attack).to_owned(), attack));
    }
    if random {
        // The reference stops here; queries see through noise that gradients do not.
        named.push(("square".to_owned(), Spec::Square(Square::new(budget))));
    }
    if version == Version::Standard {
        // One start of each attack is a matter of luck on a few images in a thousand. Before the
        // queries, which are to find nothing that gradients could.
        let loss = if classes < 3 { Loss::Margin } else { Loss::Dlr };
        let attack = Box::new(Spec::Apgd(apgd(profile, budget, loss)));
        let starts = Spec::Restarts(Restarts { attack, times: 5 });
        let before = named.len().saturating_sub(1);
        named.insert(before, ("apgd-starts".to_owned(), starts));
    }
    named
}

fn short_name(attack: &Spec) -> &'static str {
    match attack {
        Spec::Apgd(apgd) => match apgd.loss {
            Loss::CrossEntropy => "apgd-ce",
            Loss::Dlr => "apgd-dlr",
            Loss::Margin => "apgd-margin",
        },
        Spec::ApgdT(_) => "apgd-t",
        Spec::Fab(fab) if fab.targets.is_some() => "fab-t",
        Spec::Fab(_) => "fab",
        Spec::Square(_) => "square",
        Spec::Within(within) => short_name(&within.attack),
        Spec::Restarts(many) => short_name(&many.attack),
        Spec::Eot(eot) => short_name(&eot.attack),
        _ => "attack",
    }
}

/// Searches for the smallest distance.
fn nearest(profile: Profile, norm: Norm) -> Vec<(&'static str, Spec)> {
    let mut fmn = Fmn::new(norm);
    if norm == Norm::Linf {
        // Steps of L2 length 1 take long to reach the corners of a larger ball.
        fmn = Fmn {
            step: 10.0,
            gamma: 0.1,
            ..fmn
        };
    }
    let fab = |targets| {
        Spec::Fab(Fab {
            targets,
            ..Fab::new(norm)
        })
    };
    let mut attacks = match profile {
        Profile::Quick => vec![("near-fmn", Spec::Fmn(Fmn { steps: 50, ..fmn }))],
        Profile::Standard => vec![("near-fmn", Spec::Fmn(fmn))],
        Profile::Thorough => vec![
            ("near-fmn", Spec::Fmn(Fmn { steps: 500, ..fmn })),
            ("near-fab", fab(Some(9))),
        ],
    };
    if norm == Norm::L2 && profile != Profile::Quick {
        attacks.push(("near-ddn", Spec::Ddn(Ddn::default())));
    }
    attacks
}

/// PGD that may go anywhere.
fn whole_range() -> Result<Pgd> {
    let budget = Budget::linf(Eps::one())?;
    Ok(Pgd {
        start: Start::Clean,
        keep: Keep::Best,
        ..Pgd::new(budget, Eps::one().over(10)?, 20)
    })
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quick => "quick",
            Self::Standard => "standard",
            Self::Thorough => "thorough",
        })
    }
}

/// What a stage's attack sees of the model.
pub(crate) fn access(stage: &Stage) -> Option<Access> {
    stage.attack.as_ref().map(|attack| attack.declared().access)
}
