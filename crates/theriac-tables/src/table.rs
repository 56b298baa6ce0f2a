//! A table or figure of a paper, read from TOML, and its printed numbers, read from CSV.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Cell, Claim, Error, Result, Scale};

/// One table or figure of a paper: what to compute and what the paper printed.
///
/// `table1.toml` holds the structure and the settings, `table1.csv` beside it the printed numbers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Short name of the paper; the example that computes it bears the same name.
    pub paper: String,
    /// Short name of the table, equal to the file's stem: "table1", "fig2a".
    pub id: String,
    /// The heading in reports.
    pub title: String,
    /// Table or figure.
    pub kind: Kind,
    /// Raised by hand when a change of the code alters the numbers: older results are then ignored.
    pub revision: u32,
    /// Seeds at scales that do not name their own.
    pub seeds: Vec<u64>,
    /// Largest difference from the printed value, in the column's unit, that counts as agreement
    /// at paper scale.
    pub tolerance: f64,
    /// Labels of the axes; figures only.
    pub plot: Option<Plot>,
    /// Settings of every cell; scale, row, column and reading override them in this order.
    #[serde(default)]
    pub settings: toml::Table,
    /// What each scale changes.
    scale: Scales,
    /// The rows of the table, or the lines of the figure.
    #[serde(rename = "row")]
    pub rows: Vec<Row>,
    /// The columns of the table, or the points of the figure's lines.
    #[serde(rename = "column")]
    pub columns: Vec<Column>,
    /// Other readings of what the paper leaves open. [`Reading::default`] is always the first.
    #[serde(rename = "reading", default)]
    pub readings: Vec<Reading>,
    /// What the paper says about its numbers.
    #[serde(rename = "claim", default)]
    pub claims: Vec<Claim>,
    /// The printed cells, in the order of the CSV.
    #[serde(skip)]
    pub printed: Vec<Printed>,
    /// The TOML file, for messages.
    #[serde(skip)]
    pub file: PathBuf,
}

/// Whether rows are rows or lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Rows and columns of numbers.
    Table,
    /// Each row is a line; each column has its position on the x axis.
    Figure,
}

/// The axes of a figure.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plot {
    /// Label of the horizontal axis, with its unit.
    pub x_label: String,
    /// Label of the vertical axis, with its unit.
    pub y_label: String,
    /// Heading of the drawing.
    pub title: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scales {
    smoke: ScaleSettings,
    desk: ScaleSettings,
    paper: ScaleSettings,
}

/// What one scale changes: some reserved keys, and settings of its own.
#[derive(Debug, Clone, Deserialize)]
pub struct ScaleSettings {
    /// One sentence for the report: what this scale is.
    pub note: String,
    /// Seeds in place of the table's.
    pub seeds: Option<Vec<u64>>,
    /// The only columns that this scale can run; without it, all.
    pub columns: Option<Vec<String>>,
    /// The only rows that it can run; without it, all.
    pub rows: Option<Vec<String>>,
    /// Why the others are not run; required with `columns` or `rows`.
    pub not_run: Option<String>,
    /// Everything else: settings of the cells.
    #[serde(flatten)]
    pub settings: toml::Table,
}

/// A row of a table or a line of a figure: usually a method.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The name, as the paper prints it.
    pub name: String,
    /// Settings of the row's cells.
    #[serde(default)]
    pub set: toml::Table,
}

/// A column of a table or a point on a figure's x axis.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// The name, as the paper prints it.
    pub name: String,
    /// The unit of the values.
    pub unit: Unit,
    /// Which quantity is measured; the words are the experiment's.
    pub measure: String,
    /// Position on the x axis; figures only.
    pub x: Option<f64>,
    /// Settings of the column's cells.
    #[serde(default)]
    pub set: toml::Table,
}

/// The unit of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// 0 to 100.
    Percent,
    /// A difference of two shares in percent.
    Points,
    /// Wall-clock seconds.
    Seconds,
    /// Gradient passes.
    Passes,
    /// A plain number.
    Number,
}

impl Unit {
    /// A value with the digits that suit its unit.
    pub fn format(self, value: f64) -> String {
        match self {
            Self::Percent | Self::Points | Self::Seconds => format!("{value:.2}"),
            Self::Passes | Self::Number => {
                let text = format!("{value:.3}");
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            }
        }
    }
}

