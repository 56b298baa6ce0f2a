//! Attacks as data.

use serde::{Deserialize, Serialize};
use theriac::{Attack, Classifier, Result};

use crate::{Declare, Declared};

/// One list, so that a new attack is one line here.
macro_rules! specs {
    ($($(#[$doc:meta])* $attack:ident,)+) => {
        /// An attack as it stands in TOML: `{ kind = "pgd", budget = { norm = "linf",
        /// eps = "8/255" }, step = "2/255", steps = 10 }`.
        #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "kebab-case")]
        pub enum Spec {
            $($(#[$doc])* $attack(crate::$attack),)+
        }

        impl Spec {
            /// The attack.
            pub fn build<C: Classifier + ?Sized>(self) -> Box<dyn Attack<C>> {
                match self {
                    $(Self::$attack(attack) => Box::new(attack),)+
                }
            }
        }

        impl Declare for Spec {
            fn declared(&self) -> Declared {
                match self {
                    $(Self::$attack(attack) => attack.declared(),)+
                }
            }

            fn scaled(self, factor: f64) -> Result<Self> {
                match self {
                    $(Self::$attack(attack) => attack.scaled(factor).map(Self::$attack),)+
                }
            }
        }
    };
}

specs! {
    /// One step.
    Fgsm,
    /// Iterated steps.
    Pgd,
    /// Iterated steps with momentum.
    MiFgsm,
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
        let pgd = read(&format!(
            "{{ kind = \"pgd\", {ball}, step = \"2/255\", steps = 10 }}"
        ));
        let pgd = pgd.unwrap();
        assert!(matches!(pgd, Spec::Pgd(Pgd { steps: 10, .. })), "{pgd:?}");
        assert!(read(&format!("{{ kind = \"fgsm\", {ball} }}")).is_ok());
        let unknown = read(&format!("{{ kind = \"fgsm\", {ball}, stepp = 1 }}")).unwrap_err();
        assert!(unknown.to_string().contains("stepp"), "{unknown}");
        assert_eq!(
            pgd.declared().name,
            "PGD from a random start (Uniform), 10 steps of 2/255"
        );
        let eight = "{ kind = \"fgsm\", budget = { norm = \"linf\", eps = 8 } }";
        assert!(read(eight).unwrap_err().to_string().contains("/255"));
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
