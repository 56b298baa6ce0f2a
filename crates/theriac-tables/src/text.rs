//! A table as aligned plain text, for a terminal.

use crate::results::{Results, Summary};
use crate::{Column, Judgement, Reading, Row};

/// Our value as reports write it: mean and deviation, or value and interval.
pub fn ours(summary: &Summary, column: &Column) -> String {
    match summary {
        Summary::NotRun => "not run".into(),
        Summary::Failed(_) => "failed".into(),
        Summary::Measured(it) => {
            let number = |value| column.unit.format(value);
            match (it.std, it.interval) {
                (Some(std), _) => format!("{} ± {}", number(it.mean), number(std)),
                (None, Some((low, high))) => {
                    format!("{} [{}, {}]", number(it.mean), number(low), number(high))
                }
                (None, None) => number(it.mean),
            }
        }
    }
}

/// The table as plain text, each cell as `paper / ours`, or `- / ours` where the paper prints
/// nothing. The paper's columns run downwards: they are more than its rows.
pub fn text(results: &Results<'_>) -> String {
    let table = results.table;
    let decided = &table.readings[0];
    let mut lines = vec![
        std::iter::once("paper / ours".to_owned())
            .chain(table.rows.iter().map(|row| row.name.clone()))
            .collect::<Vec<_>>(),
    ];
    for column in &table.columns {
        let mut line = vec![column.name.clone()];
        line.extend(
            table
                .rows
                .iter()
                .map(|row| cell(results, row, column, decided)),
        );
        lines.push(line);
    }
    let mut out = format!("{} ({} scale)\n", table.title, results.scale);
    if results.counts() != (0, 0) || !table.printed.is_empty() {
        out += &aligned(&lines);
    }
    let settings = table.at(results.scale);
    out += &format!("{}\n", settings.note);
    if let Some(reason) = &settings.not_run {
        out += &format!("Not run at {} scale: {reason}.\n", results.scale);
    }
    for claim in &table.claims {
        match claim.judge(results) {
            Judgement::NotJudged => {}
            judgement => out += &format!("  {judgement}: {}\n", claim.says),
        }
    }
    if let Some(sentence) = not_judged(results) {
        out += &format!("  {sentence}\n");
    }
    out
}

/// How many claims are not meant for the scale, as a sentence.
pub(crate) fn not_judged(results: &Results<'_>) -> Option<String> {
    let claims = results.table.claims.iter();
    match claims
        .filter(|claim| claim.judge(results) == Judgement::NotJudged)
        .count()
    {
        0 => None,
        1 => Some(format!(
            "One claim is not judged at {} scale.",
            results.scale
        )),
        n => Some(format!(
            "{n} claims are not judged at {} scale.",
            results.scale
        )),
    }
}

fn cell(results: &Results<'_>, row: &Row, column: &Column, reading: &Reading) -> String {
    let printed = results
        .table
        .printed(row, column)
        .map_or("-", |cell| match &*cell.text {
            "" => "?",
            text => text,
        });
    let summary = results.summary(row, column, reading);
    let ours = match &summary {
        Summary::Measured(it) if it.std.is_none() => column.unit.format(it.mean),
        _ => ours(&summary, column),
    };
    let mark = match &summary {
        Summary::Measured(it) => verdict_mark(it.verdict.as_deref()),
        _ => "",
    };
    format!("{printed} / {ours}{mark}")
}

fn verdict_mark(verdict: Option<&str>) -> &'static str {
    match verdict {
        None | Some("reliable") => "",
        Some("questionable") => " ?",
        Some(_) => " !",
    }
}

/// Pads the cells of all lines to common widths, with a rule under the first line.
pub fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|it| it.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..).map_while(width).collect();
    let mut out = String::new();
    for (index, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
        if index == 0 {
            let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
            out += &rules.join("  ");
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{record, value};
    use crate::table::tests::demo;
    use crate::{Scale, Selection};

    #[test]
    fn the_paper_stands_beside_ours() {
        let table = demo();
        let cell = table.cells(Scale::Smoke, &Selection::default()).unwrap()[0];
        let results = Results::new(&table, Scale::Smoke, vec![record(&cell, value(97.5))]).unwrap();
        let text = text(&results);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Table I (smoke scale)");
        assert_eq!(lines[1], "paper / ours  Plain           Hard, robust");
        assert_eq!(lines[3], "Clean         99.10 / 97.50   98.6 / not run");
        assert_eq!(lines[4], "BIM(30)       2.13 / not run  - / not run");
        assert_eq!(lines[5], "Time          - / not run     - / not run");
        assert!(text.contains("Not run at smoke scale: takes too long."));
        assert!(text.contains("not run: Training helps."));
    }
}
