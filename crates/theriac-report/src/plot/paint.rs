//! Colours, dashes and signs of a drawing.
//!
//! plotters knows colours alone. So it draws in colours that name parts (the ink, the dashed line
//! of series 3), and [`paint`] then writes what each part looks like.

use plotters::style::RGBColor;

use crate::prose::Escaped;

/// Units of the drawing for a pixel: plotters rounds to whole ones.
pub(super) const FINE: i32 = 10;

/// Lines, text.
pub(super) const INK: RGBColor = RGBColor(1, 0, 1);
/// Lines of the grid.
pub(super) const GRID: RGBColor = RGBColor(2, 0, 1);
/// What everything is drawn on.
pub(super) const GROUND: RGBColor = RGBColor(3, 0, 1);
const DASHED: u8 = 10;
const SOLID: u8 = 11;

/// The dashed line of a series.
pub(super) fn dashed(series: usize) -> RGBColor {
    RGBColor(DASHED, style(series), 1)
}

/// The signs of a series, and its area.
pub(super) fn solid(series: usize) -> RGBColor {
    RGBColor(SOLID, style(series), 1)
}

/// The looks repeat after 42 series, when colours and dashes meet again.
fn style(series: usize) -> u8 {
    (series % (COLOURS.len() * DASHES.len())) as u8
}

/// After Okabe and Ito, whom the colour-blind tell apart, darkened to stand out from white. The
/// page's style sheet has them too, with others for a dark ground.
const COLOURS: [&str; 7] = [
    "#0063a0", "#b84a00", "#00735a", "#9c3f77", "#7a5200", "#2a78a8", "#1c2024",
];
/// In pixels, on and off.
const DASHES: [&[i32]; 6] = [
    &[],
    &[8, 4],
    &[2, 3],
    &[10, 3, 2, 3],
    &[16, 4],
    &[5, 2, 2, 2, 2, 2],
];

/// The sign of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Circle,
    /// Corners, in tenths of the radius.
    Polygon(&'static [(i32, i32)]),
}

const SIGNS: [Sign; 6] = [
    Sign::Circle,
    Sign::Polygon(&[(-9, -9), (9, -9), (9, 9), (-9, 9)]),
    Sign::Polygon(&[(0, -12), (12, 9), (-12, 9)]),
    Sign::Polygon(&[(0, -13), (11, 0), (0, 13), (-11, 0)]),
    Sign::Polygon(&[(0, 12), (12, -9), (-12, -9)]),
    Sign::Polygon(&[
        (-4, -12),
        (4, -12),
        (4, -4),
        (12, -4),
        (12, 4),
        (4, 4),
        (4, 12),
        (-4, 12),
        (-4, 4),
        (-12, 4),
        (-12, -4),
        (-4, -4),
    ]),
];

pub(super) fn sign(series: usize) -> Sign {
    SIGNS[series % SIGNS.len()]
}

/// Where a drawing will stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    /// In the page, whose colours it follows; with the name of its class.
    Page(&'static str),
    /// In a file of its own, on white.
    File,
}

/// The drawing with its looks. `drawn` is what plotters wrote, `label` says what there is to see.
pub(super) fn paint(drawn: &str, size: (i32, i32), label: &str, ground: Ground) -> String {
    let (width, height) = size;
    let fine = format!("0 0 {} {}", width * FINE, height * FINE);
    let label = Escaped(label);
    let head = match ground {
        Ground::Page(class) => {
            format!(
                r#"<svg class="plot {class}" viewBox="{fine}" role="img" aria-label="{label}">"#
            )
        }
        Ground::File => format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="{fine}" role="img" aria-label="{label}"><rect width="100%" height="100%" fill="#fff"/>"##
        ),
    };
    let body = drawn.split_once('>').map_or("", |it| it.1);
    let mut out = head;
    let mut pieces = body.split("\"#");
    out += pieces.next().unwrap_or_default();
    for piece in pieces {
        let looks = piece.get(..6).and_then(|it| looks(it, ground));
        let dash = |it: &Looks| !it.dash.is_empty() && out.ends_with("stroke=");
        match looks {
            None => {
                out += "\"#";
                out += piece;
            }
            Some(it) => {
                let dash = dash(&it);
                out += &format!("\"{}", it.colour);
                if dash {
                    out += &format!("\" stroke-dasharray=\"{}", it.dash);
                }
                out += &piece[6..];
            }
        }
    }
    out.replace(" opacity=\"1\"", "").replace(" \"/>", "\"/>")
}

