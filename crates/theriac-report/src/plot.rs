//! Curves as SVG: every line has a colour, a dash and a sign of its own.

mod paint;
mod ruler;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::{Curve, Error, Line, Mark, Result, Stroke};
pub(crate) use paint::Ground;
use paint::{FINE, GRID, GROUND, INK, Sign, dashed, paint, sign, solid};
use ruler::Ruler;
pub(crate) use ruler::short;

/// The sizes of a drawing, in pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    width: i32,
    /// Of the part between the axes, with their numbers.
    height: i32,
    /// Spaces between the ticks of x.
    ticks: usize,
}

impl Format {
    /// For screens, paper and files.
    pub(crate) const WIDE: Self = Self {
        width: 720,
        height: 340,
        ticks: 8,
    };
    /// For telephones, where the other's letters would be too small.
    pub(crate) const NARROW: Self = Self {
        width: 360,
        height: 260,
        ticks: 4,
    };
}

const LETTERS: i32 = 13;
/// A letter's width on average, in tenths of a pixel, rather too wide.
const LETTER: i32 = 70;
const ROW: i32 = 20;
/// Above the drawing, for the name of y; and under it, for that of x.
const HEAD: i32 = 26;
const FOOT: i32 = 26;
const SIGN: i32 = 4;
const SWATCH: i32 = 36;
/// Signs along a line of many points.
const SIGNS: i32 = 8;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;
type Place = (i32, i32);

/// The curve as SVG.
pub(crate) fn svg(curve: &Curve, format: Format, ground: Ground) -> Result<String> {
    let legend = Legend::new(curve, format.width - 8);
    let size = (format.width, HEAD + format.height + FOOT + legend.height);
    let mut out = String::new();
    draw(&mut out, curve, format, size, &legend).map_err(|error| Error::Plot {
        name: curve.caption.clone(),
        reason: error.to_string(),
    })?;
    Ok(paint(&out, size, &describe(curve), ground))
}

/// What there is to see, for those who do not see it.
pub(crate) fn describe(curve: &Curve) -> String {
    let mut parts = vec![format!("{} over {}.", title(&curve.y), title(&curve.x))];
    for line in &curve.lines {
        parts.push(match line.points[..] {
            [] => format!("{}: no points.", line.name),
            [(x, y)] => format!("{}: {} at {}.", line.name, short(y), short(x)),
            [(from, first), .., (to, last)] => format!(
                "{}: from {} at {} to {} at {}.",
                line.name,
                short(first),
                short(from),
                short(last),
                short(to)
            ),
        });
    }
    for mark in &curve.points {
        let interval = mark.interval.map_or(String::new(), |(low, high)| {
            format!(" [{}, {}]", short(low), short(high))
        });
        let (x, y) = (short(mark.x), short(mark.y));
        parts.push(format!("{}: {y}{interval} at {x}.", mark.label));
    }
    parts.join(" ")
}

fn title(axis: &crate::Axis) -> String {
    match &*axis.unit {
        "" => axis.label.clone(),
        unit => format!("{} ({unit})", axis.label),
    }
}

fn draw(
    out: &mut String,
    curve: &Curve,
    format: Format,
    (width, height): (i32, i32),
    legend: &Legend<'_>,
) -> Drawn {
    let root = SVGBackend::with_string(out, ((width * FINE) as u32, (height * FINE) as u32))
        .into_drawing_area();
    let (x, y) = rulers(curve, format);
    let left = (letters(y.widest()) + 14).max(30);
    let right = (letters(x.widest()) / 2 + 4).max(18);
    let mut chart = ChartBuilder::on(&root)
        .margin_top(HEAD * FINE)
        .margin_right(right * FINE)
        .margin_bottom((height - HEAD - format.height) * FINE)
        .set_label_area_size(LabelAreaPosition::Left, left * FINE)
        .set_label_area_size(LabelAreaPosition::Bottom, 24 * FINE)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .label_style(text(HPos::Center, VPos::Center))
        .bold_line_style(GRID.stroke_width(FINE as u32))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.stroke_width(FINE as u32))
        .set_all_tick_mark_size(5 * FINE)
        .draw()?;
    let at = |x: f64, y: f64| chart.backend_coord(&(x, y));

    let label = title(&curve.y);
    root.draw(&Text::new(
        clean(&label),
        (4 * FINE, FINE),
        text(HPos::Left, VPos::Top),
    ))?;
    let label = title(&curve.x);
    let place = (
        (left + width - right) / 2 * FINE,
        (HEAD + format.height + 2) * FINE,
    );
    root.draw(&Text::new(
        clean(&label),
        place,
        text(HPos::Center, VPos::Top),
    ))?;

    for (series, line) in curve.lines.iter().enumerate() {
        band(&root, line, series, &at)?;
    }
    for (series, line) in curve.lines.iter().enumerate() {
        let path: Vec<Place> = joined(&line.points, line.style)
            .map(|(x, y)| at(x, y))
            .collect();
        root.draw(&PathElement::new(
            thin(&path),
            dashed(series).stroke_width(2 * FINE as u32),
        ))?;
        let points: Vec<Place> = line.points.iter().map(|&(x, y)| at(x, y)).collect();
        for place in sign_places(&points, line.style, series) {
            draw_sign(&root, place, series, true)?;
        }
    }
    for mark in &curve.points {
        let series = legend.series(&mark.label);
        let aside = aside(curve, mark);
        let at = |y: f64| {
            let (x, y) = at(mark.x, y);
            (x + aside, y)
        };
        if let Some((low, high)) = mark.interval {
            interval(&root, at(low), at(high), series)?;
        }
        draw_sign(&root, at(mark.y), series, false)?;
    }
    legend.draw(&root, HEAD + format.height + FOOT)?;
    root.present()?;
    Ok(())
}

