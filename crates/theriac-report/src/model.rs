//! A report as data: a verdict, and sections of blocks.
//!
//! Prose (paragraphs, cells, captions, explanations, all that is not said to be plain) may hold
//! `` `code` `` and links, `[text](#anchor)` or `[text](https://...)`. All else is shown as written.

use serde::{Deserialize, Serialize};

use crate::{Bars, Curve, Images};

/// A report: what is written as `index.html`, `report.md` and `report.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// The main heading; plain text.
    pub title: String,
    /// A line under the title, in prose; empty for none.
    #[serde(default)]
    pub subtitle: String,
    /// What a reader should believe, before everything else.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// The parts, in reading order; the table of contents lists them.
    #[serde(default)]
    pub sections: Vec<Section>,
}

/// How to take something. It is always shown by a sign and a word, never by colour alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Nothing speaks against it.
    Good,
    /// It may be wrong.
    Doubtful,
    /// It is wrong, or failed.
    Bad,
    /// No judgement: not run, not applicable, for information.
    Neutral,
}

impl Kind {
    /// The sign that stands before the word.
    pub const fn sign(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Doubtful => "?",
            Self::Bad => "✗",
            Self::Neutral => "–",
        }
    }

    /// The kind as a word, for where no other is given. The style sheet's classes are called so.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Doubtful => "doubtful",
            Self::Bad => "bad",
            Self::Neutral => "neutral",
        }
    }
}

/// The page's judgement, first and large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// How to take the number.
    pub kind: Kind,
    /// The judgement in one line, plain: "Questionable: 47.2 % robust accuracy".
    pub headline: String,
    /// What it means, in a sentence or two of prose.
    pub text: String,
    /// Why, one reason a line of prose; empty for none.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// What to do next, in prose.
    #[serde(default)]
    pub next: Option<String>,
}

impl Verdict {
    /// A verdict without reasons and next step.
    pub fn new(kind: Kind, headline: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            kind,
            headline: headline.into(),
            text: text.into(),
            reasons: Vec::new(),
            next: None,
        }
    }
}

/// A part of the page under its own heading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The anchor, unique in the page: `[text](#id)` leads here.
    pub id: String,
    /// The heading; plain text.
    pub title: String,
    /// What it holds.
    pub blocks: Vec<Block>,
}

impl Section {
    /// A section whose anchor is made from its title as on code hosts: small letters and digits,
    /// with hyphens for spaces.
    pub fn new(title: impl Into<String>, blocks: Vec<Block>) -> Self {
        let title = title.into();
        Self {
            id: anchor(&title),
            title,
            blocks,
        }
    }

    /// The same section under another anchor, where two have the same title.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }
}

/// The anchor that a heading gets.
pub(crate) fn anchor(title: &str) -> String {
    title
        .to_lowercase()
        .chars()
        .filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            _ => letter.is_alphanumeric().then_some(letter),
        })
        .collect()
}

/// A piece of a section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Block {
    /// A paragraph of prose.
    Text(String),
    /// Lines as they stand: a command, a file; plain.
    Code(String),
    /// Names with their values: threat model, manifest.
    Facts(Vec<Fact>),
    /// A table.
    Table(Table),
    /// Checks: those that found something open, the others folded.
    Checks(Vec<Check>),
    /// Lines and points over two axes: a security curve.
    Curve(Curve),
    /// Bars of one unit.
    Bars(Bars),
    /// A grid of pictures.
    Images(Images),
    /// Blocks that are folded until asked for.
    Details(Details),
}

/// A name with its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// The name; plain text.
    pub name: String,
    /// The value, in prose.
    pub value: String,
}

impl Fact {
    /// A fact.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }
}

/// A table with a head; every row has a cell for each of its columns.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// What the table shows, in prose.
    pub caption: String,
    /// The columns. The first names the rows.
    pub heads: Vec<Head>,
    /// The rows.
    pub rows: Vec<Vec<Cell>>,
    /// What a reader must know of it, in prose under the table; empty for none.
    #[serde(default)]
    pub note: String,
}

/// The head of a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Its name, with the unit; plain text.
    pub text: String,
    /// Whether the column holds numbers, which stand to the right.
    #[serde(default)]
    pub numeric: bool,
}

impl Head {
    /// A column of text.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            numeric: false,
        }
    }

    /// A column of numbers.
    pub fn number(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            numeric: true,
        }
    }
}

/// A cell of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// What it says, in prose.
    pub text: String,
    /// How to take it; the sign is shown before the text.
    #[serde(default)]
    pub kind: Option<Kind>,
}

impl Cell {
    /// A cell that judges nothing.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            kind: None,
        }
    }

    /// The same cell with a judgement.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// One check: what was asked, what was found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Its number in the list of checks.
    pub number: u32,
    /// Its name; plain text.
    pub name: String,
    /// What it found.
    pub finding: Finding,
    /// What was asked and which facts answered, in prose.
    pub explanation: String,
    /// Where the check comes from, in prose; empty for none.
    #[serde(default)]
    pub source: String,
    /// What to do about the finding, in prose; empty for nothing.
    #[serde(default)]
    pub next_step: String,
    /// An anchor for links to this check, unique in the page.
    #[serde(default)]
    pub id: Option<String>,
}

impl Check {
    /// A check without source, next step and anchor.
    pub fn new(
        number: u32,
        name: impl Into<String>,
        finding: Finding,
        explanation: impl Into<String>,
    ) -> Self {
        Self {
            number,
            name: name.into(),
            finding,
            explanation: explanation.into(),
            source: String::new(),
            next_step: String::new(),
            id: None,
        }
    }
}

/// What a check found: how to take it, in the checker's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// How to take it.
    pub kind: Kind,
    /// The word, plain: "passed", "questionable", "not run".
    pub word: String,
}

impl Finding {
    /// A finding.
    pub fn new(kind: Kind, word: impl Into<String>) -> Self {
        Self {
            kind,
            word: word.into(),
        }
    }
}

/// Blocks that are folded until asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Details {
    /// The line that is always seen; plain text.
    pub summary: String,
    /// What it hides.
    pub blocks: Vec<Block>,
}
