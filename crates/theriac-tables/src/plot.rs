//! Figures as SVG.

use plotters::prelude::*;

use crate::results::{Results, Summary};
use crate::{Column, Error, Plot, Result, Row, Unit};

/// Okabe and Ito's colours, which the colour-blind tell apart; the light yellow is left out.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];
const SIZE: (u32, u32) = (860, 460);
const CHART_WIDTH: i32 = 640;
const SMALL: (&str, u32) = ("sans-serif", 14);

struct Line<'t> {
    row: &'t Row,
    colour: RGBColor,
    ours: Vec<(f64, f64)>,
    printed: Vec<(f64, f64)>,
}

/// The figure as SVG text: one line with dots for each row that was measured, crosses where the
/// paper prints a number. `None` if there is nothing to draw.
///
/// # Errors
/// If drawing fails.
pub fn svg(results: &Results<'_>) -> Result<Option<String>> {
    let Some(plot) = &results.table.plot else {
        return Ok(None);
    };
    let lines = lines(results);
    if lines.is_empty() {
        return Ok(None);
    }
    let mut out = String::new();
    draw(&mut out, results, plot, &lines).map_err(|error| Error::Plot {
        name: results.table.id.clone(),
        reason: error.to_string(),
    })?;
    Ok(Some(out))
}

fn lines<'t>(results: &Results<'t>) -> Vec<Line<'t>> {
    let table = results.table;
    let decided = &table.readings[0];
    let points = |number: &dyn Fn(&Column) -> Option<f64>| {
        let mut points: Vec<(f64, f64)> = table
            .columns
            .iter()
            .filter_map(|it| Some((it.x?, number(it)?)))
            .collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        points
    };
    table
        .rows
        .iter()
        .zip(COLOURS.into_iter().cycle())
        .map(|(row, colour)| Line {
            row,
            colour,
            ours: points(&|column| match results.summary(row, column, decided) {
                Summary::Measured(statistics) => Some(statistics.mean),
                _ => None,
            }),
            printed: points(&|column| table.printed(row, column)?.value()),
        })
        .filter(|line| !line.ours.is_empty() || !line.printed.is_empty())
        .collect()
}

fn draw(
    out: &mut String,
    results: &Results<'_>,
    plot: &Plot,
    lines: &[Line<'_>],
) -> Result<(), Box<dyn std::error::Error>> {
    let all = || {
        lines
            .iter()
            .flat_map(|line| line.ours.iter().chain(&line.printed))
    };
    let bounds = |number: fn(&(f64, f64)) -> f64| {
        all()
            .map(number)
            .fold((f64::MAX, f64::MIN), |(low, high), it| {
                (low.min(it), high.max(it))
            })
    };
    let (x_low, x_high) = bounds(|point| point.0);
    let (y_low, y_high) = match results.table.columns[0].unit {
        Unit::Percent => (0.0, 100.0),
        _ => bounds(|point| point.1),
    };
    let widen = |low: f64, high: f64| {
        let margin = if high > low { 0.04 * (high - low) } else { 0.5 };
        (low - margin)..(high + margin)
    };

    let root = SVGBackend::with_string(out, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(CHART_WIDTH);
    let mut chart = ChartBuilder::on(&left)
        .caption(
            format!("{} ({} scale)", plot.title, results.scale),
            ("sans-serif", 18),
        )
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(58)
        .build_cartesian_2d(widen(x_low, x_high), widen(y_low, y_high))?;
    chart
        .configure_mesh()
        .x_desc(&*plot.x_label)
        .y_desc(&*plot.y_label)
        .label_style(SMALL)
        .axis_desc_style(SMALL)
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| short(*y))
        .draw()?;
    for line in lines {
        let style = line.colour.stroke_width(2);
        chart.draw_series(
            LineSeries::new(line.ours.iter().copied(), style.filled()).point_size(3),
        )?;
        chart.draw_series(
            line.printed
                .iter()
                .map(|point| Cross::new(*point, 5, style)),
        )?;
    }

    // The legend stands beside the chart: inside it would lie on the lines.
    let entry = |index: usize| 60 + 24 * index as i32;
    for (index, line) in lines.iter().enumerate() {
        let (y, style) = (entry(index), line.colour.stroke_width(2));
        right.draw(&PathElement::new([(4, y), (30, y)], style))?;
        right.draw(&Circle::new((17, y), 3, line.colour.filled()))?;
        right.draw(&Text::new(line.row.name.clone(), (38, y - 7), SMALL))?;
    }
    if lines.iter().any(|line| !line.printed.is_empty()) {
        let y = entry(lines.len());
        right.draw(&Cross::new((17, y), 5, BLACK.stroke_width(2)))?;
        right.draw(&Text::new("printed in the paper", (38, y - 7), SMALL))?;
    }
    root.present()?;
    Ok(())
}

fn short(value: f64) -> String {
    Unit::Number.format(value)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;
    use crate::results::tests::{record, value};
    use crate::table::tests::TOML;
    use crate::{Scale, Selection, Table};

    pub(crate) fn figure() -> Table {
        let toml = TOML
            .replace("kind = \"table\"", "kind = \"figure\"")
            .replace("name = \"Clean\"", "name = \"Clean\"\nx = 0")
            .replace("name = \"BIM(30)\"", "name = \"BIM(30)\"\nx = 30")
            .replace("name = \"Time\"", "name = \"Time\"\nx = 40")
            .replace(
                "[settings]",
                "[plot]\nx_label = \"Iterations\"\ny_label = \"Accuracy (%)\"\n\
                 title = \"A < B & C\"\n[settings]",
            );
        let csv = "paper,table,row,column,value,std,note\ndemo,table1,Plain,Clean,50,,\n";
        Table::parse(&toml, csv, Path::new("table1.toml")).unwrap()
    }

    /// Every tag is closed in order and nothing is left unescaped.
    fn assert_well_formed(svg: &str) {
        let mut open = Vec::new();
        for piece in svg.split('<').skip(1) {
            let (tag, text) = piece.split_once('>').expect("a tag without its end");
            assert!(
                !text.contains('&') || text.contains("&amp;") || text.contains("&lt;"),
                "{text}"
            );
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name.trim()));
            } else if !tag.ends_with('/') && !tag.starts_with(['?', '!']) {
                open.push(tag.split_whitespace().next().unwrap().to_owned());
            }
        }
        assert_eq!(open, Vec::<String>::new());
    }

    #[test]
    fn the_drawing_has_axes_a_legend_and_the_printed_points() {
        let table = figure();
        let cells = table.cells(Scale::Smoke, &Selection::default()).unwrap();
        let records = cells.iter().map(|cell| record(cell, value(40.0))).collect();
        let results = Results::new(&table, Scale::Smoke, records).unwrap();
        let drawing = svg(&results).unwrap().unwrap();
        assert_well_formed(&drawing);
        let parts = [
            "Iterations",
            "Accuracy (%)",
            "Plain",
            "Hard, robust",
            "printed in the paper",
        ];
        for part in parts.into_iter().chain(["A &lt; B &amp; C (smoke scale)"]) {
            assert!(drawing.contains(part), "the drawing lacks {part}");
        }
        assert!(drawing.matches("<polyline").count() >= 2);
    }

    #[test]
    fn without_points_there_is_no_drawing() {
        let mut table = figure();
        table.printed.clear();
        let results = Results::new(&table, Scale::Smoke, vec![]).unwrap();
        assert_eq!(svg(&results).unwrap(), None);
    }
}