/// One way to read what the paper leaves open.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// Short name; the default reading is called "default".
    pub name: String,
    /// Settings of the reading's cells.
    #[serde(default)]
    pub set: toml::Table,
    /// The rows it concerns; empty means all.
    #[serde(default)]
    pub rows: Vec<String>,
    /// The columns it concerns; empty means all.
    #[serde(default)]
    pub columns: Vec<String>,
    /// The scales it is run at; empty means all.
    #[serde(default)]
    pub scales: Vec<Scale>,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            name: "default".into(),
            set: toml::Table::new(),
            rows: Vec::new(),
            columns: Vec::new(),
            scales: Vec::new(),
        }
    }
}

impl Reading {
    fn concerns(&self, row: &Row, column: &Column, scale: Scale) -> bool {
        let named = |list: &[String], name: &String| list.is_empty() || list.contains(name);
        named(&self.rows, &row.name)
            && named(&self.columns, &column.name)
            && (self.scales.is_empty() || self.scales.contains(&scale))
    }
}

/// One printed cell of the paper.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Printed {
    paper: String,
    table: String,
    /// The row's name.
    pub row: String,
    /// The column's name.
    pub column: String,
    /// The number as printed; empty where it cannot be recovered from the paper.
    #[serde(rename = "value")]
    pub text: String,
    /// The printed deviation.
    pub std: Option<f64>,
    /// Why the cell is suspect, or where it was recovered; usually empty.
    pub note: String,
}

impl Printed {
    /// The printed number.
    pub fn value(&self) -> Option<f64> {
        self.text.parse().ok()
    }
}

/// Which cells of a table to take; an empty list means all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Names of rows.
    pub rows: Vec<String>,
    /// Names of columns.
    pub columns: Vec<String>,
    /// Names of readings.
    pub readings: Vec<String>,
    /// Seeds; empty means those of the scale.
    pub seeds: Vec<u64>,
}

impl Table {
    /// Reads `path` (TOML) and the CSV of the same name beside it.
    ///
    /// # Errors
    /// If a file cannot be read or [`Table::parse`] refuses it.
    pub fn load(path: &Path) -> Result<Self> {
        let csv_path = path.with_extension("csv");
        let toml = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let csv = fs::read_to_string(&csv_path).map_err(Error::io("read", &csv_path))?;
        Self::parse(&toml, &csv, path)
    }

