//! The page as HTML. The templates lay it out; here is what they are given.

use askama::Template;

use crate::plot::{self, Format, Ground};
use crate::{Bars, Block, Check, Details, Fact, Images, Kind, Page, Result, Section, Table, prose};

#[derive(Template)]
#[template(path = "page.html")]
struct Whole<'p> {
    page: &'p Page,
    sections: Vec<(&'p Section, String)>,
}

#[derive(Template)]
#[template(path = "blocks.html")]
struct Blocks<'p> {
    views: Vec<View<'p>>,
}

/// A block with what the template cannot compute.
enum View<'p> {
    Text(&'p str),
    Code(&'p str),
    Facts(&'p [Fact]),
    Table(&'p Table),
    Checks {
        open: Vec<&'p Check>,
        folded: Vec<&'p Check>,
        counts: String,
    },
    Curve {
        caption: &'p str,
        wide: String,
        narrow: String,
    },
    Bars {
        bars: &'p Bars,
        rows: Vec<BarView<'p>>,
    },
    Images {
        images: &'p Images,
        rows: Vec<(&'p str, Vec<PictureView>)>,
    },
    Details {
        details: &'p Details,
        inside: String,
    },
}

struct BarView<'p> {
    name: &'p str,
    value: String,
    /// Of the full length, in per cent.
    length: String,
}

struct PictureView {
    uri: String,
    alt: String,
    width: u32,
    height: u32,
}

impl Page {
    /// The page as one HTML file that needs nothing else: no network, no script.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), or if a figure cannot be drawn.
    pub fn html(&self) -> Result<String> {
        self.validate()?;
        let sections = self
            .sections
            .iter()
            .map(|section| Ok((section, blocks(&section.blocks)?)))
            .collect::<Result<_>>()?;
        let whole = Whole {
            page: self,
            sections,
        };
        Ok(whole.render()?)
    }
}

fn blocks(blocks: &[Block]) -> Result<String> {
    let views = blocks.iter().map(view).collect::<Result<_>>()?;
    Ok(Blocks { views }.render()?)
}

fn view(block: &Block) -> Result<View<'_>> {
    Ok(match block {
        Block::Text(text) => View::Text(text),
        Block::Code(code) => View::Code(code),
        Block::Facts(facts) => View::Facts(facts),
        Block::Table(table) => View::Table(table),
        Block::Checks(checks) => {
            let (open, folded) = sorted(checks);
            let counts = counts(&folded);
            View::Checks {
                open,
                folded,
                counts,
            }
        }
        Block::Curve(curve) => View::Curve {
            caption: &curve.caption,
            wide: plot::svg(curve, Format::WIDE, Ground::Page("wide"))?,
            narrow: plot::svg(curve, Format::NARROW, Ground::Page("narrow"))?,
        },
        Block::Bars(bars) => View::Bars {
            bars,
            rows: bar_views(bars),
        },
        Block::Images(images) => View::Images {
            images,
            rows: image_rows(images)?,
        },
        Block::Details(details) => View::Details {
            details,
            inside: blocks(&details.blocks)?,
        },
    })
}

/// Checks that found something, the worst first, and the others.
pub(crate) fn sorted(checks: &[Check]) -> (Vec<&Check>, Vec<&Check>) {
    let of = |kind| checks.iter().filter(move |it| it.finding.kind == kind);
    let open = of(Kind::Bad).chain(of(Kind::Doubtful)).collect();
    let folded = of(Kind::Good).chain(of(Kind::Neutral)).collect();
    (open, folded)
}

/// How many checks found what: "9 passed, 2 not run".
pub(crate) fn counts(checks: &[&Check]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for check in checks {
        let word = &*check.finding.word;
        match counts.iter_mut().find(|it| it.0 == word) {
            Some(count) => count.1 += 1,
            None => counts.push((word, 1)),
        }
    }
    let counts: Vec<String> = counts
        .into_iter()
        .map(|(word, count)| format!("{count} {word}"))
        .collect();
    counts.join(", ")
}

fn bar_views(bars: &Bars) -> Vec<BarView<'_>> {
    let largest = bars.bars.iter().map(|it| it.value).fold(0.0, f64::max);
    let full = bars.full.unwrap_or(largest);
    bar_values(bars)
        .into_iter()
        .zip(&bars.bars)
        .map(|(value, bar)| BarView {
            name: &bar.name,
            value,
            length: if full > 0.0 {
                format!("{:.2}", 100.0 * bar.value / full)
            } else {
                "0".into()
            },
        })
        .collect()
}

/// The values as text, with the digits after the point that tell them apart, four at most.
pub(crate) fn bar_values(bars: &Bars) -> Vec<String> {
    let values: Vec<f64> = bars.bars.iter().map(|it| it.value).collect();
    if values.iter().any(|it| *it >= 1e7) {
        return values.into_iter().map(plot::short).collect();
    }
    let exact = |decimals: usize| {
        values.iter().all(|it| {
            let text = format!("{it:.decimals$}");
            text.parse::<f64>()
                .is_ok_and(|read| (read - it).abs() <= 1e-9 * it.abs())
        })
    };
    let largest = values.iter().copied().fold(0.0, f64::max);
    let most = if largest < 1.0 { 4 } else { 2 };
    let decimals = (0..most).find(|it| exact(*it)).unwrap_or(most);
    values.iter().map(|it| format!("{it:.decimals$}")).collect()
}

fn image_rows(images: &Images) -> Result<Vec<(&str, Vec<PictureView>)>> {
    images
        .rows
        .iter()
        .map(|row| {
            let pictures = images
                .columns
                .iter()
                .zip(&row.pictures)
                .map(|(column, picture)| {
                    let times = picture.enlargement();
                    Ok(PictureView {
                        uri: picture.data_uri()?,
                        alt: alt(&picture.alt, column, &row.label),
                        width: picture.width.saturating_mul(times),
                        height: picture.height.saturating_mul(times),
                    })
                })
                .collect::<Result<_>>()?;
            Ok((&*row.label, pictures))
        })
        .collect()
}

/// What a picture shows: its own text, or its place in the grid.
pub(crate) fn alt(own: &str, column: &str, row: &str) -> String {
    if own.is_empty() {
        format!("{column}: {}", prose::plain(row))
    } else {
        own.to_owned()
    }
}

#[expect(unreachable_pub, reason = "written by the macro of askama")]
mod filters {
    use askama::Values;
    use askama::filters::Safe;

    /// Prose with its code and links.
    #[askama::filter_fn]
    pub(super) fn prose(text: impl AsRef<str>, _: &dyn Values) -> askama::Result<Safe<String>> {
        Ok(Safe(crate::prose::html(text.as_ref())))
    }

    /// Prose without them.
    #[askama::filter_fn]
    pub(super) fn plain(text: impl AsRef<str>, _: &dyn Values) -> askama::Result<String> {
        Ok(crate::prose::plain(text.as_ref()))
    }
}
