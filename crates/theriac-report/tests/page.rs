//! What every reader of a page may rely on.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod common;
#[path = "../examples/page/demo.rs"]
mod demo;

use std::fs;

use theriac_report::{
    Axis, Bar, Bars, Block, Cell, Check, Curve, Details, Error, Finding, Head, ImageRow, Images,
    Kind, Line, Mark, Page, Picture, Section, Table,
};

fn page(blocks: Vec<Block>) -> Page {
    Page {
        title: "Title".into(),
        sections: vec![Section::new("Part", blocks)],
        ..Page::default()
    }
}

/// The message with which all three forms refuse the page.
fn refusal(page: &Page) -> String {
    let message = page.validate().unwrap_err().to_string();
    for other in [page.html(), page.markdown(), page.json()] {
        assert_eq!(other.unwrap_err().to_string(), message);
    }
    message
}

#[test]
fn no_text_becomes_a_tag() {
    let evil = "<script>alert('\"')</script>";
    let page = common::filled(evil);
    let html = page.html().unwrap();
    assert!(
        !html.contains("<script") && !html.contains("alert('"),
        "{html}"
    );
    let dir = tempfile::tempdir().unwrap();
    page.write(dir.path()).unwrap();
    let svg = fs::read_dir(dir.path().join("images"))
        .unwrap()
        .map(|it| it.unwrap().path())
        .find(|it| it.extension().is_some_and(|it| it == "svg"))
        .unwrap();
    assert!(!fs::read_to_string(svg).unwrap().contains("<script"));
    let markdown = page.markdown().unwrap();
    // In a fence everything is shown as it stands.
    let outside = markdown.replace(&format!("```text\n{evil}\n```"), "");
    assert!(!outside.replace("\\<", "").contains("<script"), "{outside}");
}

#[test]
fn the_page_needs_nothing_from_outside() {
    let html = demo::page().html().unwrap();
    for source in html.split("src=").skip(1) {
        assert!(
            source.starts_with("\"data:image/png;base64,"),
            "{}",
            &source[..40]
        );
    }
    for (index, _) in html
        .match_indices("http")
        .filter(|it| !html[it.0..].starts_with("http-equiv"))
    {
        assert!(
            html[..index].ends_with("<a href=\""),
            "{}",
            &html[index - 40..index + 40]
        );
    }
    for outside in ["url(", "@import", "<script", "<iframe", "<object", "srcset"] {
        assert!(!html.contains(outside), "{outside}");
    }
}

#[test]
fn every_anchor_is_there_once() {
    let html = demo::page().html().unwrap();
    let values = |attribute: &str| -> Vec<String> {
        html.split(attribute)
            .skip(1)
            .map(|it| it.split('"').next().unwrap().to_owned())
            .collect()
    };
    let ids = values(" id=\"");
    for target in values("href=\"#") {
        assert_eq!(
            ids.iter().filter(|it| **it == target).count(),
            1,
            "{target}"
        );
    }
    assert!(ids.len() > 5, "{ids:?}");
    let markdown = demo::page().markdown().unwrap();
    assert!(
        markdown.contains("<a id=\"check-larger\"></a>"),
        "{markdown}"
    );
}

#[test]
fn the_same_page_gives_the_same_bytes() {
    let (one, other) = (demo::page(), demo::page());
    assert_eq!(one.html().unwrap(), other.html().unwrap());
    assert_eq!(one.markdown().unwrap(), other.markdown().unwrap());
    assert_eq!(one.json().unwrap(), other.json().unwrap());
}

#[test]
fn json_gives_the_same_page_back() {
    let page = demo::page();
    let read: Page = serde_json::from_str(&page.json().unwrap()).unwrap();
    assert_eq!(read, page);
}

#[test]
fn files_are_whole_and_nothing_is_left_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("new/report");
    let index = demo::page().write(&folder).unwrap();
    assert_eq!(index, folder.join("index.html"));
    demo::page().write(&folder).unwrap();
    let names = |folder: &std::path::Path| {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        names(&folder),
        ["images", "index.html", "report.json", "report.md"]
    );
    let markdown = fs::read_to_string(folder.join("report.md")).unwrap();
    let images = names(&folder.join("images"));
    assert_eq!(images.len(), 12);
    for image in images {
        assert!(markdown.contains(&format!("](images/{image})")), "{image}");
    }
}

