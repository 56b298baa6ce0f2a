//! What must hold of a page before it can be shown.

use std::collections::BTreeMap;

use crate::{
    Axis, Bars, Block, Check, Curve, Error, Images, Line, Mark, Page, Result, Scale, Section,
    Table, Verdict, prose,
};

/// Folds within folds; a reader gives up long before.
const DEEPEST: usize = 8;
/// Differences and squares of plotted numbers stay finite.
const LARGEST: f64 = 1e100;

const FINITE: &str = "plots take numbers up to 1e100: leave the point out, and say so";
const INTERVAL: &str = "an interval goes from its lower to its upper end";
const ABOVE_ZERO: &str = "a logarithmic axis has no place for it: use a linear one";

impl Page {
    /// Whether the page can be shown; [`html`](Self::html), [`markdown`](Self::markdown) and
    /// [`json`](Self::json) ask this first.
    ///
    /// # Errors
    /// If a title is empty, an anchor is there twice or not at all, a row does not fit its heads, a
    /// number cannot be plotted, or a picture's bytes do not fit its size.
    pub fn validate(&self) -> Result<()> {
        let mut walk = Walk::default();
        not_empty("the page", "the title", &self.title)?;
        walk.prose("the subtitle", [&*self.subtitle]);
        if let Some(verdict) = &self.verdict {
            walk.verdict(verdict)?;
        }
        for section in &self.sections {
            walk.section(section)?;
        }
        walk.links()
    }
}

#[derive(Default)]
struct Walk<'p> {
    /// Anchors and what has them.
    anchors: BTreeMap<&'p str, String>,
    /// Where a link stands and where it leads.
    links: Vec<(String, &'p str)>,
}

impl<'p> Walk<'p> {
    fn prose(&mut self, place: &str, texts: impl IntoIterator<Item = &'p str>) {
        let links = texts.into_iter().flat_map(prose::anchors);
        self.links.extend(links.map(|it| (place.to_owned(), it)));
    }

    fn anchor(&mut self, id: &'p str, place: String) -> Result<()> {
        if id.is_empty()
            || id
                .chars()
                .any(|it| !it.is_alphanumeric() && !"-_.".contains(it))
        {
            return Err(Error::Value {
                place,
                what: "the anchor".into(),
                value: format!("\"{id}\""),
                fix: "give it an id of letters, digits, hyphens, underscores and dots",
            });
        }
        match self.anchors.get(id) {
            None => {
                self.anchors.insert(id, place);
                Ok(())
            }
            Some(first) => Err(Error::Duplicate {
                id: id.into(),
                first: first.clone(),
                second: place,
            }),
        }
    }

    /// Whether every link met an anchor.
    fn links(self) -> Result<()> {
        for (place, target) in self.links {
            if !self.anchors.contains_key(target) {
                let known: Vec<&str> = self.anchors.into_keys().collect();
                return Err(Error::Link {
                    place,
                    target: target.into(),
                    known: if known.is_empty() {
                        "none".into()
                    } else {
                        known.join(", ")
                    },
                });
            }
        }
        Ok(())
    }

    fn verdict(&mut self, verdict: &'p Verdict) -> Result<()> {
        let place = "the verdict";
        not_empty(place, "the headline", &verdict.headline)?;
        self.prose(place, [&*verdict.text]);
        self.prose(place, verdict.reasons.iter().map(String::as_str));
        self.prose(place, verdict.next.as_deref());
        Ok(())
    }

    fn section(&mut self, section: &'p Section) -> Result<()> {
        let place = format!("section \"{}\"", section.title);
        not_empty(&place, "the title", &section.title)?;
        self.anchor(&section.id, place.clone())?;
        self.blocks(&place, &section.blocks, 0)
    }

