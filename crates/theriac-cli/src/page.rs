//! An evaluation as a page.

use anyhow::Result;
use candle_core::{DType, Device};
use theriac_data::{Dataset as _, Images};
use theriac_eval::evaluation::{Image, Role, Store, entry_of};
use theriac_eval::{Evaluation, Finding, Mean, Verdict};
use theriac_report as report;
use theriac_report::{
    Axis, Bar, Bars, Block, Cell, Details, Fact, Head, Kind, Line, Page, Section,
};

/// Images shown at each end of the list.
const SHOWN: usize = 5;

pub(crate) fn page(evaluation: &Evaluation, store: &Store, data: &Images) -> Result<Page> {
    let manifest = &evaluation.manifest;
    let (subject, plan) = (&manifest.subject, &manifest.plan);
    Ok(Page {
        title: format!("Robustness of {}", subject.model),
        subtitle: format!(
            "{} on {} images of {}, {}",
            subject.more.get("arch").map_or("a model", String::as_str),
            evaluation.table.images.len(),
            subject.data,
            plan.budget
        ),
        verdict: Some(verdict(evaluation)),
        sections: vec![
            Section::new("Threat model", vec![threat_model(evaluation)]),
            Section::new("Accuracy", accuracy(evaluation)),
            Section::new("Security curve", curve(evaluation)),
            Section::new("Attacks", attacks(evaluation)),
            Section::new("Checks", checks(evaluation)),
            Section::new("Images", images(evaluation, store, data)?),
            Section::new("Classes", vec![classes(evaluation)]),
            Section::new("Manifest", self::manifest(evaluation)?),
        ],
    })
}

fn kind_of(verdict: Verdict) -> Kind {
    match verdict {
        Verdict::Reliable => Kind::Good,
        Verdict::Questionable => Kind::Doubtful,
        Verdict::Invalid => Kind::Bad,
    }
}

fn percent(mean: Mean) -> String {
    format!("{:.1} %", 100.0 * mean.value())
}

fn interval(mean: Mean) -> String {
    let (low, high) = mean.interval();
    format!("{:.1} to {:.1} %", 100.0 * low, 100.0 * high)
}

fn verdict(evaluation: &Evaluation) -> report::Verdict {
    let (word, text) = match evaluation.verdict {
        Verdict::Reliable => (
            "Reliable",
            "No check speaks against this number. Checks can refute a robust accuracy, not prove it: \
             an attack written for this very model may still break more.",
        ),
        Verdict::Questionable => (
            "Questionable",
            "The true robust accuracy may be lower than this number, for the reasons below.",
        ),
        Verdict::Invalid => (
            "Invalid",
            "This number is not the robust accuracy of the model, for the reasons below.",
        ),
    };
    let kind = kind_of(evaluation.verdict);
    let headline = format!("{word}: {} robust accuracy", percent(evaluation.robust));
    let reasons = evaluation.reasons();
    report::Verdict {
        reasons: reasons
            .map(|check| {
                format!(
                    "[{}](#{}): {}",
                    check.name,
                    anchor(check.name),
                    check.detail
                )
            })
            .collect(),
        next: evaluation.next_step().map(str::to_owned),
        ..report::Verdict::new(kind, headline, text)
    }
}

fn anchor(name: &str) -> String {
    format!("check-{}", name.replace(' ', "-"))
}

fn threat_model(evaluation: &Evaluation) -> Block {
    let plan = &evaluation.manifest.plan;
    let detail = evaluation.checks.first().map_or("", |check| &check.detail);
    let noise = match plan.draws {
        1 => "none: the model is judged by one pass".to_owned(),
        draws => format!("every prediction is the share of {draws} draws"),
    };
    Block::Facts(vec![
        Fact::new("Ball", plan.budget.to_string()),
        Fact::new("Pixels", "in [0, 1]"),
        Fact::new("Attacker", detail),
        Fact::new("Randomness of the model", noise),
    ])
}

fn accuracy(evaluation: &Evaluation) -> Vec<Block> {
    let row = |name: &str, mean: Mean, text: &str| {
        vec![
            Cell::new(name),
            Cell::new(percent(mean)),
            Cell::new(interval(mean)),
            Cell::new(text),
        ]
    };
    let table = report::Table {
        caption: format!("Accuracy over {} images", evaluation.table.images.len()),
        heads: vec![
            Head::text("accuracy"),
            Head::number("share"),
            Head::number("95 % interval"),
            Head::text("meaning"),
        ],
        rows: vec![
            row("clean", evaluation.clean, "no attack"),
            row(
                "robust",
                evaluation.robust,
                "resists everything that was tried in the ball, image by image",
            ),
            row(
                "ensemble alone",
                evaluation.after_ensemble,
                "resists the ensemble, as AutoAttack counts",
            ),
            row(
                "8 bits",
                evaluation.robust_rounded,
                "adversarial pixels rounded to k/255 inside the ball",
            ),
        ],
        note: String::new(),
    };
    vec![Block::Table(table)]
}

