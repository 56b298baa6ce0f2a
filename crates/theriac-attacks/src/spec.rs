//! Attacks as data.

use serde::{Deserialize, Serialize};
use theriac::{Attack, Classifier};

use crate::{Fgsm, MiFgsm, Pgd};

/// An attack as it stands in TOML: `{ kind = "pgd", budget = { norm = "linf", eps = "8/255" },
/// step = "2/255", steps = 10 }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Spec {
    /// One step.
    Fgsm(Fgsm),
    /// Iterated steps.
    Pgd(Pgd),
    /// Iterated steps with momentum.
    MiFgsm(MiFgsm),
}

impl Spec {
    /// The attack.
    pub fn build<C: Classifier + ?Sized>(self) -> Box<dyn Attack<C>> {
        match self {
            Self::Fgsm(attack) => Box::new(attack),
            Self::Pgd(attack) => Box::new(attack),
            Self::MiFgsm(attack) => Box::new(attack),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        attack: Spec,
    }

    fn read(text: &str) -> Result<Spec, toml::de::Error> {
        toml::from_str::<File>(&format!("attack = {text}")).map(|file| file.attack)
    }

    #[test]
    fn reads_and_refuses() {
        let ball = "budget = { norm = \"linf\", eps = \"8/255\" }";
        let pgd = read(&format!("{{ kind = \"pgd\", {ball}, step = \"2/255\", steps = 10 }}"));
        assert!(matches!(pgd, Ok(Spec::Pgd(Pgd { steps: 10, .. }))), "{pgd:?}");
        assert!(read(&format!("{{ kind = \"fgsm\", {ball} }}")).is_ok());
        let unknown = read(&format!("{{ kind = \"fgsm\", {ball}, stepp = 1 }}")).unwrap_err();
        assert!(unknown.to_string().contains("stepp"), "{unknown}");
        let eight = "{ kind = \"fgsm\", budget = { norm = \"linf\", eps = 8 } }";
        assert!(read(eight).unwrap_err().to_string().contains("/255"));
    }
}
