//! The measurements of one table at one scale, summed up over seeds.

use std::collections::{BTreeMap, BTreeSet};

use crate::measured::Check;
use crate::{
    Cell, CheckOutcome, Column, DRAWS, Machine, Measured, Outcome, Reading, Record, Result, Row,
    Scale, Selection, Store, Table,
};

/// The stored measurements that belong to a table as it is now: same revision, same settings.
#[derive(Debug)]
pub struct Results<'t> {
    /// The table.
    pub table: &'t Table,
    /// The scale; numbers of other scales never come in.
    pub scale: Scale,
    records: Vec<Record>,
}

/// What is known of one cell over all its seeds.
#[derive(Debug, Clone, PartialEq)]
pub enum Summary {
    /// Nothing was measured, or the scale cannot run it.
    NotRun,
    /// Every attempt failed; the last reason.
    Failed(String),
    /// One value or more.
    Measured(Statistics),
}

/// The values of one cell over its seeds.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Mean over the seeds.
    pub mean: f64,
    /// Sample deviation over the seeds; with a single one, over repeated evaluations of a randomised
    /// model ([`DRAWS`]), if there were any.
    pub std: Option<f64>,
    /// The 95 % interval of a single seed.
    pub interval: Option<(f64, f64)>,
    /// How many images the value of one seed is over.
    pub n: usize,
    /// The seeds, in order.
    pub seeds: Vec<u64>,
    /// Seconds over all seeds.
    pub seconds: f64,
    /// The worst verdict of any seed.
    pub verdict: Option<String>,
    /// Checks that failed for some seed.
    pub failed_checks: Vec<Check>,
    /// The threat model.
    pub threat_model: Option<String>,
    /// The attack.
    pub attack: Option<String>,
}