    /// Reads every `*.toml` of a folder, in the order of their names.
    ///
    /// # Errors
    /// If the folder or one of its tables cannot be read.
    pub fn load_dir(dir: &Path) -> Result<Vec<Self>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
            let path = entry.map_err(Error::io("read", dir))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "toml")
            {
                paths.push(path);
            }
        }
        paths.sort();
        paths.iter().map(|path| Self::load(path)).collect()
    }

    /// Reads a table from the text of its TOML and CSV; `file` is used in messages.
    ///
    /// # Errors
    /// If the TOML has an unknown key, a name is used twice or not at all, a printed cell has no
    /// row or column, a claim names a cell that does not exist, or a figure lacks its axes.
    pub fn parse(toml: &str, csv: &str, file: &Path) -> Result<Self> {
        let mut table: Self = toml::from_str(toml).map_err(|source| Error::Toml {
            path: file.to_path_buf(),
            source: Box::new(source),
        })?;
        table.file = file.to_path_buf();
        table.readings.insert(0, Reading::default());
        table.validate()?;
        table.read_printed(csv)?;
        Ok(table)
    }

    fn read_printed(&mut self, text: &str) -> Result<()> {
        let file = self.file.with_extension("csv");
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let mut seen = BTreeSet::new();
        let mut printed = Vec::new();
        for line in reader.deserialize::<Printed>() {
            let cell = line.map_err(|source| Error::Csv {
                path: file.clone(),
                source,
            })?;
            let at = format!("row \"{}\", column \"{}\"", cell.row, cell.column);
            if cell.paper != self.paper || cell.table != self.id {
                let problem = format!(
                    "{at} belongs to {} {}, not to {} {}",
                    cell.paper, cell.table, self.paper, self.id
                );
                return Err(Error::table(&file, problem));
            }
            self.find_row(&file, &cell.row)?;
            self.find_column(&file, &cell.column)?;
            if !cell.text.is_empty() && cell.value().is_none_or(|value| !value.is_finite()) {
                let problem = format!("{at}: \"{}\" is not a number", cell.text);
                return Err(Error::table(&file, problem));
            }
            if !seen.insert((cell.row.clone(), cell.column.clone())) {
                return Err(Error::table(&file, format!("{at} is printed twice")));
            }
            printed.push(cell);
        }
        self.printed = printed;
        Ok(())
    }

    fn validate(&self) -> Result<()> {
        let fail = |problem: String| Err(Error::table(&self.file, problem));
        let stem = self
            .file
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        if stem != self.id {
            return fail(format!(
                "id = \"{}\" must be the file's name, \"{stem}\"",
                self.id
            ));
        }
        if !(self.tolerance >= 0.0 && self.tolerance.is_finite()) {
            return fail(format!(
                "tolerance = {} must be a number >= 0",
                self.tolerance
            ));
        }
        unique(&self.file, "row", self.rows.iter().map(|row| &row.name))?;
        unique(
            &self.file,
            "column",
            self.columns.iter().map(|column| &column.name),
        )?;
        unique(
            &self.file,
            "reading",
            self.readings.iter().map(|reading| &reading.name),
        )?;
        match self.kind {
            Kind::Table if self.plot.is_some() => return fail("a table has no [plot]".into()),
            Kind::Figure if self.plot.is_none() => return fail("a figure needs a [plot]".into()),
            _ => {}
        }
        for column in &self.columns {
            match (self.kind, column.x) {
                (Kind::Table, Some(_)) => {
                    return fail(format!("column \"{}\": x is for figures only", column.name));
                }
                (Kind::Figure, x) if x.is_none_or(|x| !x.is_finite()) => {
                    return fail(format!("column \"{}\" of a figure needs x", column.name));
                }
                _ => {}
            }
        }
        for scale in Scale::ALL {
            let settings = self.at(scale);
            if self.seeds(scale).is_empty() {
                return fail(format!("scale {scale}: seeds is empty"));
            }
            let only = settings.columns.is_some() || settings.rows.is_some();
            if only != settings.not_run.is_some() {
                return fail(format!(
                    "scale {scale}: `columns` or `rows` (what it can run) and `not_run` (why not \
                     the others) go together"
                ));
            }
            for name in settings.rows.iter().flatten() {
                self.find_row(&self.file, name)?;
            }
            for name in settings.columns.iter().flatten() {
                self.find_column(&self.file, name)?;
            }
        }
        for reading in &self.readings {
            reading
                .rows
                .iter()
                .try_for_each(|name| self.find_row(&self.file, name).map(drop))?;
            for name in &reading.columns {
                self.find_column(&self.file, name)?;
            }
        }
        for claim in &self.claims {
            for place in [Some(&claim.left), claim.right.as_ref()]
                .into_iter()
                .flatten()
            {
                self.find_row(&self.file, &place.row)?;
                self.find_column(&self.file, &place.column)?;
            }
        }
        Ok(())
    }

    fn find_row(&self, place: &Path, name: &str) -> Result<&Row> {
        self.rows
            .iter()
            .find(|row| row.name == name)
            .ok_or_else(|| {
                let known = self.rows.iter().map(|row| row.name.as_str());
                Error::unknown(place.display().to_string(), "row", name, known)
            })
    }

    fn find_column(&self, place: &Path, name: &str) -> Result<&Column> {
        self.columns
            .iter()
            .find(|column| column.name == name)
            .ok_or_else(|| {
                let known = self.columns.iter().map(|column| column.name.as_str());
                Error::unknown(place.display().to_string(), "column", name, known)
            })
    }

    /// What a scale changes.
    pub fn at(&self, scale: Scale) -> &ScaleSettings {
        match scale {
            Scale::Smoke => &self.scale.smoke,
            Scale::Desk => &self.scale.desk,
            Scale::Paper => &self.scale.paper,
        }
    }

    /// The seeds of a scale.
    pub fn seeds(&self, scale: Scale) -> &[u64] {
        self.at(scale).seeds.as_deref().unwrap_or(&self.seeds)
    }

    /// Whether the scale can run the column.
    pub fn runs(&self, column: &Column, scale: Scale) -> bool {
        let columns = self.at(scale).columns.as_ref();
        columns.is_none_or(|columns| columns.contains(&column.name))
    }

    /// Whether the scale can run the row.
    pub fn runs_row(&self, row: &Row, scale: Scale) -> bool {
        let rows = self.at(scale).rows.as_ref();
        rows.is_none_or(|rows| rows.contains(&row.name))
    }

    /// What the paper printed in a cell, if it printed it.
    pub fn printed(&self, row: &Row, column: &Column) -> Option<&Printed> {
        self.printed
            .iter()
            .find(|cell| cell.row == row.name && cell.column == column.name)
    }

    /// The cells to run at a scale, row by row, so that cells of one trained model follow each
    /// other.
    ///
    /// # Errors
    /// If the selection names a row, column or reading that the table does not have.
    pub fn cells(&self, scale: Scale, selection: &Selection) -> Result<Vec<Cell<'_>>> {
        let place = || format!("{} {}", self.paper, self.id);
        for name in &selection.rows {
            self.find_row(Path::new(&place()), name)?;
        }
        for name in &selection.columns {
            self.find_column(Path::new(&place()), name)?;
        }
        for name in &selection.readings {
            if !self.readings.iter().any(|reading| &reading.name == name) {
                let known = self.readings.iter().map(|reading| reading.name.as_str());
                return Err(Error::unknown(place(), "reading", name, known));
            }
        }
        let chosen = |list: &[String], name: &String| list.is_empty() || list.contains(name);
        let seeds = match selection.seeds.as_slice() {
            [] => self.seeds(scale),
            seeds => seeds,
        };
        let mut cells = Vec::new();
        for &seed in seeds {
            for row in self
                .rows
                .iter()
                .filter(|row| chosen(&selection.rows, &row.name) && self.runs_row(row, scale))
            {
                for reading in self
                    .readings
                    .iter()
                    .filter(|it| chosen(&selection.readings, &it.name))
                {
                    for column in self.columns.iter().filter(|column| {
                        chosen(&selection.columns, &column.name)
                            && self.runs(column, scale)
                            && reading.concerns(row, column, scale)
                    }) {
                        cells.push(Cell {
                            table: self,
                            row,
                            column,
                            reading,
                            scale,
                            seed,
                        });
                    }
                }
            }
        }
        Ok(cells)
    }
}