#[test]
fn a_page_that_cannot_be_shown_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let bad = page(vec![Block::Text("[x](#nowhere)".into())]);
    assert!(bad.write(dir.path()).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = page(vec![]).write(&file).unwrap_err();
    assert!(matches!(error, Error::Io { action: "make", .. }), "{error}");
}

#[test]
fn markdown_tables_keep_their_columns() {
    let table = Table {
        caption: "a | b".into(),
        heads: vec![Head::text("x | y"), Head::number("n")],
        rows: vec![vec![
            Cell::new("`p | q` of\n| r"),
            Cell::new("47.2 [44.1, 50.3]").of_kind(Kind::Doubtful),
        ]],
        note: "1. not a list".into(),
    };
    let markdown = page(vec![Block::Table(table)]).markdown().unwrap();
    let wanted = "**a \\| b**\n\n| x \\| y | n |\n| --- | ---: |\n\
                  | `p \\| q` of \\| r | ? 47.2 [44.1, 50.3] |\n\n1\\. not a list\n";
    assert!(markdown.ends_with(wanted), "{markdown}");
}

#[test]
fn markdown_shows_marks_as_they_are() {
    let texts = [
        (
            "# no *heading* <b> a_b _c_",
            "\\# no \\*heading\\* \\<b\\> a_b \\_c\\_",
        ),
        (
            "[x](http://a.org) [1]: [^2]",
            "\\[x\\](http://a.org) [1\\]: \\[^2]",
        ),
        ("see [a](#part), `x|y`", "see [a](#part), `x|y`"),
    ];
    for (prose, wanted) in texts {
        let markdown = page(vec![Block::Text(prose.into())]).markdown().unwrap();
        assert_eq!(markdown, format!("# Title\n\n## Part\n\n{wanted}\n"));
    }
}

#[test]
fn what_failed_comes_first_and_what_passed_is_folded() {
    let check = |number, kind, word: &str| {
        Check::new(
            number,
            format!("name {number}"),
            Finding::new(kind, word),
            "why",
        )
    };
    let html = page(vec![Block::Checks(vec![
        check(1, Kind::Good, "passed"),
        check(2, Kind::Doubtful, "questionable"),
        check(3, Kind::Neutral, "not run"),
        check(4, Kind::Bad, "invalid"),
        check(5, Kind::Good, "passed"),
    ])])
    .html()
    .unwrap();
    let place = |text: &str| html.find(text).unwrap_or_else(|| panic!("no {text}"));
    assert!(place("4. name 4") < place("2. name 2"));
    assert!(place("2. name 2") < place("<summary>2 passed, 1 not run</summary>"));
    assert!(place("<summary>") < place("1. name 1"));
    assert!(place("5. name 5") < place("3. name 3"));
    assert!(html.contains("✗</span> invalid") && html.contains("?</span> questionable"));
}

#[test]
fn plots_take_finite_numbers_alone() {
    let curve = |line: Line, mark: Mark| {
        page(vec![Block::Curve(Curve {
            caption: "curve".into(),
            lines: vec![line],
            points: vec![mark],
            ..Curve::default()
        })])
    };
    let good = Mark::new("m", 0.0, 0.0);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e200] {
        let message = refusal(&curve(
            Line::new("l", vec![(0.0, 1.0), (1.0, bad)]),
            good.clone(),
        ));
        assert_eq!(
            message,
            format!(
                "section \"Part\", figure \"curve\": y of point 2 of line \"l\" is {bad}: plots \
                 take numbers up to 1e100: leave the point out, and say so"
            )
        );
        refusal(&curve(Line::new("l", vec![(bad, 1.0)]), good.clone()));
        refusal(&curve(Line::default(), Mark::new("m", 0.0, bad)));
        refusal(&curve(Line::default(), good.clone().within(0.0, bad)));
        let band = vec![(0.0, bad, 1.0)];
        refusal(&curve(
            Line {
                band,
                ..Line::default()
            },
            good.clone(),
        ));
        refusal(&page(vec![Block::Bars(Bars {
            bars: vec![Bar::new("b", bad)],
            ..Bars::default()
        })]));
    }
    let message = refusal(&curve(
        Line::new("l", vec![(1.0, 0.0), (0.5, 0.0)]),
        good.clone(),
    ));
    assert!(
        message.contains("x of point 2 of line \"l\" is 0.5, after 1: x never falls"),
        "{message}"
    );
    let message = refusal(&curve(Line::default(), good.within(1.0, 0.5)));
    assert!(
        message.contains("the interval of point \"m\" is (1, 0.5)"),
        "{message}"
    );
}

