//! Pages for the tests.

#![allow(unreachable_pub, reason = "of two tests")]

use theriac_report::{
    Axis, Bar, Bars, Block, Cell, Check, Curve, Details, Fact, Finding, Head, ImageRow, Images,
    Kind, Line, Mark, Page, Picture, Section, Table, Verdict,
};

/// A page with the same text wherever one can stand.
pub fn filled(text: &str) -> Page {
    let cell = || Cell::new(text).of_kind(Kind::Bad);
    Page {
        title: text.into(),
        subtitle: text.into(),
        verdict: Some(Verdict {
            reasons: vec![text.into()],
            next: Some(text.into()),
            ..Verdict::new(Kind::Bad, text, text)
        }),
        sections: vec![
            Section::new(
                text,
                vec![
                    Block::Text(text.into()),
                    Block::Code(text.into()),
                    Block::Facts(vec![Fact::new(text, text)]),
                    Block::Table(Table {
                        caption: text.into(),
                        heads: vec![Head::text(text), Head::number(text)],
                        rows: vec![vec![cell(), cell()]],
                        note: text.into(),
                    }),
                    Block::Checks(vec![
                        Check::new(1, text, Finding::new(Kind::Bad, text), text),
                        Check::new(2, text, Finding::new(Kind::Good, text), text),
                    ]),
                    Block::Curve(Curve {
                        caption: text.into(),
                        x: Axis::new(text, text),
                        y: Axis::new(text, text),
                        lines: vec![Line::new(text, vec![(0.0, 0.0)])],
                        points: vec![Mark::new(text, 0.0, 0.0)],
                    }),
                    Block::Bars(Bars {
                        caption: text.into(),
                        unit: text.into(),
                        bars: vec![Bar::new(text, 1.0)],
                        full: None,
                    }),
                    Block::Images(Images {
                        caption: text.into(),
                        columns: vec![text.into()],
                        rows: vec![ImageRow::new(
                            text,
                            vec![Picture::grey(1, 1, vec![0]).with_alt(text)],
                        )],
                    }),
                    Block::Details(Details {
                        summary: text.into(),
                        blocks: vec![Block::Text(text.into())],
                    }),
                ],
            ),
            Section::new("two", vec![]),
        ],
    }
}