fn unique<'a>(
    file: &Path,
    what: &str,
    names: impl ExactSizeIterator<Item = &'a String>,
) -> Result<()> {
    if names.len() == 0 {
        return Err(Error::table(file, format!("no [[{what}]]")));
    }
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Error::table(
                file,
                format!("two {what}s are called \"{name}\""),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const TOML: &str = r#"
paper = "demo"
id = "table1"
title = "Table I"
kind = "table"
revision = 1
seeds = [0, 1]
tolerance = 1.0

[settings]
batch = 64
attack = { kind = "bim", steps = 10 }

[scale.smoke]
note = "Two epochs."
seeds = [0]
epochs = 2
columns = ["Clean", "BIM(30)"]
not_run = "takes too long"

[scale.desk]
note = "Twenty epochs."
epochs = 20

[scale.paper]
note = "As printed."
epochs = 60

[[row]]
name = "Plain"
set = { method = "vanilla" }

[[row]]
name = "Hard, robust"
set = { method = "bim", attack = { steps = 30 } }

[[column]]
name = "Clean"
unit = "percent"
measure = "accuracy"
set = { eps = "0.3" }

[[column]]
name = "BIM(30)"
unit = "percent"
measure = "accuracy"
set = { attack = { steps = 40 } }

[[column]]
name = "Time"
unit = "seconds"
measure = "seconds-per-epoch"

[[reading]]
name = "other"
set = { batch = 32 }
rows = ["Plain"]

[[claim]]
says = "Training helps."
left = { row = "Hard, robust", column = "BIM(30)" }
op = ">="
right = { row = "Plain", column = "BIM(30)" }
times = 2.0
"#;

    pub(crate) const CSV: &str = "paper,table,row,column,value,std,note
demo,table1,Plain,Clean,99.10,,
demo,table1,\"Hard, robust\",Clean,98.6,0.2,suspect: see text
demo,table1,Plain,BIM(30),2.13,,
";

    pub(crate) fn demo() -> Table {
        Table::parse(TOML, CSV, Path::new("table1.toml")).unwrap()
    }

    fn refuse(from: &str, to: &str) -> String {
        assert!(TOML.contains(from), "the example no longer contains {from}");
        Table::parse(&TOML.replacen(from, to, 1), CSV, Path::new("table1.toml"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn cells_are_rows_by_columns_by_readings_by_seeds() {
        let table = demo();
        let all = Selection::default();
        // Two seeds, two rows of three columns, and one row again for the other reading.
        assert_eq!(
            table.cells(Scale::Desk, &all).unwrap().len(),
            2 * (2 * 3 + 3)
        );
        // One seed and two columns at smoke scale.
        assert_eq!(table.cells(Scale::Smoke, &all).unwrap().len(), 2 * 2 + 2);
        let one = Selection {
            rows: vec!["Plain".into()],
            columns: vec!["Time".into()],
            readings: vec!["default".into()],
            seeds: vec![7],
        };
        let cells = table.cells(Scale::Paper, &one).unwrap();
        assert_eq!(cells.len(), 1);
        assert_eq!(cells[0].seed, 7);
    }

    #[test]
    fn unknown_keys_and_names_are_named_with_the_known_ones() {
        let message = refuse("tolerance = 1.0", "tolerence = 1.0");
        assert!(
            message.contains("tolerence") && message.contains("`tolerance`"),
            "{message}"
        );
        let message = refuse("unit = \"seconds\"", "unit = \"hours\"");
        assert!(
            message.contains("hours") && message.contains("passes"),
            "{message}"
        );
        let message = refuse("[scale.desk]", "[scale.dekst]");
        assert!(
            message.contains("dekst") && message.contains("desk"),
            "{message}"
        );
        let message = refuse("columns = [\"Clean\"", "columns = [\"Klean\"");
        assert!(
            message.contains("\"Klean\"; known: Clean, BIM(30), Time"),
            "{message}"
        );
        let message = refuse("right = { row = \"Plain\"", "right = { row = \"Plane\"");
        assert!(
            message.contains("row \"Plane\"; known: Plain, Hard, robust"),
            "{message}"
        );
        let table = demo();
        let selection = Selection {
            rows: vec!["None".into()],
            ..Selection::default()
        };
        let message = table
            .cells(Scale::Smoke, &selection)
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "demo table1: unknown row \"None\"; known: Plain, Hard, robust"
        );
    }

    #[test]
    fn a_scale_may_leave_out_rows() {
        let less = TOML.replacen(
            "columns = [\"Clean\"",
            "rows = [\"Plain\"]\ncolumns = [\"Clean\"",
            1,
        );
        let table = Table::parse(&less, CSV, Path::new("table1.toml")).unwrap();
        let cells = table.cells(Scale::Smoke, &Selection::default()).unwrap();
        assert_eq!(cells.len(), 2 + 2);
        assert!(cells.iter().all(|cell| cell.row.name == "Plain"));
        let message = refuse(
            "columns = [\"Clean\"",
            "rows = [\"Plane\"]\ncolumns = [\"Clean\"",
        );
        assert!(message.contains("row \"Plane\"; known: Plain"), "{message}");
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(refuse("id = \"table1\"", "id = \"table2\"").contains("file's name"));
        assert!(refuse("name = \"Time\"", "name = \"Clean\"").contains("two columns"));
        assert!(refuse("kind = \"table\"", "kind = \"figure\"").contains("[plot]"));
        assert!(refuse("not_run = \"takes too long\"", "").contains("go together"));
        assert!(refuse("seeds = [0]", "seeds = []").contains("seeds is empty"));
    }

    #[test]
    fn printed_cells_need_a_row_a_column_and_a_number() {
        let with = |line: &str| {
            Table::parse(TOML, &format!("{CSV}{line}\n"), Path::new("table1.toml"))
                .unwrap_err()
                .to_string()
        };
        assert!(with("demo,table1,Plain,Speed,1,,").contains("unknown column \"Speed\""));
        assert!(with("demo,table1,Plane,Clean,1,,").contains("unknown row \"Plane\""));
        assert!(with("demo,table1,Plain,Time,fast,,").contains("\"fast\" is not a number"));
        assert!(with("demo,table1,Plain,Clean,1,,").contains("printed twice"));
        assert!(with("demo,table2,Plain,Time,1,,").contains("belongs to demo table2"));
        assert!(with("demo,table1,Plain,Time").contains("table1.csv"));
        let table = demo();
        let cell = table.printed(&table.rows[1], &table.columns[0]).unwrap();
        assert_eq!(
            (cell.text.as_str(), cell.value(), cell.std),
            ("98.6", Some(98.6), Some(0.2))
        );
        assert!(table.printed(&table.rows[0], &table.columns[2]).is_none());
    }
}