struct Looks {
    colour: String,
    dash: String,
}

fn looks(code: &str, ground: Ground) -> Option<Looks> {
    let code = u32::from_str_radix(code, 16).ok()?;
    let [_, part, index, 1] = code.to_be_bytes() else {
        return None;
    };
    let of_page = matches!(ground, Ground::Page(_));
    let either = |page: &str, file: &str| if of_page { page } else { file }.to_owned();
    let colour = match RGBColor(part, 0, 1) {
        INK => either("currentColor", COLOURS[6]),
        GRID => either("var(--rule)", "#d3d7db"),
        GROUND => either("var(--ground)", "#fff"),
        RGBColor(DASHED | SOLID, ..) => {
            let colour = usize::from(index) % COLOURS.len();
            either(&format!("var(--line-{colour})"), COLOURS[colour])
        }
        _ => return None,
    };
    let dash: Vec<String> = match part {
        DASHED => DASHES[usize::from(index) % DASHES.len()]
            .iter()
            .map(|it| (it * FINE).to_string())
            .collect(),
        _ => Vec::new(),
    };
    Some(Looks {
        colour,
        dash: dash.join(" "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_get_the_colours_of_their_ground() {
        let drawn = "<svg width=\"1\">\n<polyline fill=\"none\" opacity=\"1\" stroke=\"#0A0101\" \
                     points=\"1,2 3,4 \"/>\n<text fill=\"#010001\">\na &quot;#1\n</text></svg>";
        assert_eq!(
            paint(drawn, (2, 1), "a < b", Ground::Page("wide")),
            "<svg class=\"plot wide\" viewBox=\"0 0 20 10\" role=\"img\" aria-label=\"a &lt; \
             b\">\n<polyline fill=\"none\" stroke=\"var(--line-1)\" stroke-dasharray=\"80 40\" \
             points=\"1,2 3,4\"/>\n<text fill=\"currentColor\">\na &quot;#1\n</text></svg>"
        );
        let file = paint(drawn, (2, 1), "", Ground::File);
        assert!(
            file.contains("stroke=\"#b84a00\" stroke-dasharray=\"80 40\""),
            "{file}"
        );
        assert!(!file.contains("var("), "{file}");
    }

    #[test]
    fn the_style_sheet_has_the_same_colours() {
        let style = include_str!("../../templates/style.css");
        for (index, colour) in COLOURS.iter().enumerate() {
            assert!(
                style.contains(&format!("--line-{index}: {colour};")),
                "{index}"
            );
            let of_both_grounds = style.matches(&format!("--line-{index}: ")).count();
            assert_eq!(of_both_grounds, 2, "{index}");
        }
    }

    #[test]
    fn no_two_of_the_first_series_look_alike() {
        let looks = |series: usize| {
            let colour = COLOURS[series % COLOURS.len()];
            (
                colour,
                DASHES[series % DASHES.len()],
                format!("{:?}", sign(series)),
            )
        };
        for one in 0..42 {
            for other in 0..one {
                assert_ne!(looks(one), looks(other));
            }
        }
        // Without colour, dashes alone and signs alone tell six series apart.
        let plain = |series: usize| (DASHES[series], sign(series));
        for (one, other) in (0..6).flat_map(|one| (0..one).map(move |other| (one, other))) {
            assert_ne!(plain(one).0, plain(other).0);
            assert_ne!(plain(one).1, plain(other).1);
        }
    }
}