/// How far a point is set aside, so that points of several labels at one x can be told apart.
fn aside(curve: &Curve, mark: &Mark) -> i32 {
    let mut labels: Vec<&str> = Vec::new();
    for other in curve.points.iter().filter(|it| it.x == mark.x) {
        if !labels.contains(&&*other.label) {
            labels.push(&other.label);
        }
    }
    let rank = labels.iter().take_while(|it| **it != mark.label).count() as i32;
    (2 * rank + 1 - labels.len() as i32) * (SIGN + 2) * FINE
}

/// The width of so many letters.
fn letters(count: usize) -> i32 {
    count as i32 * LETTER / 10
}

fn rulers(curve: &Curve, format: Format) -> (Ruler, Ruler) {
    let points = curve.lines.iter().flat_map(|it| &it.points);
    let bands = curve.lines.iter().flat_map(|it| &it.band);
    let marks = curve.points.iter();
    let x = points
        .clone()
        .map(|it| it.0)
        .chain(bands.clone().map(|it| it.0))
        .chain(marks.clone().map(|it| it.x));
    let ends = marks.clone().filter_map(|it| it.interval);
    let y = points
        .map(|it| it.1)
        .chain(bands.flat_map(|it| [it.1, it.2]))
        .chain(marks.map(|it| it.y))
        .chain(ends.flat_map(|(low, high)| [low, high]));
    (
        Ruler::new(&curve.x, x, format.ticks),
        Ruler::new(&curve.y, y, 5),
    )
}

fn text(horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    // plotters writes a font size that is smaller by this factor.
    let size = 1.24 * f64::from(LETTERS * FINE);
    TextStyle::from(("sans-serif", size).into_font())
        .color(&INK)
        .pos(Pos::new(horizontal, vertical))
}

/// Text without what XML does not allow.
fn clean(text: &str) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().map(plain).collect()
}

/// The corners of a line: a step goes across, then up or down.
fn joined(points: &[(f64, f64)], style: Stroke) -> impl Iterator<Item = (f64, f64)> {
    points.iter().enumerate().flat_map(move |(index, &point)| {
        let corner = match index.checked_sub(1) {
            Some(before) if style == Stroke::Step => Some((point.0, points[before].1)),
            _ => None,
        };
        corner.into_iter().chain([point])
    })
}

fn band(root: &Area<'_>, line: &Line, series: usize, at: &impl Fn(f64, f64) -> Place) -> Drawn {
    let edge = |end: fn(&(f64, f64, f64)) -> f64| {
        let edge: Vec<(f64, f64)> = line.band.iter().map(|it| (it.0, end(it))).collect();
        let path: Vec<Place> = joined(&edge, line.style).map(|(x, y)| at(x, y)).collect();
        thin(&path)
    };
    let mut outline = edge(|it| it.1);
    outline.extend(edge(|it| it.2).into_iter().rev());
    if !outline.is_empty() {
        root.draw(&Polygon::new(outline, solid(series).mix(0.15).filled()))?;
    }
    Ok(())
}

/// The same line for the eye: of the points above one pixel, the first, the last and the extremes.
fn thin(path: &[Place]) -> Vec<Place> {
    let mut out = Vec::new();
    for column in path.chunk_by(|one, other| one.0.div_euclid(FINE) == other.0.div_euclid(FINE)) {
        let indices = 0..column.len();
        let lowest = indices.clone().min_by_key(|&it| column[it].1);
        let highest = indices.clone().max_by_key(|&it| column[it].1);
        let mut kept = [Some(0), lowest, highest, indices.last()];
        kept.sort_unstable();
        out.extend(kept.into_iter().flatten().map(|it| column[it]));
    }
    out.dedup();
    out
}

/// Where a line bears its sign: at every point of a few, else at even distances, which differ from
/// line to line so that signs do not cover each other.
fn sign_places(points: &[Place], style: Stroke, series: usize) -> Vec<Place> {
    let [first, .., last] = points else {
        return points.to_vec();
    };
    if points.len() <= 12 {
        return points.to_vec();
    }
    let mut places: Vec<Place> = (0..SIGNS)
        .map(|index| {
            let share = 6 * index + 1 + (5 * series as i32) % 6;
            let x = first.0 + (last.0 - first.0) / (6 * SIGNS) * share;
            let after = points.partition_point(|it| it.0 <= x).max(1);
            let before = points[after - 1];
            match style {
                Stroke::Step => (x, before.1),
                Stroke::Line => before,
            }
        })
        .collect();
    places.dedup();
    places
}

