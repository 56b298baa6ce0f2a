//! Text with `` `code` `` and links; all else stands for itself.

use std::fmt::Write as _;

/// A stretch of prose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span<'t> {
    Text(&'t str),
    Code(&'t str),
    Link { text: &'t str, target: &'t str },
}

/// The stretches of `prose`, in order. What only looks like code or a link is text.
pub(crate) fn spans(prose: &str) -> Vec<Span<'_>> {
    let mut spans = Vec::new();
    let (mut text, mut rest) = (0, 0);
    while let Some(offset) = prose[rest..].find(['`', '[']) {
        let start = rest + offset;
        match code(&prose[start..]).or_else(|| link(&prose[start..])) {
            None => rest = start + 1,
            Some((span, length)) => {
                if text < start {
                    spans.push(Span::Text(&prose[text..start]));
                }
                spans.push(span);
                (text, rest) = (start + length, start + length);
            }
        }
    }
    if text < prose.len() {
        spans.push(Span::Text(&prose[text..]));
    }
    spans
}

fn code(prose: &str) -> Option<(Span<'_>, usize)> {
    let (code, _) = prose.strip_prefix('`')?.split_once('`')?;
    (!code.trim().is_empty()).then_some((Span::Code(code), code.len() + 2))
}

fn link(prose: &str) -> Option<(Span<'_>, usize)> {
    let inner = prose.strip_prefix('[')?;
    let (text, after) = inner.split_at(inner.find(['[', ']'])?);
    let after = after.strip_prefix("](")?;
    let target = &after[..after.find(|it: char| it == ')' || !is_of_target(it))?];
    let known = |prefix| target.strip_prefix(prefix).is_some_and(|it| !it.is_empty());
    let holds = !text.trim().is_empty()
        && after[target.len()..].starts_with(')')
        && (known("#") || known("https://"));
    holds.then_some((Span::Link { text, target }, text.len() + target.len() + 4))
}

fn is_of_target(letter: char) -> bool {
    !letter.is_whitespace()
        && !letter.is_control()
        && !matches!(letter, '"' | '\'' | '<' | '>' | '\\' | '`' | '|')
}

/// The anchors within the page that prose links to.
pub(crate) fn anchors(prose: &str) -> impl Iterator<Item = &str> {
    spans(prose).into_iter().filter_map(|span| match span {
        Span::Link { target, .. } => target.strip_prefix('#'),
        _ => None,
    })
}

/// Prose without its marks, for labels that nobody sees.
pub(crate) fn plain(prose: &str) -> String {
    let text = |span| match span {
        Span::Text(text) | Span::Code(text) | Span::Link { text, .. } => text,
    };
    spans(prose).into_iter().map(text).collect()
}

/// Prose as HTML.
pub(crate) fn html(prose: &str) -> String {
    let mut out = String::with_capacity(prose.len());
    for span in spans(prose) {
        let _ = match span {
            Span::Text(text) => write!(out, "{}", Escaped(text)),
            Span::Code(code) => write!(out, "<code>{}</code>", Escaped(code)),
            Span::Link { text, target } => {
                write!(out, "<a href=\"{}\">{}</a>", Escaped(target), Escaped(text))
            }
        };
    }
    out
}

/// Text that HTML and XML show as it is.
pub(crate) struct Escaped<'t>(pub(crate) &'t str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                _ => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn code_and_links_are_the_only_marks() {
        let prose = "run `x < y`, see [checks](#checks) & [paper](https://a.org/b?c=d&e)*";
        assert_eq!(
            html(prose),
            "run <code>x &lt; y</code>, see <a href=\"#checks\">checks</a> &amp; \
             <a href=\"https://a.org/b?c=d&amp;e\">paper</a>*"
        );
        assert_eq!(plain(prose), "run x < y, see checks & paper*");
        assert_eq!(anchors(prose).collect::<Vec<_>>(), ["checks"]);
    }

    #[test]
    fn what_only_looks_like_a_mark_is_text() {
        for prose in [
            "interval [44.1, 50.3] (n = 1000)",
            "[x](javascript:alert(1))",
            "[x](http://a.org)",
            "[x](#)",
            "[x](https://)",
            "[](#a)",
            "[x](#a b)",
            "[x](https://a.org/\"onclick=\")",
            "one ` alone",
            "``",
            "[[",
        ] {
            assert_eq!(spans(prose), [Span::Text(prose)], "{prose}");
        }
        assert_eq!(html("[a [b](#c)"), "[a <a href=\"#c\">b</a>");
    }

    proptest! {
        /// No text makes a tag, leaves an attribute, or is lost.
        #[test]
        fn any_prose_is_shown_whole_and_makes_no_tag(prose in "[`\\[\\]()#<>&\"'a-z:/ é\\n]{0,60}") {
            let html = html(&prose);
            let tags: Vec<&str> = html
                .split('<')
                .skip(1)
                .map(|it| it.split_once('>').expect("a tag ends").0)
                .collect();
            for tag in tags {
                let link = tag.strip_prefix("a href=\"").and_then(|it| it.strip_suffix('"'));
                prop_assert!(
                    ["code", "/code", "/a"].contains(&tag)
                        || link.is_some_and(|it| !it.contains('"')),
                    "{tag}"
                );
            }
            let shown: usize = spans(&prose)
                .into_iter()
                .map(|span| match span {
                    Span::Text(text) => text.len(),
                    Span::Code(code) => code.len() + 2,
                    Span::Link { text, target } => text.len() + target.len() + 4,
                })
                .sum();
            prop_assert_eq!(shown, prose.len());
        }
    }
}