    fn blocks(&mut self, place: &str, blocks: &'p [Block], depth: usize) -> Result<()> {
        if depth > DEEPEST {
            return Err(Error::Value {
                place: place.into(),
                what: "the depth of blocks within blocks".into(),
                value: format!("more than {DEEPEST}"),
                fix: "put some of them side by side",
            });
        }
        for block in blocks {
            match block {
                Block::Text(text) => self.prose(place, [&**text]),
                Block::Code(_) => {}
                Block::Facts(facts) => self.prose(place, facts.iter().map(|it| &*it.value)),
                Block::Table(table) => self.table(place, table)?,
                Block::Checks(checks) => self.checks(place, checks)?,
                Block::Curve(curve) => self.curve(place, curve)?,
                Block::Bars(bars) => self.bars(place, bars)?,
                Block::Images(images) => self.images(place, images)?,
                Block::Details(details) => {
                    let place = format!("{place}, details \"{}\"", details.summary);
                    not_empty(&place, "the summary", &details.summary)?;
                    self.blocks(&place, &details.blocks, depth + 1)?;
                }
            }
        }
        Ok(())
    }

    fn table(&mut self, place: &str, table: &'p Table) -> Result<()> {
        let place = format!("{place}, table \"{}\"", table.caption);
        self.prose(&place, [&*table.caption, &table.note]);
        for (index, row) in table.rows.iter().enumerate() {
            if row.len() != table.heads.len() {
                let name = row.first().map_or("", |cell| &cell.text);
                return Err(Error::Row {
                    place,
                    row: format!("{} (\"{name}\")", index + 1),
                    found: format!("{} cells", row.len()),
                    expected: table.heads.len(),
                });
            }
            self.prose(&place, row.iter().map(|cell| &*cell.text));
        }
        Ok(())
    }

    fn checks(&mut self, place: &str, checks: &'p [Check]) -> Result<()> {
        for check in checks {
            let place = format!("{place}, check {} \"{}\"", check.number, check.name);
            not_empty(&place, "the word of the finding", &check.finding.word)?;
            self.prose(
                &place,
                [&*check.explanation, &check.source, &check.next_step],
            );
            if let Some(id) = &check.id {
                self.anchor(id, place)?;
            }
        }
        Ok(())
    }

    fn curve(&mut self, place: &str, curve: &'p Curve) -> Result<()> {
        let place = format!("{place}, figure \"{}\"", curve.caption);
        self.prose(&place, [&*curve.caption]);
        for (name, axis) in [("x", &curve.x), ("y", &curve.y)] {
            if let Some((low, high)) = axis.range {
                let at = At {
                    place: &place,
                    axis,
                };
                at.number(|| format!("the low end of axis {name}"), low)?;
                at.number(|| format!("the high end of axis {name}"), high)?;
                if low >= high {
                    return Err(at.wrong(
                        format!("the range of axis {name}"),
                        format!("({low}, {high})"),
                        "the low end comes first, and the ends differ",
                    ));
                }
            }
        }
        curve
            .lines
            .iter()
            .try_for_each(|it| line(&place, curve, it))?;
        curve
            .points
            .iter()
            .try_for_each(|it| mark(&place, curve, it))
    }

    fn bars(&mut self, place: &str, bars: &'p Bars) -> Result<()> {
        let place = format!("{place}, bars \"{}\"", bars.caption);
        self.prose(&place, [&*bars.caption]);
        self.prose(&place, bars.bars.iter().map(|it| &*it.name));
        let axis = Axis::default();
        let at = At {
            place: &place,
            axis: &axis,
        };
        if let Some(full) = bars.full {
            at.number(|| "the value of a full bar".into(), full)?;
            if full <= 0.0 {
                let what = "the value of a full bar".into();
                return Err(at.wrong(what, full.to_string(), "it lies above 0"));
            }
        }
        for bar in &bars.bars {
            let what = || format!("bar \"{}\"", bar.name);
            at.number(what, bar.value)?;
            if bar.value < 0.0 {
                let fix = "bars begin at 0: use a table for what may lie below";
                return Err(at.wrong(what(), bar.value.to_string(), fix));
            }
            if bars.full.is_some_and(|full| bar.value > full) {
                let fix = "it is longer than a full bar: raise `full`";
                return Err(at.wrong(what(), bar.value.to_string(), fix));
            }
        }
        Ok(())
    }

