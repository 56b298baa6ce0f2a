//! The page as Markdown, with figures and pictures as files beside it.

use std::fmt::Write as _;

use crate::html::{alt, bar_values, counts, sorted};
use crate::model::anchor;
use crate::plot::{self, Format, Ground, describe};
use crate::prose::{self, Escaped, Span};
use crate::{Bars, Block, Check, Curve, Images, Page, Result, Section, Table, Verdict};

/// The folder of the files beside the Markdown.
pub(crate) const IMAGES: &str = "images";

/// The page with the files that it shows: path beside it, bytes.
pub(crate) struct Markdown {
    pub(crate) text: String,
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

impl Page {
    /// The page as Markdown. The figures and pictures that it shows lie in the folder `images`
    /// beside it, where [`write`](Self::write) puts them.
    ///
    /// # Errors
    /// As [`html`](Self::html).
    pub fn markdown(&self) -> Result<String> {
        Ok(self.markdown_with_files()?.text)
    }

    pub(crate) fn markdown_with_files(&self) -> Result<Markdown> {
        self.validate()?;
        let mut out = Writer::default();
        out.paragraph(&format!("# {}", literal(&self.title)));
        if !self.subtitle.is_empty() {
            out.paragraph(&line(&self.subtitle));
        }
        if let Some(verdict) = &self.verdict {
            out.verdict(verdict);
        }
        if self.sections.len() > 1 {
            for section in &self.sections {
                let _ = writeln!(out.text, "- [{}](#{})", literal(&section.title), section.id);
            }
            out.text.push('\n');
        }
        for section in &self.sections {
            out.section(section)?;
        }
        out.text.truncate(out.text.trim_end().len());
        out.text.push('\n');
        Ok(Markdown {
            text: out.text,
            files: out.files,
        })
    }
}

#[derive(Default)]
struct Writer {
    text: String,
    files: Vec<(String, Vec<u8>)>,
}

impl Writer {
    fn paragraph(&mut self, text: &str) {
        self.text += text;
        self.text += "\n\n";
    }

    /// Keeps a file and returns its path.
    fn file(&mut self, extension: &str, bytes: Vec<u8>) -> String {
        let path = format!("{IMAGES}/{}.{extension}", self.files.len() + 1);
        self.files.push((path.clone(), bytes));
        path
    }

    fn verdict(&mut self, verdict: &Verdict) {
        let (sign, headline) = (verdict.kind.sign(), literal(&verdict.headline));
        let mut parts = vec![format!("**{sign} {headline}**")];
        if !verdict.text.is_empty() {
            parts.push(line(&verdict.text));
        }
        if !verdict.reasons.is_empty() {
            let reasons = verdict.reasons.iter().map(|it| format!("- {}", line(it)));
            parts.push(reasons.collect::<Vec<_>>().join("\n> "));
        }
        if let Some(next) = &verdict.next {
            parts.push(format!("**Next:** {}", inline(next)));
        }
        self.paragraph(&format!("> {}", parts.join("\n>\n> ")));
    }

    fn section(&mut self, section: &Section) -> Result<()> {
        if section.id != anchor(&section.title) {
            self.paragraph(&place(&section.id));
        }
        self.paragraph(&format!("## {}", literal(&section.title)));
        self.blocks(&section.blocks)
    }

    fn blocks(&mut self, blocks: &[Block]) -> Result<()> {
        for block in blocks {
            match block {
                Block::Text(text) => self.paragraph(&line(text)),
                Block::Code(code) => self.code(code),
                Block::Facts(facts) => {
                    for fact in facts {
                        let (name, value) = (literal(&fact.name), inline(&fact.value));
                        let _ = writeln!(self.text, "- **{name}:** {value}");
                    }
                    self.text.push('\n');
                }
                Block::Table(table) => self.table(table),
                Block::Checks(checks) => self.checks(checks),
                Block::Curve(curve) => self.curve(curve)?,
                Block::Bars(bars) => self.bars(bars),
                Block::Images(images) => self.images(images)?,
                Block::Details(details) => {
                    self.fold(&details.summary);
                    self.blocks(&details.blocks)?;
                    self.paragraph("</details>");
                }
            }
        }
        Ok(())
    }

    fn fold(&mut self, summary: &str) {
        let summary = one_line(summary);
        self.paragraph(&format!(
            "<details>\n<summary>{}</summary>",
            Escaped(&summary)
        ));
    }

    fn code(&mut self, code: &str) {
        let runs = code.split(|it| it != '`').map(str::len);
        let fence = "`".repeat(runs.max().unwrap_or(0).max(2) + 1);
        self.paragraph(&format!(
            "{fence}text\n{}\n{fence}",
            code.trim_end_matches('\n')
        ));
    }

    fn caption(&mut self, caption: &str) {
        if !caption.is_empty() {
            self.paragraph(&format!("**{}**", inline(caption)));
        }
    }

    fn table(&mut self, table: &Table) {
        self.caption(&table.caption);
        let heads = table.heads.iter().map(|it| (literal(&it.text), it.numeric));
        let rows = table.rows.iter().map(|row| {
            row.iter()
                .map(|cell| match cell.kind {
                    Some(kind) => format!("{} {}", kind.sign(), cell_text(&cell.text)),
                    None => cell_text(&cell.text),
                })
                .collect()
        });
        self.grid(heads.collect(), rows);
        if !table.note.is_empty() {
            self.paragraph(&line(&table.note));
        }
    }

