//! One number to compute, and its settings.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Column, Error, Reading, Result, Row, Scale, Table};

/// One number of a table: a row, a column, a reading, a scale and a seed.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'t> {
    /// The table it belongs to.
    pub table: &'t Table,
    /// Usually the method.
    pub row: &'t Row,
    /// Usually the attack and the data set.
    pub column: &'t Column,
    /// How the paper's ambiguities are read.
    pub reading: &'t Reading,
    /// How much work it is.
    pub scale: Scale,
    /// The seed of all randomness in it.
    pub seed: u64,
}

/// The name of a cell in events, records and messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellName {
    /// Short name of the paper.
    pub paper: String,
    /// The table's id.
    pub table: String,
    /// The row's name.
    pub row: String,
    /// The column's name.
    pub column: String,
    /// The reading's name.
    pub reading: String,
    /// The scale.
    pub scale: Scale,
    /// The seed.
    pub seed: u64,
}

impl fmt::Display for CellName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {}, {}",
            self.paper, self.table, self.row, self.column
        )?;
        if self.reading != Reading::default().name {
            write!(f, " (reading {})", self.reading)?;
        }
        write!(f, ", {} scale, seed {}", self.scale, self.seed)
    }
}

/// Everything that decides a cell's value, apart from the code: the key of its measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellSpec {
    /// Which cell.
    pub cell: CellName,
    /// The table's revision.
    pub revision: u32,
    /// What is measured.
    pub measure: String,
    /// The merged settings.
    pub settings: serde_json::Value,
}

impl Cell<'_> {
    /// The settings of this cell, read into the experiment's own type: the table's, overridden by
    /// those of the scale, the row, the column and the reading, in this order. Tables within the
    /// settings are merged key by key; every other value is replaced.
    ///
    /// Mark `T` with `#[serde(deny_unknown_fields)]`, so that a misspelt key is an error.
    ///
    /// # Errors
    /// If the merged settings are not a `T`; the message names file, row, column and key.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<T> {
        toml::Value::Table(self.merged())
            .try_into()
            .map_err(|error: toml::de::Error| Error::Settings {
                path: self.table.file.clone(),
                row: self.row.name.clone(),
                column: self.column.name.clone(),
                problem: error.to_string().trim_end().replace('\n', " "),
            })
    }

    fn merged(&self) -> toml::Table {
        let mut all = self.table.settings.clone();
        merge(&mut all, &self.table.at(self.scale).settings);
        merge(&mut all, &self.row.set);
        merge(&mut all, &self.column.set);
        merge(&mut all, &self.reading.set);
        all
    }

    /// The cell's name.
    pub fn name(&self) -> CellName {
        CellName {
            paper: self.table.paper.clone(),
            table: self.table.id.clone(),
            row: self.row.name.clone(),
            column: self.column.name.clone(),
            reading: self.reading.name.clone(),
            scale: self.scale,
            seed: self.seed,
        }
    }

    /// What decides the cell's value.
    ///
    /// # Errors
    /// If the settings hold a number that JSON cannot write, such as `nan`.
    pub fn spec(&self) -> Result<CellSpec> {
        let settings = serde_json::to_value(self.merged()).map_err(|source| Error::Json {
            what: format!("the settings of {}", self.name()),
            source,
        })?;
        Ok(CellSpec {
            cell: self.name(),
            revision: self.table.revision,
            measure: self.column.measure.clone(),
            settings,
        })
    }
}

fn merge(below: &mut toml::Table, above: &toml::Table) {
    for (key, value) in above {
        match (below.get_mut(key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge(below, above),
            _ => {
                below.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Selection;
    use crate::table::tests::demo;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Attack {
        kind: String,
        steps: usize,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        batch: usize,
        epochs: usize,
        method: String,
        eps: Option<String>,
        attack: Attack,
    }

    fn cell<'t>(table: &'t Table, row: &str, column: &str, reading: &str) -> Cell<'t> {
        let selection = Selection {
            rows: vec![row.into()],
            columns: vec![column.into()],
            readings: vec![reading.into()],
            seeds: vec![0],
        };
        table.cells(Scale::Desk, &selection).unwrap()[0]
    }

    #[test]
    fn later_layers_override_key_by_key() {
        let table = demo();
        let read = |row, column, reading| -> Settings {
            cell(&table, row, column, reading).settings().unwrap()
        };
        let steps = |row, column| read(row, column, "default").attack.steps;
        // Table, then row, then column; the kind survives both.
        assert_eq!(steps("Plain", "Clean"), 10);
        assert_eq!(steps("Hard, robust", "Clean"), 30);
        assert_eq!(steps("Hard, robust", "BIM(30)"), 40);
        let clean = read("Plain", "Clean", "other");
        assert_eq!(clean.attack.kind, "bim");
        assert_eq!((clean.batch, clean.epochs), (32, 20));
        assert_eq!(clean.eps.as_deref(), Some("0.3"));
    }

    #[test]
    fn a_key_that_the_experiment_does_not_know_is_named_with_its_place() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Narrow {
            #[serde(rename = "batch")]
            _batch: usize,
        }
        let table = demo();
        let error = cell(&table, "Plain", "Time", "default")
            .settings::<Narrow>()
            .unwrap_err();
        let message = error.to_string();
        for part in [
            "table1.toml",
            "\"Plain\"",
            "\"Time\"",
            "unknown field",
            "`batch`",
        ] {
            assert!(message.contains(part), "{message} lacks {part}");
        }
    }

    #[test]
    fn the_spec_changes_with_the_settings_and_the_seed() {
        let table = demo();
        let one = cell(&table, "Plain", "Clean", "default");
        let other = cell(&table, "Plain", "Clean", "other");
        let seeded = Cell { seed: 1, ..one };
        assert_ne!(one.spec().unwrap().settings, other.spec().unwrap().settings);
        assert_ne!(one.spec().unwrap(), seeded.spec().unwrap());
        assert_eq!(one.spec().unwrap(), one.spec().unwrap());
    }
}
