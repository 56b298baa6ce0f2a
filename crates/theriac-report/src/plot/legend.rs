//! The legend of a drawing.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::paint::{FINE, dashed};
use super::{Area, Drawn, LETTER, Place, ROW, clean, draw_sign, interval, letters, text};
use crate::Curve;

/// The room of a sign beside its name.
const SWATCH: i32 = 36;

/// What the lines and signs are, under the drawing: inside it would lie on the lines.
pub(super) struct Legend<'c> {
    /// Name, its rows of text, and the left upper corner.
    entries: Vec<(&'c str, Vec<String>, Place)>,
    lines: usize,
    pub(super) bottom: i32,
}

impl<'c> Legend<'c> {
    pub(super) fn new(curve: &'c Curve, width: i32, top: i32) -> Self {
        let mut names: Vec<&str> = curve.lines.iter().map(|it| &*it.name).collect();
        for mark in &curve.points {
            if !names[curve.lines.len()..].contains(&&*mark.label) {
                names.push(&mark.label);
            }
        }
        let most = ((width - SWATCH - 8) * 10 / LETTER).max(1) as usize;
        let (mut x, mut y, mut tallest) = (0, top, 0);
        let mut entries = Vec::new();
        for name in names {
            let rows = wrapped(name, most);
            let longest = rows.iter().map(|it| it.chars().count()).max().unwrap_or(0);
            let needed = SWATCH + 24 + letters(longest);
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
            bottom: y + tallest + 4,
        }
    }

    /// The number of the series whose sign points of this label bear.
    pub(super) fn series(&self, label: &str) -> usize {
        let labels = self.entries.iter().skip(self.lines);
        self.lines + labels.take_while(|it| it.0 != label).count()
    }

    pub(super) fn draw(&self, root: &Area<'_>) -> Drawn {
        for (series, (_, rows, (x, y))) in self.entries.iter().enumerate() {
            let (x, y) = ((x + 4) * FINE, (y + ROW / 2) * FINE);
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
pub(super) fn wrapped(text: &str, letters: usize) -> Vec<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_broken_between_words_or_else_cut() {
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
        assert_eq!(wrapped("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(wrapped("", 3), [""]);
    }
}