#[test]
fn axes_and_bars_that_make_no_sense_are_refused() {
    let axes = |x: Axis, at: f64| {
        page(vec![Block::Curve(Curve {
            x,
            points: vec![Mark::new("m", at, 0.0)],
            ..Curve::default()
        })])
    };
    let axis = Axis::new("queries", "");
    let message = refusal(&axes(axis.clone().log(), 0.0));
    assert!(
        message.contains("x of point \"m\" is 0: a logarithmic axis"),
        "{message}"
    );
    let message = refusal(&axes(axis.between(1.0, 1.0), 1.0));
    assert!(
        message.contains("the range of axis x is (1, 1)"),
        "{message}"
    );

    let bars = |value, full| {
        page(vec![Block::Bars(Bars {
            bars: vec![Bar::new("b", value)],
            full,
            ..Bars::default()
        })])
    };
    assert!(refusal(&bars(-1.0, None)).contains("bars begin at 0"));
    assert!(refusal(&bars(101.0, Some(100.0))).contains("raise `full`"));
    assert!(refusal(&bars(0.0, Some(0.0))).contains("it lies above 0"));
    bars(0.0, None).html().unwrap();
}

#[test]
fn rows_and_pictures_that_do_not_fit_are_refused() {
    let message = refusal(&page(vec![Block::Table(Table {
        caption: "t".into(),
        heads: vec![Head::text("a"), Head::text("b")],
        rows: vec![vec!["1".into(), "2".into()], vec!["name".into()]],
        note: String::new(),
    })]));
    assert_eq!(
        message,
        "section \"Part\", table \"t\": row 2 (\"name\") has 1 cells, expected 2: one for each column"
    );
    let images = |pictures| {
        page(vec![Block::Images(Images {
            caption: "i".into(),
            columns: vec!["clean".into()],
            rows: vec![ImageRow::new("frog", pictures)],
        })])
    };
    assert!(refusal(&images(vec![])).contains("row 1 (\"frog\") has 0 pictures, expected 1"));
    let message = refusal(&images(vec![Picture::rgb(2, 2, vec![0; 4])]));
    assert_eq!(
        message,
        "section \"Part\", images \"i\", row 1 (\"frog\"), column \"clean\": 4 bytes for 2 x 2 \
         pixels of 3 bytes, expected 12: give the bytes row by row, channels last"
    );
}

#[test]
fn anchors_and_titles_that_lead_nowhere_are_refused() {
    let message = refusal(&page(vec![Block::Text("see [x](#nowhere)".into())]));
    assert_eq!(
        message,
        "section \"Part\": the link to \"#nowhere\" leads nowhere; known anchors: part"
    );
    let mut twice = page(vec![]);
    twice.sections.push(Section::new("part", vec![]));
    assert_eq!(
        refusal(&twice),
        "anchor \"part\" of section \"part\" is that of section \"Part\" too: give one of them \
         another id"
    );
    twice.sections[1].id = "another".into();
    assert!(
        twice
            .markdown()
            .unwrap()
            .contains("<a id=\"another\"></a>\n\n## part")
    );
    twice.sections[1].id = "an other".into();
    assert!(refusal(&twice).contains("the anchor is \"an other\""));
    twice.sections[1] = Section::new("???", vec![]);
    assert!(refusal(&twice).contains("the anchor is \"\""));
    assert!(refusal(&Page::default()).starts_with("the page: the title is empty"));
}

#[test]
fn blocks_within_blocks_have_a_bottom() {
    let mut block = Block::Text("deep".into());
    for _ in 0..8 {
        let blocks = vec![block];
        block = Block::Details(Details {
            summary: "more".into(),
            blocks,
        });
    }
    page(vec![block.clone()]).html().unwrap();
    let blocks = vec![block];
    block = Block::Details(Details {
        summary: "more".into(),
        blocks,
    });
    assert!(refusal(&page(vec![block])).contains("more than 8"));
}

#[test]
fn figures_without_points_or_with_thousands_are_drawn() {
    let curve = |lines| {
        page(vec![Block::Curve(Curve {
            lines,
            ..Curve::default()
        })])
        .html()
        .unwrap()
        .len()
    };
    let empty = curve(vec![]);
    let long = (0..100_000)
        .map(|it| (f64::from(it), f64::from(it % 97)))
        .collect();
    let long = curve(vec![Line::step("long", long)]);
    assert!(long < empty + 200_000, "{long}");
}
