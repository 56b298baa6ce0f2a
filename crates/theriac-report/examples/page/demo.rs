//! The report of an evaluation that never took place.

#![allow(unreachable_pub, reason = "of the example and of a test")]

use theriac_report::{
    Axis, Bar, Bars, Block, Cell, Check, Curve, Details, Fact, Finding, Head, ImageRow, Images,
    Kind, Line, Mark, Page, Picture, Section, Table, Verdict,
};

/// A page with every kind of block.
pub fn page() -> Page {
    Page {
        title: "Robustness of atda-cnn on CIFAR-10".into(),
        subtitle: "Linf, epsilon 8/255, untargeted; 1000 test images. Numbers of a demonstration."
            .into(),
        verdict: Some(Verdict {
            kind: Kind::Doubtful,
            headline: "Questionable: at most 47.2 % robust accuracy".into(),
            text: "Of 1000 images 472 withstood every attack, 95 % interval [44.1, 50.3]. The \
                   true robust accuracy may be lower: 2 of 11 checks found something."
                .into(),
            reasons: vec![
                "For 3.1 % of the images the gradient is exactly zero ([check 5](#check-gradients))."
                    .into(),
                "At twice the epsilon the attack is no stronger ([check 7](#check-larger))."
                    .into(),
            ],
            next: Some(
                "Attack with `Square` and `HopSkipJump`, which use no gradients, and look for \
                 saturated activations."
                    .into(),
            ),
        }),
        sections: vec![
            threat(),
            attacks(),
            curve(),
            checks(),
            classes(),
            examples(),
            manifest(),
        ],
    }
}

fn facts(facts: &[(&str, &str)]) -> Block {
    Block::Facts(facts.iter().map(|it| Fact::new(it.0, it.1)).collect())
}

