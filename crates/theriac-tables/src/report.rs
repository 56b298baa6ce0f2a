//! Reports in Markdown: one page for each paper and scale.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::results::{Results, Summary};
use crate::store::write_atomic;
use crate::text::{not_judged, ours};
use crate::{
    Claim, Column, Error, Judgement, Kind, Reading, Result, Row, Scale, Store, Table, plot,
};

/// One page: a paper at a scale, with its drawings.
#[derive(Debug, Clone)]
pub struct Page {
    /// The paper's short name.
    pub paper: String,
    /// The page's text.
    pub markdown: String,
    /// The drawings: path relative to the page, SVG.
    pub drawings: Vec<(String, String)>,
    /// Cells measured, cells failed, claims that hold, claims judged.
    counts: [usize; 4],
}

/// Writes `index.md`, a page for each paper and its drawings, and returns the index's path.
///
/// # Errors
/// If the store cannot be read, a drawing fails, or a file cannot be written.
pub fn write(dir: &Path, tables: &[Table], store: &Store, scale: Scale) -> Result<PathBuf> {
    let mut papers: Vec<&str> = tables.iter().map(|table| table.paper.as_str()).collect();
    papers.dedup();
    let mut index = format!(
        "# Reproductions at {scale} scale\n\n| paper | cells measured | cells failed | claims that \
         hold |\n| --- | --- | --- | --- |\n"
    );
    for paper in papers {
        let page = page(paper, tables, store, scale)?;
        page.write(dir)?;
        let [measured, failed, hold, judged] = page.counts;
        let _ = writeln!(
            index,
            "| [{paper}]({paper}.md) | {measured} | {failed} | {hold} of {judged} judged |"
        );
    }
    let path = dir.join("index.md");
    write_atomic(&path, index.as_bytes())?;
    Ok(path)
}

/// The page of one paper.
///
/// # Errors
/// If the store cannot be read or a drawing fails.
pub fn page(paper: &str, tables: &[Table], store: &Store, scale: Scale) -> Result<Page> {
    let mut page = Page {
        paper: paper.into(),
        markdown: format!("# {paper}, {scale} scale\n\n"),
        drawings: Vec::new(),
        counts: [0; 4],
    };
    page.markdown += "Each cell is *paper / ours*. Ours is the mean ± sample deviation over the \
                      seeds, or over repeated evaluations of one randomised network, else the value \
                      with its 95 % interval. A dash means that the paper prints nothing there.";
    if scale == Scale::Paper {
        page.markdown += " ✓ marks agreement within the table's tolerance.\n";
    } else {
        page.markdown += " The paper's numbers were not made at this scale: they are there to compare orders \
             and gaps, not digits.\n";
    }
    for table in tables.iter().filter(|table| table.paper == paper) {
        let results = Results::load(store, table, scale)?;
        page.add(&results)?;
    }
    Ok(page)
}