fn curve(evaluation: &Evaluation) -> Vec<Block> {
    let curve = &evaluation.curve;
    let norm = evaluation.manifest.plan.budget.norm();
    if curve.steps.is_empty() && curve.marks.len() < 2 {
        return vec![Block::Text(
            "No search for the smallest distance ran.".to_owned(),
        )];
    }
    let shares = |points: &[(f64, f64)]| points.iter().map(|(x, y)| (*x, 100.0 * y)).collect();
    let last = curve.steps.last();
    let mut lines = Vec::new();
    if !curve.steps.is_empty() {
        lines.push(Line::step("smallest distance known", shares(&curve.steps)));
    }
    let points = curve.marks.iter().map(|mark| {
        let (low, high) = mark.accuracy.interval();
        report::Mark::new(&mark.label, mark.eps, 100.0 * mark.accuracy.value())
            .within(100.0 * low, 100.0 * high)
    });
    let mut blocks = vec![Block::Curve(report::Curve {
        caption: "Accuracy at every radius. The staircase falls where a search for the smallest \
                  distance broke an image; points are attacks of one radius, with 95 % intervals, \
                  on all images (`robust`) or on the first few."
            .to_owned(),
        x: Axis::new(format!("radius, {norm}"), ""),
        y: Axis::new("accuracy", "%").between(0.0, 100.0),
        lines,
        points: points.collect(),
    })];
    if let Some((eps, left)) = last.filter(|(_, left)| *left > 0.0) {
        blocks.push(Block::Text(format!(
            "Beyond {eps:.4} no adversarial image is known for the remaining {:.1} %.",
            100.0 * left
        )));
    }
    blocks
}

fn attacks(evaluation: &Evaluation) -> Vec<Block> {
    let rows = evaluation.table.rows.iter();
    let cells = rows.filter(|row| row.role != Role::Clean).map(|row| {
        let per_image = |count: u64| format!("{:.0}", count as f64 / row.images.max(1) as f64);
        vec![
            Cell::new(&row.stage),
            Cell::new(&row.attack),
            Cell::new(row.images.to_string()),
            Cell::new(row.broken.to_string()),
            Cell::new(row.first.to_string()),
            Cell::new(per_image(row.gradients)),
            Cell::new(per_image(row.forwards)),
        ]
    });
    let table = report::Table {
        caption: "Which attack broke how many images, and at what cost".to_owned(),
        heads: vec![
            Head::text("stage"),
            Head::text("attack"),
            Head::number("images"),
            Head::number("broken"),
            Head::number("first"),
            Head::number("forward and backward an image"),
            Head::number("forward alone an image"),
        ],
        rows: cells.collect(),
        note: "Attacks of the ensemble meet the images that resist those before; `first` counts images \
               that no stage before had broken."
            .to_owned(),
    };
    let first = evaluation.table.rows.iter().filter(|row| row.first > 0);
    let bars: Vec<Bar> = first
        .map(|row| Bar::new(&row.stage, row.first as f64))
        .collect();
    let mut blocks = vec![Block::Table(table)];
    if !bars.is_empty() {
        blocks.push(Block::Bars(Bars {
            caption: "Images by the first stage that broke them".to_owned(),
            unit: "images".to_owned(),
            bars,
            full: Some(evaluation.table.images.len() as f64),
        }));
    }
    blocks
}

fn checks(evaluation: &Evaluation) -> Vec<Block> {
    let checks = evaluation.checks.iter().map(|check| {
        let kind = match check.finding {
            Finding::Passed => Kind::Good,
            Finding::Stated | Finding::NotApplicable | Finding::NotRun => Kind::Neutral,
            Finding::Questionable => Kind::Doubtful,
            Finding::Invalid => Kind::Bad,
        };
        let entry = entry_of(check);
        let failed = check.finding >= Finding::Questionable;
        let sign = entry
            .and_then(|entry| entry.sign)
            .map_or(String::new(), |sign| {
                format!(" Of the five signs of obfuscated gradients: \"{sign}\".")
            });
        let meaning = entry.map_or("", |entry| entry.meaning);
        report::Check {
            source: entry.map_or(String::new(), |entry| entry.source.to_owned()),
            next_step: match entry {
                Some(entry) if failed => entry.remedy.to_owned(),
                _ => String::new(),
            },
            id: Some(anchor(check.name)),
            ..report::Check::new(
                entry.map_or(0, |entry| entry.number.into()),
                check.name,
                report::Finding::new(kind, check.finding.to_string()),
                format!("{meaning}{sign} Found: {}.", check.detail),
            )
        }
    });
    vec![Block::Checks(checks.collect())]
}

