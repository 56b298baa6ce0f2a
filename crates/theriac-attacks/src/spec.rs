//! Attacks as data.

use serde::{Deserialize, Serialize};
use theriac::{Aim, Attack, Classifier, Cut, Labels, Pass, Pixels, Result};

use crate::{Declare, Declared};

/// One list, so that a new attack is one line here.
macro_rules! specs {
    ($($(#[$doc:meta])* $name:ident($attack:ty),)+) => {
        /// An attack as it stands in TOML: `{ kind = "pgd", budget = { norm = "linf",
        /// eps = "8/255" }, step = "2/255", steps = 10 }`. Adaptors hold attacks: `{ kind =
        /// "restarts", times = 5, attack = { kind = "pgd", ... } }`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "kebab-case")]
        #[non_exhaustive]
        pub enum Spec {
            $($(#[$doc])* $name($attack),)+
        }

        impl<C: Classifier + ?Sized> Attack<C> for Spec {
            fn perturb(
                &self,
                model: &C,
                clean: &Pixels,
                aim: Aim<'_, Labels>,
                pass: &Pass<'_>,
            ) -> Result<Pixels> {
                match self {
                    $(Self::$name(attack) => attack.perturb(model, clean, aim, pass),)+
                }
            }

            fn cut(&self) -> Cut {
                match self {
                    $(Self::$name(attack) => Attack::<C>::cut(attack),)+
                }
            }
        }

        impl Declare for Spec {
            fn declared(&self) -> Declared {
                match self {
                    $(Self::$name(attack) => attack.declared(),)+
                }
            }

            fn check(&self) -> Result<()> {
                match self {
                    $(Self::$name(attack) => attack.check(),)+
                }
            }

            fn scaled(self, factor: f64) -> Result<Self> {
                match self {
                    $(Self::$name(attack) => attack.scaled(factor).map(Self::$name),)+
                }
            }
        }
    };
}

specs! {
    /// One step.
    Fgsm(crate::Fgsm),
    /// Iterated steps.
    Pgd(crate::Pgd),
    /// Iterated steps with momentum.
    MiFgsm(crate::MiFgsm),
    /// Steps of adaptive size.
    Apgd(crate::Apgd),
    /// The same toward several classes.
    ApgdT(crate::ApgdT),
    /// The nearest boundary.
    Fab(crate::Fab),
    /// The nearest boundary, without a way back.
    DeepFool(crate::DeepFool),
    /// Distance and margin together.
    CarliniWagner(crate::CarliniWagner),
    /// A sphere of changing radius.
    Ddn(crate::Ddn),
    /// A ball of changing radius.
    Fmn(crate::Fmn),
    /// Random search over squares.
    Square(crate::Square),
    /// A few pixels of any value.
    FewPixel(crate::FewPixel),
    /// PGD by queries.
    Spsa(crate::Spsa),
    /// Along the boundary, by decisions.
    HopSkipJump(crate::HopSkipJump),
    /// A parameter-free ensemble.
    AutoAttack(crate::AutoAttack),
    /// The best of several runs.
    Restarts(crate::Restarts<Box<Spec>>),
    /// The best of several attacks.
    WorstOf(crate::WorstOf<Spec>),
    /// The mean over draws of noise.
    Eot(crate::Eot<Box<Spec>>),
    /// A ball around a minimum-norm attack.
    Within(crate::Within<Box<Spec>>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MiFgsm, Pgd};

    #[derive(Deserialize)]
    struct File {
        attack: Spec,
    }

    fn read(text: &str) -> std::result::Result<Spec, toml::de::Error> {
        toml::from_str::<File>(&format!("attack = {text}")).map(|file| file.attack)
    }

    #[test]
    fn reads_and_refuses() {
        let ball = "budget = { norm = \"linf\", eps = \"8/255\" }";
        let pgd = format!("{{ kind = \"pgd\", {ball}, step = \"2/255\", steps = 10 }}");
        let spec = read(&pgd).unwrap();
        assert!(matches!(spec, Spec::Pgd(Pgd { steps: 10, .. })), "{spec:?}");
        assert!(read(&format!("{{ kind = \"fgsm\", {ball} }}")).is_ok());
        let unknown = read(&format!("{{ kind = \"fgsm\", {ball}, stepp = 1 }}")).unwrap_err();
        assert!(unknown.to_string().contains("stepp"), "{unknown}");
        assert_eq!(
            spec.declared().name,
            "PGD from a random start (Uniform), 10 steps of 2/255"
        );
        let eight = "{ kind = \"fgsm\", budget = { norm = \"linf\", eps = 8 } }";
        assert!(read(eight).unwrap_err().to_string().contains("/255"));
        let five = read(&format!(
            "{{ kind = \"restarts\", times = 5, attack = {pgd} }}"
        ));
        assert!(five.unwrap().declared().name.ends_with("best of 5 runs"));
        let wrong = format!("{{ kind = \"restarts\", times = 5, attack = {pgd}, n = 1 }}");
        assert!(read(&wrong).is_err());
    }

    #[test]
    fn refuses_settings_that_cannot_reach_the_ball() -> Result<()> {
        let eps = |text: &str| text.parse::<theriac::Eps>();
        let short = crate::bim(eps("0.1")?, eps("2/255")?, 10)?;
        let error = Spec::Pgd(short).check().unwrap_err().to_string();
        assert!(error.contains("short_reach"), "{error}");
        let meant = Pgd {
            short_reach: true,
            ..short
        };
        Spec::Pgd(meant).check()
    }

    #[test]
    fn names_carry_the_settings() -> Result<()> {
        let eps = |text: &str| text.parse::<theriac::Eps>();
        let bim = crate::bim(eps("8/255")?, eps("2/255")?, 10)?;
        assert_eq!(Spec::Pgd(bim).declared().name, "BIM, 10 steps of 2/255");
        let mi = MiFgsm::new(theriac::Budget::linf(eps("8/255")?)?, 10)?;
        let name = Spec::MiFgsm(mi).declared().name;
        assert_eq!(name, "MI-FGSM with decay 1, 10 steps of 0.00314");
        assert!((bim.declared().reach.unwrap_or(0.0) - 20.0 / 255.0).abs() < 1e-12);
        Ok(())
    }
}