impl<'t> Results<'t> {
    /// Reads what the store has for the table.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn load(store: &Store, table: &'t Table, scale: Scale) -> Result<Self> {
        Self::new(table, scale, store.records(&table.paper, &table.id, scale)?)
    }

    /// Keeps those of `records` that belong to the table's present cells.
    ///
    /// # Errors
    /// If the settings of a cell cannot be written as JSON.
    pub fn new(table: &'t Table, scale: Scale, records: Vec<Record>) -> Result<Self> {
        let cells = table.cells(scale, &Selection::default())?;
        let mut present = BTreeMap::new();
        for cell in cells {
            present.insert(
                (&cell.row.name, &cell.column.name, &cell.reading.name),
                cell,
            );
        }
        let mut kept = Vec::new();
        for record in records {
            let name = &record.spec.cell;
            let Some(cell) = present.get(&(&name.row, &name.column, &name.reading)) else {
                continue;
            };
            if (Cell {
                seed: name.seed,
                ..*cell
            })
            .spec()?
                == record.spec
            {
                kept.push(record);
            }
        }
        kept.sort_by_key(|record| record.spec.cell.seed);
        Ok(Self {
            table,
            scale,
            records: kept,
        })
    }

    /// What is known of one cell.
    pub fn summary(&self, row: &Row, column: &Column, reading: &Reading) -> Summary {
        let mut values = Vec::new();
        let mut failure = None;
        for record in self.records_of(&row.name, &column.name, &reading.name) {
            match &record.outcome {
                Outcome::Measured(measured) => values.push((record.spec.cell.seed, measured)),
                Outcome::Failed(reason) => failure = Some(reason.clone()),
            }
        }
        match (values.is_empty(), failure) {
            (true, None) => Summary::NotRun,
            (true, Some(reason)) => Summary::Failed(reason),
            (false, _) => Summary::Measured(statistics(&values)),
        }
    }

    /// The mean of a cell over its seeds, in the default reading.
    pub(crate) fn mean(&self, row: &str, column: &str) -> Option<f64> {
        let values: Vec<f64> = self
            .records_of(row, column, &Reading::default().name)
            .filter_map(|record| match &record.outcome {
                Outcome::Measured(measured) => Some(measured.value),
                Outcome::Failed(_) => None,
            })
            .collect();
        (!values.is_empty()).then(|| mean(&values))
    }

    fn records_of(&self, row: &str, column: &str, reading: &str) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| {
            let cell = &record.spec.cell;
            cell.row == row && cell.column == column && cell.reading == reading
        })
    }

    /// How many measurements there are, and how many attempts failed.
    pub fn counts(&self) -> (usize, usize) {
        let measured = self
            .records
            .iter()
            .filter(|record| matches!(record.outcome, Outcome::Measured(_)))
            .count();
        (measured, self.records.len() - measured)
    }

    /// The seeds that were measured.
    pub fn seeds(&self) -> BTreeSet<u64> {
        self.records
            .iter()
            .map(|record| record.spec.cell.seed)
            .collect()
    }

    /// The machines that measured.
    pub fn machines(&self) -> BTreeSet<&Machine> {
        self.records.iter().map(|record| &record.machine).collect()
    }

    /// The commits that measured.
    pub fn commits(&self) -> BTreeSet<&str> {
        self.records
            .iter()
            .filter_map(|record| record.commit.as_deref())
            .collect()
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn statistics(values: &[(u64, &Measured)]) -> Statistics {
    let numbers: Vec<f64> = values.iter().map(|(_, measured)| measured.value).collect();
    let mean = mean(&numbers);
    let squares: f64 = numbers.iter().map(|value| (value - mean).powi(2)).sum();
    let several = numbers.len() > 1;
    let (_, first) = values[0];
    let mut failed_checks: Vec<Check> = Vec::new();
    for (_, measured) in values {
        for check in &measured.checks {
            let known = failed_checks.iter().any(|it| it.name == check.name);
            if check.outcome == CheckOutcome::Failed && !known {
                failed_checks.push(check.clone());
            }
        }
    }
    Statistics {
        mean,
        std: match several {
            true => Some((squares / (numbers.len() - 1) as f64).sqrt()),
            false => first.extra.get(DRAWS).copied(),
        },
        interval: if several { None } else { first.interval },
        n: first.n,
        seeds: values.iter().map(|(seed, _)| *seed).collect(),
        seconds: values.iter().map(|(_, measured)| measured.seconds).sum(),
        verdict: values
            .iter()
            .filter_map(|(_, measured)| measured.verdict.as_deref())
            .max_by_key(|verdict| badness(verdict))
            .map(str::to_owned),
        failed_checks,
        threat_model: first.threat_model.clone(),
        attack: first.attack.clone(),
    }
}

/// Reliable is best; a word we do not know is worst, so that it is seen.
fn badness(verdict: &str) -> u8 {
    match verdict {
        "reliable" => 0,
        "questionable" => 1,
        _ => 2,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::table::tests::demo;
    use crate::{Judgement, Outcome};

    pub(crate) fn record(cell: &Cell<'_>, outcome: Outcome) -> Record {
        let machine = Machine {
            cpu: "Abacus".into(),
            cores: 2,
            threads: 1,
            device: "cpu".into(),
        };
        Record {
            spec: cell.spec().unwrap(),
            outcome,
            commit: Some("abc".into()),
            machine,
        }
    }

    pub(crate) fn value(value: f64) -> Outcome {
        Outcome::Measured(Measured {
            value,
            n: 500,
            seconds: 1.0,
            ..Measured::default()
        })
    }

    fn all(table: &Table, number: impl Fn(&Cell<'_>) -> f64) -> Results<'_> {
        let records = table
            .cells(Scale::Desk, &Selection::default())
            .unwrap()
            .iter()
            .map(|cell| record(cell, value(number(cell))))
            .collect();
        Results::new(table, Scale::Desk, records).unwrap()
    }

    #[test]
    fn repeated_evaluations_of_one_model_have_a_deviation_too() {
        let table = demo();
        let cell = table.cells(Scale::Smoke, &Selection::default()).unwrap()[0];
        let drawn = Measured {
            value: 50.0,
            extra: BTreeMap::from([(DRAWS.to_owned(), 0.25)]),
            ..Measured::default()
        };
        let record = record(&cell, Outcome::Measured(drawn));
        let results = Results::new(&table, Scale::Smoke, vec![record]).unwrap();
        let summary = results.summary(cell.row, cell.column, cell.reading);
        let Summary::Measured(statistics) = summary else {
            panic!("{summary:?}");
        };
        assert_eq!((statistics.mean, statistics.std), (50.0, Some(0.25)));
    }

    #[test]
    fn seeds_give_a_mean_and_a_sample_deviation() {
        let table = demo();
        let results = all(&table, |cell| if cell.seed == 0 { 10.0 } else { 14.0 });
        let summary = results.summary(&table.rows[0], &table.columns[0], &table.readings[0]);
        let Summary::Measured(statistics) = summary else {
            panic!("{summary:?}")
        };
        assert_eq!(statistics.mean, 12.0);
        assert!((statistics.std.unwrap() - 8f64.sqrt()).abs() < 1e-12);
        assert_eq!((statistics.seeds, statistics.interval), (vec![0, 1], None));
        assert_eq!(results.counts(), (18, 0));
    }

    #[test]
    fn results_of_other_settings_or_revisions_stay_out() {
        let table = demo();
        let cell = table.cells(Scale::Desk, &Selection::default()).unwrap()[0];
        let mut old = record(&cell, value(1.0));
        old.spec.revision = 0;
        let mut other = record(&cell, value(2.0));
        other.spec.settings["batch"] = 1.into();
        let results = Results::new(&table, Scale::Desk, vec![old, other]).unwrap();
        assert_eq!(results.counts(), (0, 0));
    }

    #[test]
    fn claims_compare_means() {
        let mut table = demo();
        let outcome = |table: &Table, plain: f64, robust: f64| {
            let number = |cell: &Cell<'_>| {
                if cell.row.name == "Plain" {
                    plain
                } else {
                    robust
                }
            };
            table.claims[0].judge(&all(table, number))
        };
        // robust >= 2 x plain
        assert_eq!(
            outcome(&table, 10.0, 20.0),
            Judgement::Holds {
                left: 20.0,
                bound: 20.0
            }
        );
        assert_eq!(
            outcome(&table, 10.0, 19.0),
            Judgement::Fails {
                left: 19.0,
                bound: 20.0
            }
        );
        table.claims[0].plus = -1.0;
        assert_eq!(
            outcome(&table, 10.0, 19.0),
            Judgement::Holds {
                left: 19.0,
                bound: 19.0
            }
        );
        table.claims[0].op = crate::Comparison::AtMost;
        table.claims[0].right = None;
        table.claims[0].plus = 10.0;
        assert_eq!(
            outcome(&table, 0.0, 11.0),
            Judgement::Fails {
                left: 11.0,
                bound: 10.0
            }
        );
        table.claims[0].scales = vec![Scale::Paper];
        assert_eq!(outcome(&table, 0.0, 9.0), Judgement::NotJudged);
        let nothing = Results::new(&table, Scale::Paper, vec![]).unwrap();
        assert_eq!(table.claims[0].judge(&nothing), Judgement::NotRun);
    }

    #[test]
    fn the_worst_verdict_and_every_failed_check_are_kept() {
        let table = demo();
        let cells = table.cells(Scale::Desk, &Selection::default()).unwrap();
        let check = |name: &str, outcome| Check {
            name: name.into(),
            outcome,
            detail: "".into(),
        };
        let with = |verdict: &str, checks| {
            let verdict = Some(verdict.to_owned());
            Outcome::Measured(Measured {
                value: 1.0,
                n: 1,
                verdict,
                checks,
                ..Default::default()
            })
        };
        let passed = check("noise", CheckOutcome::Passed);
        let failed = check("larger epsilon", CheckOutcome::Failed);
        let first = cells.iter().find(|cell| cell.seed == 0).unwrap();
        let second = cells.iter().find(|cell| cell.seed == 1).unwrap();
        let records = vec![
            record(
                first,
                with("questionable", vec![passed.clone(), failed.clone()]),
            ),
            record(second, with("reliable", vec![passed])),
        ];
        let results = Results::new(&table, Scale::Desk, records).unwrap();
        let summary = results.summary(first.row, first.column, first.reading);
        let Summary::Measured(statistics) = summary else {
            panic!("{summary:?}")
        };
        assert_eq!(statistics.verdict.as_deref(), Some("questionable"));
        assert_eq!(statistics.failed_checks, [failed]);
    }
}