fn threat() -> Section {
    let facts = facts(&[
        ("Ball", "Linf, epsilon 8/255, cut by [0, 1]"),
        ("Knowledge", "white box: weights, gradients, logits"),
        ("Aim", "any wrong class"),
        (
            "Model",
            "`atda-cnn`, 3 x 32 x 32, 10 classes, 2,923,162 parameters",
        ),
        ("Data", "CIFAR-10, test images 0 to 999"),
        ("Clean accuracy", "84.6 % [82.2, 86.7], n = 1000"),
    ]);
    Section::new("Threat model", vec![facts])
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<Cell> {
    cells.into_iter().map(Cell::from).collect()
}

fn attacks() -> Section {
    let mut rows = vec![
        row(["None", "84.6", "82.2", "86.7", "0", "1.2"]),
        row(["FGSM", "58.9", "55.8", "61.9", "1", "2.0"]),
        row(["PGD-20, 5 restarts", "50.1", "47.0", "53.2", "100", "121.7"]),
        row(["APGD-CE", "49.0", "45.9", "52.1", "100", "118.3"]),
        row(["APGD-T", "47.4", "44.3", "50.5", "900", "1034.9"]),
        row(["FAB-T", "47.6", "44.5", "50.7", "900", "1410.0"]),
        row(["Square", "53.3", "50.2", "56.4", "5000", "3312.5"]),
    ];
    let mut worst = row(["All of them", "47.2", "44.1", "50.3", "7001", "6000.6"]);
    worst[1].kind = Some(Kind::Doubtful);
    rows.push(worst);
    let table = Table {
        caption: "Accuracy by attack, in per cent".into(),
        heads: vec![
            Head::text("Attack"),
            Head::number("Accuracy (%)"),
            Head::number("Low"),
            Head::number("High"),
            Head::number("Passes an image"),
            Head::number("Seconds"),
        ],
        rows,
        note: "Wilson intervals at 95 %. An image counts for `All of them` where every attack \
               failed. How attacks are told apart: [On adaptive attacks](https://arxiv.org/abs/2002.08347)."
            .into(),
    };
    Section::new(
        "Robust accuracy",
        vec![
            Block::Text(
                "Every number is an upper bound: an attack that was not tried may find more. \
                 [Checks](#checks) says how far these can be believed."
                    .into(),
            ),
            Block::Table(table),
            Block::Table(wide()),
        ],
    )
}

/// A table that is wider than any page.
fn wide() -> Table {
    let mut heads = vec![Head::text("Attack")];
    heads.extend((0..=16).map(|it| Head::number(format!("{it}/255"))));
    let row = |name: &str, rate: f64| {
        let mut cells = vec![Cell::from(name)];
        cells.extend(
            (0..=16).map(|it| format!("{:.1}", 84.6 * (-rate * f64::from(it)).exp()).into()),
        );
        cells
    };
    Table {
        caption: "Accuracy by epsilon, in per cent".into(),
        heads,
        rows: vec![
            row("FGSM", 0.045),
            row("PGD-20, 5 restarts", 0.065),
            row("APGD-CE", 0.068),
        ],
        note: String::new(),
    }
}

/// The share of 1000 images whose distance to the boundary is above each of their distances.
fn survivors(clean: f64, scale: f64) -> Vec<(f64, f64)> {
    let images = (clean * 10.0) as usize;
    let mut points = vec![(0.0, clean)];
    for index in 1..=images {
        let left = 1.0 - index as f64 / (images as f64 + 1.0);
        let distance = rounded(scale * (-left.ln()).powf(1.3));
        if distance >= 16.0 {
            break;
        }
        points.push((distance, rounded(clean - index as f64 / 10.0)));
    }
    let last = points[points.len() - 1].1;
    points.push((16.0, last));
    points
}

/// As many digits as a report needs.
fn rounded(value: f64) -> f64 {
    (10_000.0 * value).round() / 10_000.0
}

fn wilson(points: &[(f64, f64)]) -> Vec<(f64, f64, f64)> {
    let (n, z) = (1000.0, 1.96_f64);
    let ends = |share: f64| {
        let middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half =
            z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
        (100.0 * (middle - half).max(0.0), 100.0 * (middle + half))
    };
    let band = |&(x, y): &(f64, f64)| {
        let (low, high) = ends(y / 100.0);
        (x, rounded(low), rounded(high))
    };
    points.iter().map(band).collect()
}

fn curve() -> Section {
    let fmn = survivors(84.6, 14.5);
    let security = Curve {
        caption: "Accuracy over the size of the perturbation".into(),
        x: Axis::new("epsilon", "1/255").between(0.0, 16.0),
        y: Axis::new("accuracy", "%").between(0.0, 100.0),
        lines: vec![
            Line {
                band: wilson(&fmn),
                ..Line::step("FMN, this model", fmn)
            },
            Line::step(
                "FMN, the same network without defence",
                survivors(93.1, 0.9),
            ),
        ],
        points: vec![
            Mark::new("AutoAttack at a fixed epsilon", 2.0, 69.3).within(66.4, 72.1),
            Mark::new("AutoAttack at a fixed epsilon", 4.0, 58.9).within(55.8, 61.9),
            Mark::new("AutoAttack at a fixed epsilon", 8.0, 47.2).within(44.1, 50.3),
            Mark::new("AutoAttack at a fixed epsilon", 16.0, 46.9).within(43.8, 50.0),
            Mark::new("PGD-20", 8.0, 50.1).within(47.0, 53.2),
        ],
    };
    let line = |name: &str, rate: f64| {
        let queries = [1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0];
        let points = queries.map(|it: f64| (it, rounded(84.6 - rate * it.log10().powi(2))));
        Line::new(name, points.to_vec())
    };
    let queries = Curve {
        caption: "Accuracy over the queries that an attack without gradients may make".into(),
        x: Axis::new("queries an image", "").log(),
        y: Axis::new("accuracy", "%"),
        lines: vec![
            line("Square", 2.1),
            line("SimBA", 0.7),
            line("HopSkipJump", 1.5),
            line("NES", 1.2),
            line("Boundary", 0.35),
            line("Uniform noise", 0.02),
        ],
        points: Vec::new(),
    };
    Section::new(
        "Security curve",
        vec![
            Block::Text(
                "The lines come from smallest perturbations, one attack for all epsilons; the \
                 points from attacks at one epsilon each. A point well under its line means that \
                 the line is too high. At 16/255 the point lies above: see \
                 [check 7](#check-larger)."
                    .into(),
            ),
            Block::Curve(security),
            Block::Curve(queries),
        ],
    )
}

fn checks() -> Section {
    let passed = || Finding::new(Kind::Good, "passed");
    let doubtful = || Finding::new(Kind::Doubtful, "questionable");
    let mut list = vec![
        Check::new(1, "input range", passed(), "Clean pixels in [0, 1]."),
        Check::new(2, "bound", passed(), "The largest change is 8/255, recomputed in f64."),
        Check::new(3, "reachability", passed(), "20 steps of 2/255 reach past 8/255."),
        Check::new(4, "repeatability", passed(), "Two passes differ by 0 in every logit."),
        Check {
            source: "Athalye et al., [Obfuscated gradients](https://arxiv.org/abs/1802.00420), 2018"
                .into(),
            next_step: "Replace the rounding before the first layer by `Bpda` and run again.".into(),
            id: Some("check-gradients".into()),
            ..Check::new(
                5,
                "zero gradients",
                doubtful(),
                "For 31 of 1000 images the gradient of the loss is exactly zero, and all of them \
                 count as robust.",
            )
        },
        Check::new(6, "FGSM shadow", passed(), "FGSM leaves 58.9 %, PGD-20 50.1 %."),
        Check {
            source: "Carlini et al., [On evaluating adversarial robustness](https://arxiv.org/abs/1902.06705), 2019"
                .into(),
            next_step: "Raise the number of steps until both curves fall; look at the loss along \
                        the steps."
                .into(),
            id: Some("check-larger".into()),
            ..Check::new(
                7,
                "larger epsilon",
                doubtful(),
                "At 16/255 the accuracy is 46.9 %, at 8/255 it is 47.2 %; a ball of twice the \
                 size should hold far more.",
            )
        },
        Check::new(8, "huge epsilon", passed(), "At epsilon 1 PGD leaves 0 of 200 images."),
        Check::new(9, "transfer", passed(), "Examples of a second model leave 71.0 %."),
        Check::new(
            10,
            "randomness",
            Finding::new(Kind::Neutral, "not applicable"),
            "The model draws no random numbers.",
        ),
        Check::new(
            11,
            "gradient-free attack",
            Finding::new(Kind::Neutral, "not run"),
            "Switched off by `--checks cheap`.",
        ),
    ];
    list[8].source = "Athalye et al., 2018".into();
    Section::new("Checks", vec![Block::Checks(list)])
}

const CLASSES: [(&str, f64, f64, &str); 10] = [
    ("aeroplane", 88.2, 55.9, "bird"),
    ("car", 93.4, 70.8, "lorry"),
    ("bird", 75.0, 29.0, "deer"),
    ("cat", 66.7, 17.2, "dog"),
    ("deer", 80.2, 28.6, "frog"),
    ("dog", 75.6, 36.0, "cat"),
    ("frog", 90.1, 47.7, "deer"),
    ("horse", 87.3, 55.9, "dog"),
    ("ship", 93.5, 66.0, "aeroplane"),
    ("lorry", 91.8, 61.5, "car"),
];

fn classes() -> Section {
    let rows = CLASSES.map(|(name, clean, robust, confused)| {
        let kind = (robust < 20.0).then_some(Kind::Bad);
        let robust = Cell {
            text: format!("{robust:.1}"),
            kind,
        };
        vec![
            name.into(),
            format!("{clean:.1}").into(),
            robust,
            confused.into(),
        ]
    });
    let table = Table {
        caption: "By class".into(),
        heads: vec![
            Head::text("Class"),
            Head::number("Clean (%)"),
            Head::number("Robust (%)"),
            Head::text("Most often taken for"),
        ],
        rows: rows.to_vec(),
        note: "About 100 images a class: an interval is some 10 points wide to either side.".into(),
    };
    let bars = CLASSES.map(|(name, _, robust, _)| Bar::new(name, robust));
    let bars = Bars {
        caption: "Robust accuracy by class".into(),
        unit: "%".into(),
        bars: bars.to_vec(),
        full: Some(100.0),
    };
    Section::new("Classes", vec![Block::Table(table), Block::Bars(bars)])
}

const SIDE: u32 = 32;

/// Colours of a pixel in [0, 255], at (x, y) in [-1, 1].
fn drawing(kind: u32, x: f64, y: f64) -> [f64; 3] {
    let round = x * x + y * y;
    match kind {
        0 if round < 0.45 => [214.0, 150.0 + 60.0 * y, 60.0],
        1 if x.abs() < 0.6 && y.abs() < 0.35 => [170.0, 40.0 + 50.0 * x, 48.0],
        2 if (x - y).abs() < 0.3 => [230.0, 232.0, 220.0],
        _ => [90.0 + 40.0 * y, 130.0 + 30.0 * y, 150.0 - 60.0 * y],
    }
}

fn pictures(kind: u32) -> Vec<Picture> {
    let (mut clean, mut adversarial, mut difference) = (Vec::new(), Vec::new(), Vec::new());
    let mut state = 0x9e37_79b9_u32 ^ (kind + 1);
    for index in 0..SIDE * SIDE {
        let place = |it: u32| 2.0 * f64::from(it) / f64::from(SIDE - 1) - 1.0;
        for value in drawing(kind, place(index % SIDE), place(index / SIDE)) {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let change = if state & 1 == 0 { -8.0 } else { 8.0 };
            let value = value.clamp(0.0, 255.0);
            let changed = (value + change).clamp(0.0, 255.0);
            clean.push(value as u8);
            adversarial.push(changed as u8);
            difference.push((127.5 + 10.0 * (changed - value)).clamp(0.0, 255.0) as u8);
        }
    }
    [clean, adversarial, difference]
        .map(|bytes| Picture::rgb(SIDE, SIDE, bytes))
        .to_vec()
}

fn examples() -> Section {
    let labels = [
        "no. 17: frog, taken for deer",
        "no. 203: lorry, taken for car",
        "no. 640: aeroplane, taken for bird",
    ];
    let rows = labels
        .into_iter()
        .zip(0..)
        .map(|(label, kind)| ImageRow::new(label, pictures(kind)));
    let images = Images {
        caption: "Images that fell at 8/255".into(),
        columns: vec![
            "clean".into(),
            "adversarial".into(),
            "difference x 10".into(),
        ],
        rows: rows.collect(),
    };
    let digit = (0..28 * 28_u32)
        .map(|it| {
            let (x, y) = (f64::from(it % 28) - 13.5, f64::from(it / 28) - 13.5);
            let distance = (x * x + y * y).sqrt() - 8.0;
            (255.0 * (1.0 - distance.abs() / 2.5).max(0.0)) as u8
        })
        .collect();
    let grey = Images {
        caption: "A picture in grey".into(),
        columns: vec!["clean".into()],
        rows: vec![ImageRow::new(
            "a nought",
            vec![Picture::grey(28, 28, digit).with_alt("a ring, white on black")],
        )],
    };
    let more = Details {
        summary: "Another picture".into(),
        blocks: vec![Block::Images(grey)],
    };
    Section::new(
        "Examples",
        vec![Block::Images(images), Block::Details(more)],
    )
}

fn manifest() -> Section {
    let manifest = facts(&[
        ("Version", "theriac 0.1.0, commit `3f2a9c1`"),
        ("Seed", "0"),
        ("Machine", "2 cores, AVX2, CPU"),
        (
            "Weights",
            "`atda.safetensors`, SHA-256 `9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08`",
        ),
        ("Time", "1 h 40 min"),
    ]);
    let command = "theriac evaluate --model atda.safetensors --network atda-cnn --data cifar10 \\\n    \
                   --norm linf --eps 8/255 --images 1000 --attack auto-attack --seed 0 --report report";
    Section::new(
        "Manifest",
        vec![
            manifest,
            Block::Text("The same numbers again, bit by bit on the same machine:".into()),
            Block::Code(command.into()),
            Block::Details(Details {
                summary: "Settings of every attack".into(),
                blocks: vec![Block::Code(
                    "[[attack]]\nname = \"pgd\"\nsteps = 20\nstep = \"2/255\"\nrestarts = 5".into(),
                )],
            }),
        ],
    )
}