impl Page {
    /// Writes the page and its drawings into a folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join(format!("{}.md", self.paper));
        fs::create_dir_all(dir).map_err(Error::io("make", dir))?;
        for (name, svg) in &self.drawings {
            let path = dir.join(name);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
            }
            write_atomic(&path, svg.as_bytes())?;
        }
        write_atomic(&path, self.markdown.as_bytes())?;
        Ok(path)
    }

    fn add(&mut self, results: &Results<'_>) -> Result<()> {
        let table = results.table;
        let (measured, failed) = results.counts();
        self.counts[0] += measured;
        self.counts[1] += failed;

        let _ = write!(
            self.markdown,
            "\n## {}\n\n{}\n\n",
            table.title,
            note(results)
        );
        if table.kind == Kind::Figure
            && let Some(svg) = plot::svg(results)?
        {
            let name = format!("{}/{}-{}.svg", self.paper, table.id, results.scale);
            let alt = table.plot.as_ref().map_or(&table.title, |plot| &plot.title);
            let _ = write!(self.markdown, "![{}]({name})\n\n", escape(alt));
            self.drawings.push((name, svg));
        }
        if measured + failed == 0 && table.printed.is_empty() {
            self.markdown += "Nothing was measured.\n";
            return Ok(());
        }
        let mut notes = Notes {
            // Pages of several scales may be joined.
            prefix: format!("{}-{}", results.scale, table.id),
            ..Notes::default()
        };
        for (index, reading) in table.readings.iter().enumerate() {
            if index > 0 {
                let _ = write!(self.markdown, "Reading \"{}\":\n\n", reading.name);
            }
            self.markdown += &grid(results, reading, &mut notes);
        }
        self.markdown += &notes.text();
        self.markdown += &measured_with(results);
        self.add_claims(results);
        self.markdown += &provenance(results);
        Ok(())
    }

    fn add_claims(&mut self, results: &Results<'_>) {
        let table = results.table;
        if table.claims.is_empty() {
            return;
        }
        let judged: Vec<(&Claim, Judgement)> = table
            .claims
            .iter()
            .map(|claim| (claim, claim.judge(results)))
            .filter(|(_, judgement)| *judgement != Judgement::NotJudged)
            .collect();
        if !judged.is_empty() {
            let _ = writeln!(
                self.markdown,
                "Claims, judged at {} scale:\n",
                results.scale
            );
            self.markdown += "| claim | test | outcome |\n| --- | --- | --- |\n";
        }
        for (claim, judgement) in &judged {
            self.counts[2] += usize::from(matches!(judgement, Judgement::Holds { .. }));
            self.counts[3] += usize::from(*judgement != Judgement::NotRun);
            let left = format!("({}, {})", claim.left.row, claim.left.column);
            let test = format!("{left} {} {}", claim.op, claim.right_side());
            let _ = writeln!(
                self.markdown,
                "| {} | {} | {judgement} |",
                escape(&claim.says),
                escape(&test)
            );
        }
        if !judged.is_empty() {
            self.markdown.push('\n');
        }
        if let Some(sentence) = not_judged(results) {
            let _ = writeln!(self.markdown, "{sentence}\n");
        }
    }
}

/// What the scale is, and what it leaves out.
fn note(results: &Results<'_>) -> String {
    let settings = results.table.at(results.scale);
    let mut note = settings.note.clone();
    if let Some(reason) = &settings.not_run {
        let (table, scale) = (results.table, results.scale);
        let columns = table.columns.iter();
        let columns = columns.filter(|column| !table.runs(column, scale));
        let rows = table.rows.iter().filter(|row| !table.runs_row(row, scale));
        let left_out: Vec<&str> = columns
            .map(|column| column.name.as_str())
            .chain(rows.map(|row| row.name.as_str()))
            .collect();
        let _ = write!(note, " Not run at {scale} scale ({reason})");
        if left_out.len() < table.columns.len() {
            let _ = write!(note, ": {}", escape(&left_out.join(", ")));
        }
        note.push('.');
    }
    note
}

/// The cells as a Markdown table. Wide papers' tables stay as printed: rows are rows.
fn grid(results: &Results<'_>, reading: &Reading, notes: &mut Notes) -> String {
    let table = results.table;
    let mut out = String::from("| |");
    for column in &table.columns {
        let _ = write!(out, " {} |", escape(&column.name));
    }
    out += "\n| --- |";
    out += &" --- |".repeat(table.columns.len());
    out.push('\n');
    for row in &table.rows {
        let _ = write!(out, "| {} |", escape(&row.name));
        for column in &table.columns {
            let _ = write!(out, " {} |", cell(results, row, column, reading, notes));
        }
        out.push('\n');
    }
    out.push('\n');
    out
}

fn cell(
    results: &Results<'_>,
    row: &Row,
    column: &Column,
    reading: &Reading,
    notes: &mut Notes,
) -> String {
    let table = results.table;
    let printed = table.printed(row, column);
    let mut out = match printed {
        None => "–".to_owned(),
        Some(cell) if cell.text.is_empty() => "?".to_owned(),
        Some(cell) => match cell.std {
            Some(std) => format!("{} ± {std}", cell.text),
            None => cell.text.clone(),
        },
    };
    if let Some(cell) = printed.filter(|cell| !cell.note.is_empty()) {
        out += &notes.mark(format!("Printed cell: {}", cell.note));
    }
    let summary = results.summary(row, column, reading);
    let _ = write!(out, " / {}", ours(&summary, column));
    match &summary {
        Summary::NotRun => {}
        Summary::Failed(reason) => out += &notes.mark(format!("failed: {reason}")),
        Summary::Measured(it) => {
            let close = printed
                .and_then(|cell| cell.value())
                .is_some_and(|value| (value - it.mean).abs() <= table.tolerance);
            if close && results.scale == Scale::Paper {
                out += " ✓";
            }
            if let Some(verdict) = it
                .verdict
                .as_deref()
                .filter(|&verdict| verdict != "reliable")
            {
                let _ = write!(out, " *{verdict}*");
            }
            for check in &it.failed_checks {
                out += &notes.mark(format!("Check \"{}\" failed: {}", check.name, check.detail));
            }
            let wanted = table.seeds(results.scale);
            if wanted.iter().any(|seed| !it.seeds.contains(seed)) {
                out += &notes.mark(format!(
                    "Seeds {} only, of {}.",
                    list(&it.seeds),
                    list(wanted)
                ));
            }
        }
    }
    out
}