fn draw_sign(root: &Area<'_>, (x, y): Place, series: usize, filled: bool) -> Drawn {
    let edge = solid(series).stroke_width(2 * FINE as u32);
    let inside = if filled { solid(series) } else { GROUND }.filled();
    // Single points are larger than the signs of lines: they are what was measured directly.
    let radius = if filled { SIGN } else { SIGN + 1 } * FINE;
    match sign(series) {
        Sign::Circle => {
            root.draw(&Circle::new((x, y), radius, inside))?;
            root.draw(&Circle::new((x, y), radius, edge))?;
        }
        Sign::Polygon(corners) => {
            let mut corners: Vec<Place> = corners
                .iter()
                .map(|(right, down)| (x + right * radius / 10, y + down * radius / 10))
                .collect();
            root.draw(&Polygon::new(corners.clone(), inside))?;
            if !filled {
                corners.extend_from_within(..2.min(corners.len()));
                root.draw(&PathElement::new(corners, edge))?;
            }
        }
    }
    Ok(())
}

fn interval(root: &Area<'_>, low: Place, high: Place, series: usize) -> Drawn {
    let style = solid(series).stroke_width(2 * FINE as u32);
    root.draw(&PathElement::new([low, high], style))?;
    for (x, y) in [low, high] {
        let cap = [(x - 5 * FINE, y), (x + 5 * FINE, y)];
        root.draw(&PathElement::new(cap, style))?;
    }
    Ok(())
}

/// What the lines and signs are, under the drawing: inside it would lie on the lines.
struct Legend<'c> {
    /// Name, its rows of text, and the left upper corner.
    entries: Vec<(&'c str, Vec<String>, Place)>,
    lines: usize,
    height: i32,
}

impl<'c> Legend<'c> {
    fn new(curve: &'c Curve, width: i32) -> Self {
        let mut names: Vec<&str> = curve.lines.iter().map(|it| &*it.name).collect();
        for mark in &curve.points {
            if !names[curve.lines.len()..].contains(&&*mark.label) {
                names.push(&mark.label);
            }
        }
        let letters = ((width - SWATCH - 8) * 10 / LETTER).max(1) as usize;
        let (mut x, mut y, mut tallest) = (0, 0, 0);
        let mut entries = Vec::new();
        for name in names {
            let rows = wrapped(name, letters);
            let longest = rows.iter().map(|it| it.chars().count()).max().unwrap_or(0);
            let needed = SWATCH + 24 + self::letters(longest);
            if x > 0 && x + needed > width + 16 {
                (x, y, tallest) = (0, y + tallest, 0);
            }
            tallest = tallest.max(rows.len() as i32 * ROW);
            entries.push((name, rows, (x, y)));
            x += needed;
        }
        Self {
            entries,
            lines: curve.lines.len(),
            height: y + tallest + 4,
        }
    }

    /// The number of the series whose sign points of this label bear.
    fn series(&self, label: &str) -> usize {
        let labels = self.entries.iter().skip(self.lines);
        self.lines + labels.take_while(|it| it.0 != label).count()
    }

    fn draw(&self, root: &Area<'_>, top: i32) -> Drawn {
        for (series, (_, rows, (x, y))) in self.entries.iter().enumerate() {
            let (x, y) = ((x + 4) * FINE, (y + top + ROW / 2) * FINE);
            let middle = (x + (SWATCH - 8) / 2 * FINE, y);
            let is_line = series < self.lines;
            if is_line {
                let style = dashed(series).stroke_width(2 * FINE as u32);
                root.draw(&PathElement::new(
                    [(x, y), (x + (SWATCH - 8) * FINE, y)],
                    style,
                ))?;
            } else {
                let (low, high) = (y + 8 * FINE, y - 8 * FINE);
                interval(root, (middle.0, low), (middle.0, high), series)?;
            }
            draw_sign(root, middle, series, is_line)?;
            for (index, row) in rows.iter().enumerate() {
                let place = (x + SWATCH * FINE, y + index as i32 * ROW * FINE);
                root.draw(&Text::new(
                    clean(row),
                    place,
                    text(HPos::Left, VPos::Center),
                ))?;
            }
        }
        Ok(())
    }
}

/// The words in rows of at most `letters`; a longer word is cut.
fn wrapped(text: &str, letters: usize) -> Vec<String> {
    let mut rows: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let cut: Vec<char> = word.chars().collect();
        for part in cut.chunks(letters.max(1)) {
            let part: String = part.iter().collect();
            match rows.last_mut() {
                Some(row) if row.is_empty() => *row = part,
                Some(row) if row.chars().count() + 1 + part.chars().count() <= letters => {
                    *row += " ";
                    *row += &part;
                }
                _ => rows.push(part),
            }
        }
    }
    rows
}