/// The images that were hardest and easiest to break, beside what broke them.
fn images(evaluation: &Evaluation, store: &Store, data: &Images) -> Result<Vec<Block>> {
    let mut broken: Vec<&Image> = evaluation.table.images.iter().collect();
    broken.retain(|image| image.broken_by.is_some());
    let far = |image: &Image| image.nearest.or(image.distance).unwrap_or(0.0);
    broken.sort_by(|a, b| far(a).total_cmp(&far(b)));
    if broken.is_empty() {
        return Ok(vec![Block::Text("No image was broken.".to_owned())]);
    }
    let easiest: Vec<&Image> = broken.iter().take(SHOWN).copied().collect();
    let rest = &broken[easiest.len()..];
    let hardest: Vec<&Image> = rest.iter().rev().take(SHOWN).copied().collect();
    let mut blocks = Vec::new();
    for (caption, chosen) in [
        ("Easiest to break, nearest first", easiest),
        ("Hardest of the broken, farthest first", hardest),
    ] {
        let mut rows = Vec::new();
        for image in chosen {
            rows.extend(row(image, store, data)?);
        }
        if !rows.is_empty() {
            blocks.push(Block::Images(report::Images {
                caption: format!("{caption}. Differences are stretched to the full range."),
                columns: ["clean", "adversarial", "difference"]
                    .map(str::to_owned)
                    .to_vec(),
                rows,
            }));
        }
    }
    Ok(blocks)
}

fn row(image: &Image, store: &Store, data: &Images) -> Result<Option<report::ImageRow>> {
    let Some(stage) = &image.broken_by else {
        return Ok(None);
    };
    let examples = store.examples(stage)?;
    let Some((_, moved)) = examples.iter().find(|(at, _)| *at == image.position) else {
        return Ok(None);
    };
    let clean = data.batch(&[image.position], DType::F64, &Device::Cpu)?;
    let clean = clean.pixels.tensor().get(0)?;
    let moved = moved.to_dtype(DType::F64)?;
    let [channels, height, width] = data.shape();
    if channels != 1 && channels != 3 {
        return Ok(None);
    }
    let difference = (&moved - &clean)?;
    let most = difference
        .abs()?
        .flatten_all()?
        .max(0)?
        .to_scalar::<f64>()?;
    let stretched = difference.affine(0.5 / most.max(1e-12), 0.5)?;
    let picture = |values: &candle_core::Tensor, alt: String| -> Result<report::Picture> {
        let bytes = values.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f64>()?;
        let bytes = bytes
            .iter()
            .map(|v| (v * 255.0).round().clamp(0.0, 255.0) as u8);
        let (width, height, bytes) = (width as u32, height as u32, bytes.collect());
        let picture = match channels {
            1 => report::Picture::grey(width, height, bytes),
            _ => report::Picture::rgb(width, height, bytes),
        };
        Ok(picture.with_alt(alt))
    };
    let id = image.sample;
    let pictures = vec![
        picture(&clean, format!("image {id}, clean"))?,
        picture(&moved, format!("image {id}, adversarial"))?,
        picture(&stretched, format!("image {id}, difference"))?,
    ];
    let distance = image.distance.unwrap_or(0.0);
    let label = format!(
        "image {id}, label {}: broken by {stage} at {distance:.4}, smallest known distance {:.4}",
        image.label,
        image.nearest.unwrap_or(distance)
    );
    Ok(Some(report::ImageRow::new(label, pictures)))
}

fn classes(evaluation: &Evaluation) -> Block {
    let rows = evaluation.classes.iter().map(|class| {
        vec![
            Cell::new(class.label.to_string()),
            Cell::new(class.clean.n.to_string()),
            Cell::new(percent(class.clean)),
            Cell::new(percent(class.robust)),
            Cell::new(interval(class.robust)),
        ]
    });
    Block::Table(report::Table {
        caption: "Accuracy by class".to_owned(),
        heads: vec![
            Head::text("class"),
            Head::number("images"),
            Head::number("clean"),
            Head::number("robust"),
            Head::number("95 % interval of robust"),
        ],
        rows: rows.collect(),
        note: String::new(),
    })
}

fn manifest(evaluation: &Evaluation) -> Result<Vec<Block>> {
    let manifest = &evaluation.manifest;
    let subject = &manifest.subject;
    let class = match subject.device.as_str() {
        "cpu" => "the same bits again, whatever the threads, batches and interruptions",
        _ => "the same random numbers; the device's arithmetic",
    };
    let mut facts = vec![
        Fact::new("Model", format!("`{}`", subject.model)),
        Fact::new(
            "SHA-256 of the weights",
            format!("`{}`", subject.weights_sha256),
        ),
        Fact::new(
            "Data",
            format!("{}, the first {} images", subject.data, subject.images),
        ),
        Fact::new("SHA-256 of the data", format!("`{}`", subject.data_sha256)),
        Fact::new("Seed", subject.seed.to_string()),
        Fact::new("Element type", &subject.dtype),
        Fact::new("Device", &subject.device),
        Fact::new("Determinism", class),
        Fact::new("theriac", &manifest.version),
    ];
    for (name, value) in &subject.more {
        facts.push(Fact::new(name, format!("`{value}`")));
    }
    let plan = Details {
        summary: "The plan".to_owned(),
        blocks: vec![Block::Code(toml::to_string(&manifest.plan)?)],
    };
    Ok(vec![Block::Facts(facts), Block::Details(plan)])
}