    /// A table of finished cells; the heads say which columns stand to the right.
    fn grid(&mut self, heads: Vec<(String, bool)>, rows: impl Iterator<Item = Vec<String>>) {
        let (names, numeric): (Vec<String>, Vec<bool>) = heads.into_iter().unzip();
        let rule = |numeric: &bool| if *numeric { "---:" } else { "---" };
        let rules = numeric.iter().map(|it| rule(it).to_owned()).collect();
        for row in [names, rules].into_iter().chain(rows) {
            let _ = writeln!(self.text, "| {} |", row.join(" | "));
        }
        self.text.push('\n');
    }

    fn checks(&mut self, checks: &[Check]) {
        let (open, folded) = sorted(checks);
        if !open.is_empty() {
            self.check_list(&open);
        }
        if !folded.is_empty() {
            self.fold(&counts(&folded));
            self.check_list(&folded);
            self.paragraph("</details>");
        }
    }

    fn check_list(&mut self, checks: &[&Check]) {
        for check in checks {
            let place = check.id.as_deref().map_or(String::new(), place);
            let finding = &check.finding;
            let _ = write!(
                self.text,
                "- {place}**{}. {}:** {} {}.",
                check.number,
                literal(&check.name),
                finding.kind.sign(),
                literal(&finding.word)
            );
            let next = Some(&check.next_step).filter(|it| !it.is_empty());
            let source = Some(&check.source).filter(|it| !it.is_empty());
            let parts = [
                (!check.explanation.is_empty()).then(|| inline(&check.explanation)),
                next.map(|it| format!("**Next:** {}", inline(it))),
                source.map(|it| format!("*Source:* {}", inline(it))),
            ];
            for part in parts.into_iter().flatten() {
                let _ = write!(self.text, " {part}");
            }
            self.text.push('\n');
        }
        self.text.push('\n');
    }

    fn curve(&mut self, curve: &Curve) -> Result<()> {
        self.caption(&curve.caption);
        let svg = plot::svg(curve, Format::WIDE, Ground::File)?;
        let path = self.file("svg", svg.into_bytes());
        self.paragraph(&format!("![{}]({path})", literal(&describe(curve))));
        Ok(())
    }

    fn bars(&mut self, bars: &Bars) {
        self.caption(&bars.caption);
        let rows = bars.bars.iter().zip(bar_values(bars));
        self.grid(
            vec![(String::new(), false), (literal(&bars.unit), true)],
            rows.map(|(bar, value)| vec![cell_text(&bar.name), value]),
        );
    }

    fn images(&mut self, images: &Images) -> Result<()> {
        self.caption(&images.caption);
        let heads = std::iter::once(String::new())
            .chain(images.columns.iter().map(|it| literal(it)))
            .map(|head| (head, false));
        let mut rows = Vec::new();
        for row in &images.rows {
            let mut cells = vec![cell_text(&row.label)];
            for (column, picture) in images.columns.iter().zip(&row.pictures) {
                let path = self.file("png", picture.png(picture.enlargement())?);
                let alt = literal(&alt(&picture.alt, column, &row.label));
                cells.push(format!("![{alt}]({path})"));
            }
            rows.push(cells);
        }
        self.grid(heads.collect(), rows.into_iter());
        Ok(())
    }
}

/// An anchor of its own.
fn place(id: &str) -> String {
    format!("<a id=\"{id}\"></a>")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Plain text that Markdown leaves alone, in a table and in a link too.
fn literal(text: &str) -> String {
    escaped(&one_line(text), true)
}

/// The text without any mark. Intervals stay readable where brackets begin no link.
fn escaped(text: &str, in_link: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let next = letters.peek().copied().unwrap_or(' ');
        let special = match letter {
            '\\' | '`' | '*' | '<' | '>' | '|' | '~' | '&' => true,
            '[' => in_link || out.is_empty() || next == '^',
            ']' => in_link || matches!(next, '(' | '[' | ':'),
            // Within a word it is no mark, and names are full of it.
            '_' => !before.is_alphanumeric() || !next.is_alphanumeric(),
            _ => false,
        };
        if special {
            out.push('\\');
        }
        out.push(letter);
        before = letter;
    }
    out
}

/// Prose within a line.
fn inline(prose: &str) -> String {
    let prose = one_line(prose);
    let mut out = String::with_capacity(prose.len());
    for span in prose::spans(&prose) {
        match span {
            Span::Text(text) => out += &escaped(text, false),
            Span::Code(code) => {
                let _ = write!(out, "`{code}`");
            }
            Span::Link { text, target } => {
                let _ = write!(out, "[{}]({target})", literal(text));
            }
        }
    }
    out
}

/// Prose in a cell, where even the bars of code would end the cell.
fn cell_text(prose: &str) -> String {
    let mut out = String::new();
    for letter in inline(prose).chars() {
        if letter == '|' && !out.ends_with('\\') {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

/// Prose as a line of its own, which must not begin like a heading or a list.
fn line(prose: &str) -> String {
    let text = inline(prose);
    let digits = text.chars().take_while(char::is_ascii_digit).count();
    let marks = |it: char| matches!(it, '#' | '+' | '-' | '=');
    if digits > 0 && text[digits..].starts_with(['.', ')']) {
        format!("{}\\{}", &text[..digits], &text[digits..])
    } else if text.starts_with(marks) {
        format!("\\{text}")
    } else {
        text
    }
}