/// Footnotes of one table; equal ones share a number.
#[derive(Default)]
struct Notes {
    prefix: String,
    list: Vec<String>,
}

impl Notes {
    fn mark(&mut self, note: String) -> String {
        let index = self
            .list
            .iter()
            .position(|it| *it == note)
            .unwrap_or_else(|| {
                self.list.push(note);
                self.list.len() - 1
            });
        format!("[^{}-{}]", self.prefix, index + 1)
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for (index, note) in self.list.iter().enumerate() {
            let note = note.replace('\n', " ");
            let _ = writeln!(out, "[^{}-{}]: {}", self.prefix, index + 1, escape(&note));
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out
    }
}

/// Threat model, attack, n and verdict of each column: a robust accuracy never travels alone.
fn measured_with(results: &Results<'_>) -> String {
    let table = results.table;
    let mut columns: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (index, column) in table.columns.iter().enumerate() {
        for row in &table.rows {
            let Summary::Measured(it) = results.summary(row, column, &table.readings[0]) else {
                continue;
            };
            let text = format!(
                "| {} | {} | {} |",
                escape(it.attack.as_deref().unwrap_or("none")),
                escape(it.threat_model.as_deref().unwrap_or("none")),
                it.n
            );
            let texts = columns.entry(index).or_default();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
    }
    if columns.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "How ours were measured:\n\n| column | attack | threat model | n |\n\
         | --- | --- | --- | --- |\n",
    );
    for (index, texts) in columns {
        for text in texts {
            let _ = writeln!(out, "| {} {text}", escape(&table.columns[index].name));
        }
    }
    out.push('\n');
    out
}

/// Seeds, time, machine and commit.
fn provenance(results: &Results<'_>) -> String {
    let (measured, failed) = results.counts();
    if measured + failed == 0 {
        return "Nothing was measured.\n".into();
    }
    let table = results.table;
    let mut out = String::from("Seconds for each row's cells, with what had to be trained first: ");
    let rows: Vec<String> = table
        .rows
        .iter()
        .map(|row| {
            let seconds: Vec<String> = table
                .columns
                .iter()
                .filter_map(
                    |column| match results.summary(row, column, &table.readings[0]) {
                        Summary::Measured(it) => Some(format!("{:.1}", it.seconds)),
                        _ => None,
                    },
                )
                .collect();
            (row, seconds)
        })
        .filter(|(_, seconds)| !seconds.is_empty())
        .map(|(row, seconds)| format!("{} {}", escape(&row.name), seconds.join(" + ")))
        .collect();
    let join = |parts: Vec<String>| {
        if parts.is_empty() {
            "none".into()
        } else {
            parts.join("; ")
        }
    };
    let _ = writeln!(out, "{}.\n", join(rows));
    let seeds = results.seeds().iter().map(u64::to_string).collect();
    let machines = results.machines().iter().map(ToString::to_string).collect();
    let commits = results.commits().into_iter().map(str::to_owned).collect();
    let _ = writeln!(
        out,
        "Seeds: {}. Revision {}. Machine: {}. Commit: {}.",
        join(seeds),
        table.revision,
        join(machines),
        join(commits)
    );
    out
}

fn list(seeds: &[u64]) -> String {
    seeds
        .iter()
        .map(u64::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Text that Markdown leaves alone inside a table.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if matches!(letter, '|' | '*' | '_' | '[' | ']' | '<' | '\\' | '`') {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{record, value};
    use crate::table::tests::demo;
    use crate::{Check, CheckOutcome, Measured, Outcome, Selection};

    #[test]
    fn a_page_holds_what_a_reader_needs_to_believe_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let table = demo();
        let cells = table.cells(Scale::Smoke, &Selection::default()).unwrap();
        let cell = |row: &str, column: &str| {
            cells
                .iter()
                .find(|it| it.row.name == row && it.column.name == column)
                .unwrap()
        };
        store
            .keep(&record(
                cell("Plain", "Clean"),
                Outcome::Measured(Measured {
                    value: 97.25,
                    n: 1000,
                    interval: Some((96.0, 98.0)),
                    seconds: 3.0,
                    threat_model: Some("Linf, epsilon 0.3".into()),
                    attack: Some("BIM(30)".into()),
                    checks: vec![Check {
                        name: "larger epsilon".into(),
                        outcome: CheckOutcome::Failed,
                        detail: "accuracy stays at 40".into(),
                    }],
                    verdict: Some("questionable".into()),
                    ..Measured::default()
                }),
            ))
            .unwrap();
        let robust = "Hard, robust";
        store
            .keep(&record(
                cell(robust, "Clean"),
                Outcome::Failed("no | memory".into()),
            ))
            .unwrap();
        store
            .keep(&record(cell(robust, "BIM(30)"), value(50.0)))
            .unwrap();
        store
            .keep(&record(cell("Plain", "BIM(30)"), value(10.0)))
            .unwrap();

        let index = write(&dir.path().join("report"), &[table], &store, Scale::Smoke).unwrap();
        let index = fs::read_to_string(index).unwrap();
        assert!(
            index.contains("| [demo](demo.md) | 3 | 1 | 1 of 1 judged |"),
            "{index}"
        );
        let page = fs::read_to_string(dir.path().join("report/demo.md")).unwrap();
        for part in [
            "# demo, smoke scale",
            "## Table I",
            "Two epochs. Not run at smoke scale (takes too long): Time.",
            "| | Clean | BIM(30) | Time |",
            "| Plain | 99.10 / 97.25 [96.00, 98.00] *questionable*[^smoke-table1-1] | 2.13 / 10.00 |",
            "| – / not run |",
            "98.6 ± 0.2[^smoke-table1-2] / failed[^smoke-table1-3]",
            "[^smoke-table1-1]: Check \"larger epsilon\" failed: accuracy stays at 40",
            "[^smoke-table1-2]: Printed cell: suspect: see text",
            "[^smoke-table1-3]: failed: no \\| memory",
            "Reading \"other\":",
            "| Clean | BIM(30) | Linf, epsilon 0.3 | 1000 |",
            "| Training helps. | (Hard, robust, BIM(30)) >= 2 x (Plain, BIM(30)) | holds \
             (50.00 against 20.00) |",
            "Seeds: 0. Revision 1. Machine: Abacus, cores: 2, threads: 1, device: cpu. Commit: abc.",
        ] {
            assert!(page.contains(part), "the page lacks: {part}\n{page}");
        }
    }

    #[test]
    fn scales_are_never_mixed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let table = demo();
        let cell = table.cells(Scale::Desk, &Selection::default()).unwrap()[0];
        store.keep(&record(&cell, value(12.34))).unwrap();
        let tables = [table];
        let smoke = page("demo", &tables, &store, Scale::Smoke).unwrap();
        let desk = page("demo", &tables, &store, Scale::Desk).unwrap();
        assert!(!smoke.markdown.contains("12.34") && smoke.markdown.contains("Nothing was"));
        assert!(desk.markdown.contains("12.34"));
        assert!(desk.markdown.contains("Seeds 0 only, of 0, 1."));
    }

    #[test]
    fn a_figure_brings_its_drawing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let table = crate::plot::tests::figure();
        let cell = table.cells(Scale::Smoke, &Selection::default()).unwrap()[0];
        store.keep(&record(&cell, value(12.0))).unwrap();
        let page = page("demo", &[table], &store, Scale::Smoke).unwrap();
        assert!(
            page.markdown
                .contains("![A \\< B & C](demo/table1-smoke.svg)"),
            "{}",
            page.markdown
        );
        page.write(dir.path()).unwrap();
        assert!(dir.path().join("demo/table1-smoke.svg").exists());
    }
}
