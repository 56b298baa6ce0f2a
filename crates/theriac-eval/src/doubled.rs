//! An attack at twice its epsilon.

use theriac::{Norm, Result};
use theriac_attacks::{Declare, Spec};

/// The same attack with twice the radius and twice the step, cut at the pixel range; none where
/// the ball cannot grow.
pub(crate) fn doubled(spec: Spec) -> Result<Option<Spec>> {
    let budget = spec.declared().ball()?;
    let eps = budget.eps().get();
    let limit = if budget.norm() == Norm::Linf {
        1.0
    } else {
        f64::INFINITY
    };
    let larger = (2.0 * eps).min(limit);
    if larger <= eps {
        return Ok(None);
    }
    spec.scaled(larger / eps).map(Some)
}

#[cfg(test)]
mod tests {
    use theriac_attacks::{Fgsm, bim};

    use theriac::{Budget, Eps};

    use super::*;

    fn eps(text: &str) -> Eps {
        text.parse().unwrap()
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
