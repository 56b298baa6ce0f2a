//! Curves as SVG: every line has a colour, a dash and a sign of its own.

mod legend;
mod paint;
mod ruler;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::{Curve, Error, Line, Mark, Result, Stroke};
use legend::{Legend, wrapped};
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
const LETTER: i32 = 78;
const ROW: i32 = 20;
const SIGN: i32 = 4;
/// Signs along a line of many points.
const SIGNS: i32 = 8;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;
type Place = (i32, i32);

/// The curve as SVG.
pub(crate) fn svg(curve: &Curve, format: Format, ground: Ground) -> Result<String> {
    let plan = Plan::new(curve, format);
    let mut out = String::new();
    draw(&mut out, curve, format, &plan).map_err(|error| Error::Plot {
        name: curve.caption.clone(),
        reason: error.to_string(),
    })?;
    Ok(paint(&out, plan.size, &describe(curve), ground))
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

/// What stands where, from above: the name of y, the drawing, the name of x, the legend.
struct Plan<'c> {
    y: Vec<String>,
    /// Where the drawing begins and ends.
    top: i32,
    bottom: i32,
    x: Vec<String>,
    legend: Legend<'c>,
    size: (i32, i32),
}

impl<'c> Plan<'c> {
    fn new(curve: &'c Curve, format: Format) -> Self {
        let width = format.width - 8;
        let name = |axis| wrapped(&title(axis), (width * 10 / LETTER) as usize);
        let (y, x) = (name(&curve.y), name(&curve.x));
        let top = y.len() as i32 * ROW + 6;
        let bottom = top + format.height;
        let legend = Legend::new(curve, width, bottom + x.len() as i32 * ROW + 6);
        let size = (format.width, legend.bottom);
        Self {
            y,
            top,
            bottom,
            x,
            legend,
            size,
        }
    }
}

