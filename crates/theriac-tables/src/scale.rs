use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// How much work a run of a table is. Numbers of different scales are never mixed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Embedded data, minutes on two cores: shows that everything runs, not what the paper shows.
    #[default]
    Smoke,
    /// Full real data, or a stated subset, within hours on two cores.
    Desk,
    /// As printed.
    Paper,
}

impl Scale {
    /// All scales, from the smallest to the largest.
    pub const ALL: [Self; 3] = [Self::Smoke, Self::Desk, Self::Paper];

    /// The name used in TOML, on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Desk => "desk",
            Self::Paper => "paper",
        }
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scale {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|scale| scale.name() == name)
            .ok_or_else(|| Error::unknown("--scale", "scale", name, Self::ALL.map(Self::name)))
    }
}