    fn images(&mut self, place: &str, images: &'p Images) -> Result<()> {
        let place = format!("{place}, images \"{}\"", images.caption);
        self.prose(&place, [&*images.caption]);
        for (index, row) in images.rows.iter().enumerate() {
            self.prose(&place, [&*row.label]);
            let name = format!("{} (\"{}\")", index + 1, row.label);
            if row.pictures.len() != images.columns.len() {
                return Err(Error::Row {
                    place,
                    row: name,
                    found: format!("{} pictures", row.pictures.len()),
                    expected: images.columns.len(),
                });
            }
            for (column, picture) in images.columns.iter().zip(&row.pictures) {
                picture.validate(|| format!("{place}, row {name}, column \"{column}\""))?;
            }
        }
        Ok(())
    }
}

fn not_empty(place: &str, what: &str, text: &str) -> Result<()> {
    if text.trim().is_empty() {
        return Err(Error::Value {
            place: place.into(),
            what: what.into(),
            value: "empty".into(),
            fix: "a reader needs it to find the place",
        });
    }
    Ok(())
}

/// Where a number stands.
#[derive(Clone, Copy)]
struct At<'p> {
    place: &'p str,
    axis: &'p Axis,
}

impl At<'_> {
    fn number(self, what: impl Fn() -> String, value: f64) -> Result<()> {
        if value.is_nan() || value.abs() > LARGEST {
            return Err(self.wrong(what(), value.to_string(), FINITE));
        }
        if self.axis.scale == Scale::Log && value < 1.0 / LARGEST {
            return Err(self.wrong(what(), value.to_string(), ABOVE_ZERO));
        }
        Ok(())
    }

    fn interval(self, what: impl Fn() -> String, low: f64, high: f64) -> Result<()> {
        self.number(&what, low)?;
        self.number(&what, high)?;
        if low > high {
            return Err(self.wrong(what(), format!("({low}, {high})"), INTERVAL));
        }
        Ok(())
    }

    fn wrong(self, what: String, value: String, fix: &'static str) -> Error {
        Error::Value {
            place: self.place.into(),
            what,
            value,
            fix,
        }
    }
}

fn line(place: &str, curve: &Curve, line: &Line) -> Result<()> {
    let (x, y) = (
        At {
            place,
            axis: &curve.x,
        },
        At {
            place,
            axis: &curve.y,
        },
    );
    let what = |part: &str, index: usize| format!("{part} {} of line \"{}\"", index + 1, line.name);
    for (index, point) in line.points.iter().enumerate() {
        x.number(|| what("x of point", index), point.0)?;
        y.number(|| what("y of point", index), point.1)?;
    }
    for (index, &(at, low, high)) in line.band.iter().enumerate() {
        x.number(|| what("x of band point", index), at)?;
        y.interval(|| what("band point", index), low, high)?;
    }
    let sorted = "x never falls: sort the points";
    let points: Vec<f64> = line.points.iter().map(|it| it.0).collect();
    let band: Vec<f64> = line.band.iter().map(|it| it.0).collect();
    for (part, list) in [("x of point", points), ("x of band point", band)] {
        if let Some(index) = list.windows(2).position(|pair| pair[0] > pair[1]) {
            let value = format!("{}, after {}", list[index + 1], list[index]);
            return Err(x.wrong(what(part, index + 1), value, sorted));
        }
    }
    Ok(())
}

fn mark(place: &str, curve: &Curve, mark: &Mark) -> Result<()> {
    let (x, y) = (
        At {
            place,
            axis: &curve.x,
        },
        At {
            place,
            axis: &curve.y,
        },
    );
    let what = |part: &str| format!("{part} of point \"{}\"", mark.label);
    x.number(|| what("x"), mark.x)?;
    y.number(|| what("y"), mark.y)?;
    match mark.interval {
        None => Ok(()),
        Some((low, high)) => y.interval(|| what("the interval"), low, high),
    }
}