fn draw(out: &mut String, curve: &Curve, format: Format, plan: &Plan<'_>) -> Drawn {
    let (width, height) = plan.size;
    let root = SVGBackend::with_string(out, ((width * FINE) as u32, (height * FINE) as u32))
        .into_drawing_area();
    let (x, y) = rulers(curve, format);
    let left = (letters(y.widest()) + 14).max(30);
    let right = (letters(x.widest()) / 2 + 4).max(18);
    let mut chart = ChartBuilder::on(&root)
        .margin_top(plan.top * FINE)
        .margin_right(right * FINE)
        .margin_bottom((height - plan.bottom) * FINE)
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

    for (index, row) in (0..).zip(&plan.y) {
        let place = (4 * FINE, (index * ROW + 1) * FINE);
        root.draw(&Text::new(clean(row), place, text(HPos::Left, VPos::Top)))?;
    }
    for (index, row) in (0..).zip(&plan.x) {
        let place = (
            (left + width - right) / 2 * FINE,
            (plan.bottom + index * ROW + 2) * FINE,
        );
        root.draw(&Text::new(clean(row), place, text(HPos::Center, VPos::Top)))?;
    }

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
        let series = plan.legend.series(&mark.label);
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
    plan.legend.draw(&root)?;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Axis, Mark, Scale};

    fn curve() -> Curve {
        Curve {
            caption: "c".into(),
            x: Axis::new("epsilon", "1/255").between(0.0, 10.0),
            y: Axis::new("accuracy", "%").between(0.0, 10.0),
            lines: vec![Line {
                band: vec![(0.0, 7.0, 9.0), (10.0, 3.0, 5.0)],
                ..Line::step("steps", vec![(0.0, 8.0), (5.0, 4.0), (10.0, 4.0)])
            }],
            points: vec![Mark::new("fixed", 5.0, 6.0).within(5.0, 7.0)],
        }
    }

    /// Every number pair of every path.
    fn places(svg: &str) -> Vec<Vec<Place>> {
        svg.split("points=\"")
            .skip(1)
            .map(|it| {
                let pairs = it.split('"').next().unwrap().split_whitespace();
                let number = |it: &str| it.parse::<i32>().unwrap();
                pairs
                    .map(|it| it.split_once(',').unwrap())
                    .map(|(x, y)| (number(x), number(y)))
                    .collect()
            })
            .collect()
    }

    #[test]
    fn a_step_holds_its_value_until_the_next_point() {
        let svg = svg(&curve(), Format::WIDE, Ground::Page("wide")).unwrap();
        let line = svg
            .lines()
            .find(|it| it.contains("polyline") && it.contains("var(--line-0)"))
            .unwrap();
        let [a, corner, b, c] = places(line)[0][..] else {
            panic!("{line}");
        };
        assert_eq!((corner.0, corner.1), (b.0, a.1));
        assert_eq!(b.1, c.1);
        let (before, after) = (b.0 - a.0, c.0 - b.0);
        assert!(
            (before - after).abs() <= 1,
            "5 lies between 0 and 10: {line}"
        );
    }

    #[test]
    fn a_drawing_names_its_axes_lines_and_points() {
        let svg = svg(&curve(), Format::NARROW, Ground::File).unwrap();
        for text in ["epsilon (1/255)", "accuracy (%)", "steps", "fixed", "10"] {
            assert!(svg.contains(&format!("\n{text}\n</text>")), "{text}");
        }
        assert_eq!(
            describe(&curve()),
            "accuracy (%) over epsilon (1/255). steps: from 8 at 0 to 4 at 10. fixed: 6 [5, 7] at 5."
        );
    }

    #[test]
    fn thinning_keeps_ends_and_extremes_of_each_pixel() {
        let path = [(0, 5), (1, 9), (2, 1), (3, 4), (4, 5), (12, 3), (13, 3)];
        assert_eq!(
            thin(&path),
            [(0, 5), (1, 9), (2, 1), (4, 5), (12, 3), (13, 3)]
        );
        assert_eq!(thin(&[]), []);
    }

    #[test]
    fn points_of_several_labels_at_one_x_stand_side_by_side() {
        let mut curve = curve();
        curve.points.push(Mark::new("other", 5.0, 6.0));
        curve.points.push(Mark::new("other", 7.0, 6.0));
        let aside: Vec<i32> = curve.points.iter().map(|it| aside(&curve, it)).collect();
        assert_eq!(aside, [-60, 60, 0]);
    }

    fn axis() -> impl Strategy<Value = Axis> {
        let scale = prop_oneof![Just(Scale::Linear), Just(Scale::Log)];
        ("[a-z <&]{0,40}", scale).prop_map(|(label, scale)| Axis {
            label,
            scale,
            ..Axis::default()
        })
    }

    proptest! {
        #[test]
        fn nothing_is_drawn_outside_of_the_drawing(
            x in axis(),
            y in axis(),
            names in prop::collection::vec("[a-z ]{0,80}", 1..4),
            mut values in prop::collection::vec((-1e100..1e100f64, -1e100..1e100f64), 0..40),
            shrink in -105..0i32,
            format in prop_oneof![Just(Format::WIDE), Just(Format::NARROW)],
            step: bool,
        ) {
            let above = |scale, it: f64| {
                let it = it * 10f64.powi(shrink);
                if scale == Scale::Log { it.abs().max(1e-99) } else { it }
            };
            for (to, up) in &mut values {
                (*to, *up) = (above(x.scale, *to), above(y.scale, *up));
            }
            values.sort_by(|one, other| one.0.total_cmp(&other.0));
            let points = values.iter().map(|it| Mark::new("m", it.0, it.1).within(it.1, it.1));
            let curve = Curve {
                points: points.collect(),
                lines: names
                    .into_iter()
                    .map(|name| Line {
                        name,
                        points: values.clone(),
                        style: if step { Stroke::Step } else { Stroke::Line },
                        band: values.iter().map(|it| (it.0, it.1, it.1)).collect(),
                    })
                    .collect(),
                x,
                y,
                ..Curve::default()
            };
            let svg = svg(&curve, format, Ground::File).unwrap();
            let height: i32 = svg.split("height=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
            for (x, y) in places(&svg).into_iter().flatten() {
                // A sign on the border reaches over it.
                prop_assert!((0..=format.width * FINE).contains(&x), "{x}");
                prop_assert!((0..=height * FINE).contains(&y), "{y}");
            }
        }
    }
}
