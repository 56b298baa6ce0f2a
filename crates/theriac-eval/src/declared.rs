//! What an attack says about itself, for the checks to hold it to.

use theriac::{Budget, Eps, Error, Norm, Result};
use theriac_attacks::{Keep, Spec, Start};

/// An attack's name, budget and reach.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// Name with all its settings, as printed in reports.
    pub name: String,
    /// The ball that its images must stay in.
    pub budget: Budget,
    /// The largest distance that its steps can add up to (`steps * step`), if it has steps of a
    /// known size.
    pub reach: Option<f64>,
    /// Whether it takes more than one step, so that it should beat FGSM.
    pub iterative: bool,
}

impl TryFrom<Spec> for Declared {
    type Error = Error;

    /// # Errors
    /// [`Error::Setting`] for a kind of attack that this version does not know.
    fn try_from(spec: Spec) -> Result<Self> {
        let linf = |budget: Budget| budget.norm() == Norm::Linf;
        Ok(match spec {
            Spec::Fgsm(fgsm) => Self {
                name: "FGSM".to_owned(),
                budget: fgsm.budget,
                reach: Some(fgsm.budget.eps().get()),
                iterative: false,
            },
            Spec::Pgd(pgd) => {
                let kind = match pgd.start {
                    Start::Clean if linf(pgd.budget) => "BIM".to_owned(),
                    Start::Clean => "PGD from the clean image".to_owned(),
                    start => format!("PGD from a random start ({start:?})"),
                };
                let keep = if pgd.keep == Keep::Best {
                    ", best iterate"
                } else {
                    ""
                };
                Self {
                    name: format!("{kind}, {}{keep}", steps(pgd.steps, pgd.step)),
                    budget: pgd.budget,
                    reach: Some(f64::from(pgd.steps) * pgd.step.get()),
                    iterative: pgd.steps > 1,
                }
            }
            Spec::MiFgsm(mi) => Self {
                name: format!("MI-FGSM, {}, decay {}", steps(mi.steps, mi.step), mi.decay),
                budget: mi.budget,
                reach: Some(f64::from(mi.steps) * mi.step.get()),
                iterative: mi.steps > 1,
            },
            other => {
                let remedy = "describe it with Declared and evaluate it with Evaluator::attack";
                return Err(Error::Setting {
                    name: "attack",
                    value: format!("{other:?}"),
                    remedy,
                });
            }
        })
    }
}

fn steps(count: u32, size: Eps) -> String {
    format!("{count} steps of {}", short(size))
}

/// A size without the digits that only say that it was divided.
pub(crate) fn short(size: Eps) -> String {
    let text = size.to_string();
    if text.len() > 8 {
        format!("{:.5}", size.get())
    } else {
        text
    }
}

/// The same attack with twice the radius and twice the step, cut at the pixel range; none where
/// the ball cannot grow.
pub(crate) fn doubled(spec: Spec) -> Result<Option<Spec>> {
    let grown = |budget: Budget| -> Result<Option<(Budget, f64)>> {
        let eps = budget.eps().get();
        let limit = if budget.norm() == Norm::Linf {
            1.0
        } else {
            f64::INFINITY
        };
        let larger = (2.0 * eps).min(limit);
        if eps == 0.0 || larger <= eps {
            return Ok(None);
        }
        Ok(Some((
            Budget::new(budget.norm(), Eps::unit(larger)?)?,
            larger / eps,
        )))
    };
    Ok(match spec {
        Spec::Fgsm(mut fgsm) => grown(fgsm.budget)?.map(|(budget, _)| {
            fgsm.budget = budget;
            Spec::Fgsm(fgsm)
        }),
        Spec::Pgd(mut pgd) => match grown(pgd.budget)? {
            None => None,
            Some((budget, factor)) => {
                pgd.budget = budget;
                pgd.step = pgd.step.times(factor)?;
                Some(Spec::Pgd(pgd))
            }
        },
        Spec::MiFgsm(mut mi) => match grown(mi.budget)? {
            None => None,
            Some((budget, factor)) => {
                mi.budget = budget;
                mi.step = mi.step.times(factor)?;
                Some(Spec::MiFgsm(mi))
            }
        },
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use theriac_attacks::{Fgsm, MiFgsm, Pgd, bim};

    use super::*;

    fn eps(text: &str) -> Eps {
        text.parse().unwrap()
    }

    #[test]
    fn names_carry_the_settings() -> Result<()> {
        let name = |spec| Declared::try_from(spec).map(|declared| declared.name);
        let bim = Spec::Pgd(bim(eps("8/255"), eps("2/255"), 10)?);
        assert_eq!(name(bim)?, "BIM, 10 steps of 2/255");
        let pgd = Spec::Pgd(Pgd::new(Budget::l2(eps("0.5"))?, eps("0.1"), 7));
        assert_eq!(
            name(pgd)?,
            "PGD from a random start (Uniform), 7 steps of 0.1"
        );
        let mi = MiFgsm::new(Budget::linf(eps("8/255"))?, 10)?;
        assert_eq!(
            name(Spec::MiFgsm(mi))?,
            "MI-FGSM, 10 steps of 0.00314, decay 1"
        );
        let reach = Declared::try_from(bim)?.reach.unwrap();
        assert!((reach - 20.0 / 255.0).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn doubling_stops_at_the_pixel_range() -> Result<()> {
        let linf = |text| -> Result<Spec> { Ok(Spec::Pgd(bim(eps(text), eps("0.1"), 4)?)) };
        let Some(Spec::Pgd(twice)) = doubled(linf("0.2")?)? else {
            panic!("not doubled")
        };
        assert_eq!((twice.budget.eps().get(), twice.step.get()), (0.4, 0.2));
        let Some(Spec::Pgd(cut)) = doubled(linf("0.8")?)? else {
            panic!("not doubled")
        };
        assert_eq!((cut.budget.eps().get(), cut.step.get()), (1.0, 0.125));
        assert_eq!(doubled(linf("1")?)?, None);
        assert_eq!(
            doubled(Spec::Fgsm(Fgsm {
                budget: Budget::linf(eps("0"))?
            }))?,
            None
        );
        Ok(())
    }
}
