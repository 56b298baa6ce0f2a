//! A paper's reproduction as a page of theriac-report: the same pages as an evaluation's.

use std::collections::BTreeMap;

use anyhow::Result;
use theriac_report::{
    Axis, Block, Cell, Curve, Head, Kind, Line, Mark, Page, Section, Table as Grid, Verdict,
};
use theriac_tables::{
    Column, Judgement, Kind as TableKind, Results, Row, Scale, Store, Summary, Table, Unit, ours,
};

/// The page of one paper at one scale.
pub(crate) fn page(paper: &str, tables: &[Table], store: &Store, scale: Scale) -> Result<Page> {
    let mut sections = Vec::new();
    let (mut measured, mut failed) = (0, 0);
    let (mut hold, mut judged) = (0, 0);
    for table in tables.iter().filter(|table| table.paper == paper) {
        let results = Results::load(store, table, scale)?;
        let counts = results.counts();
        measured += counts.0;
        failed += counts.1;
        for claim in &table.claims {
            match claim.judge(&results) {
                Judgement::Holds { .. } => (hold, judged) = (hold + 1, judged + 1),
                Judgement::Fails { .. } => judged += 1,
                _ => {}
            }
        }
        let section = Section::new(&table.title, blocks(&results));
        sections.push(section.with_id(&table.id));
    }
    Ok(Page {
        title: format!("{paper}, {scale} scale"),
        subtitle: subtitle(scale).to_owned(),
        verdict: Some(verdict((measured, failed), (hold, judged), scale)),
        sections,
    })
}

fn subtitle(scale: Scale) -> &'static str {
    match scale {
        Scale::Paper => "Each cell is paper / ours.",
        _ => {
            "Each cell is paper / ours. The paper's numbers were not made at this scale: they are \
             there to compare orders and gaps, not digits."
        }
    }
}

fn verdict(
    (measured, failed): (usize, usize),
    (hold, judged): (usize, usize),
    scale: Scale,
) -> Verdict {
    let kind = match (failed, judged) {
        (0, 0) => Kind::Neutral,
        (0, judged) if judged == hold => Kind::Good,
        (0, _) => Kind::Doubtful,
        _ => Kind::Bad,
    };
    let headline = match judged {
        0 => format!("{measured} cells measured"),
        _ => format!("{hold} of {judged} claims hold"),
    };
    let text = format!(
        "{measured} cells measured at {scale} scale, {failed} failed. A claim is a sentence of the \
         paper about its table, judged by our numbers."
    );
    Verdict::new(kind, headline, text)
}

fn blocks(results: &Results<'_>) -> Vec<Block> {
    let table = results.table;
    let note = &table.at(results.scale).note;
    let mut blocks = Vec::new();
    if !note.is_empty() {
        blocks.push(Block::Text(note.clone()));
    }
    if table.kind == TableKind::Figure {
        blocks.extend(curve(results));
    }
    blocks.push(Block::Table(grid(results)));
    blocks.extend(claims(results));
    blocks
}

/// A line for each row that was measured, crosses where the paper prints a number.
fn curve(results: &Results<'_>) -> Option<Block> {
    let table = results.table;
    let plot = table.plot.as_ref()?;
    let mut lines = Vec::new();
    let mut points = Vec::new();
    for row in &table.rows {
        let mut ours: Vec<(f64, f64)> = table
            .columns
            .iter()
            .filter_map(|column| Some((column.x?, mean(results, row, column)?)))
            .collect();
        ours.sort_by(|a, b| a.0.total_cmp(&b.0));
        if !ours.is_empty() {
            lines.push(Line::new(&row.name, ours));
        }
        for column in &table.columns {
            let printed = table.printed(row, column).and_then(|cell| cell.value());
            if let (Some(x), Some(y)) = (column.x, printed) {
                points.push(Mark::new(format!("{}, printed", row.name), x, y));
            }
        }
    }
    let mut y = Axis::new(&plot.y_label, "");
    if table
        .columns
        .iter()
        .all(|column| matches!(column.unit, Unit::Percent))
    {
        y = y.between(0.0, 100.0);
    }
    (!lines.is_empty() || !points.is_empty()).then(|| {
        Block::Curve(Curve {
            caption: plot.title.clone(),
            x: Axis::new(&plot.x_label, ""),
            y,
            lines,
            points,
        })
    })
}

fn mean(results: &Results<'_>, row: &Row, column: &Column) -> Option<f64> {
    match results.summary(row, column, &results.table.readings[0]) {
        Summary::Measured(statistics) => Some(statistics.mean),
        _ => None,
    }
}

fn grid(results: &Results<'_>) -> Grid {
    let table = results.table;
    let mut heads = vec![Head::text("")];
    if table.readings.len() > 1 {
        heads.push(Head::text("reading"));
    }
    heads.extend(
        table
            .columns
            .iter()
            .map(|column| Head::number(&column.name)),
    );
    let mut rows = Vec::new();
    let mut notes = BTreeMap::new();
    for reading in &table.readings {
        for row in &table.rows {
            let mut cells = vec![Cell::new(&row.name)];
            if table.readings.len() > 1 {
                cells.push(Cell::new(&reading.name));
            }
            for column in &table.columns {
                let printed = table.printed(row, column);
                let text = match printed {
                    None => "–".to_owned(),
                    Some(cell) if cell.text.is_empty() => "?".to_owned(),
                    Some(cell) => match cell.std {
                        Some(std) => format!("{} ± {std}", cell.text),
                        None => cell.text.clone(),
                    },
                };
                if let Some(cell) = printed.filter(|cell| !cell.note.is_empty()) {
                    notes.insert(format!("{}, {}", row.name, column.name), cell.note.clone());
                }
                let summary = results.summary(row, column, reading);
                let mut cell = Cell::new(format!("{text} / {}", ours(&summary, column)));
                match &summary {
                    Summary::Failed(reason) => {
                        notes.insert(format!("{}, {}", row.name, column.name), reason.clone());
                        cell = cell.of_kind(Kind::Bad);
                    }
                    Summary::Measured(it) => match it.verdict.as_deref() {
                        Some("questionable") => cell = cell.of_kind(Kind::Doubtful),
                        Some("invalid") => cell = cell.of_kind(Kind::Bad),
                        _ => {}
                    },
                    Summary::NotRun => {}
                }
                cells.push(cell);
            }
            rows.push(cells);
        }
    }
    let notes = notes
        .iter()
        .map(|(place, note)| format!("{place}: {note}."));
    Grid {
        caption: table.title.clone(),
        heads,
        rows,
        note: notes.collect::<Vec<_>>().join(" "),
    }
}

fn claims(results: &Results<'_>) -> Option<Block> {
    let table = results.table;
    let judged = table
        .claims
        .iter()
        .map(|claim| (claim, claim.judge(results)));
    let judged: Vec<_> = judged
        .filter(|(_, judgement)| *judgement != Judgement::NotJudged)
        .collect();
    let rows = judged.iter().map(|(claim, judgement)| {
        let kind = match judgement {
            Judgement::Holds { .. } => Kind::Good,
            Judgement::Fails { .. } => Kind::Bad,
            _ => Kind::Neutral,
        };
        vec![
            Cell::new(&claim.says),
            Cell::new(judgement.to_string()).of_kind(kind),
        ]
    });
    let rows: Vec<_> = rows.collect();
    (!rows.is_empty()).then(|| {
        Block::Table(Grid {
            caption: "Claims".to_owned(),
            heads: vec![Head::text("claim"), Head::text("outcome")],
            rows,
            note: String::new(),
        })
    })
}
