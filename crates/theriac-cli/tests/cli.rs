//! The program from outside.
#![allow(clippy::unwrap_used)] // the whole binary is tests

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_theriac");
const KEPT: &str = "../../datasets/checkpoints/train";
/// The epoch-wise paper's network for Fashion-MNIST, desk scale.
const PROPOSED: &str = "aad8f6e13a0ea71f852cfdb5e0193bb1e35af420d8400ee1cf24b07810d26c03";

fn weights() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join(KEPT).join(PROPOSED).join("model.safetensors")
}

fn theriac(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.current_dir(dir).args(arguments);
    command.env_remove("THERIAC_DATA").output().unwrap()
}

fn stdout(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    text
}

fn complaint(dir: &Path, arguments: &[&str]) -> String {
    let output = theriac(dir, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

const QUICK: [&str; 9] = [
    "model.safetensors",
    "--data",
    "fashion-mnist:sample",
    "--images",
    "20",
    "--eps",
    "8/255",
    "--profile",
    "quick",
];

fn evaluate<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["evaluate"], &QUICK[..], more].concat()
}

/// A folder with nothing but a weights file.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(weights(), dir.path().join("model.safetensors")).unwrap();
    dir
}

#[test]
fn evaluates_reports_and_gates() {
    let dir = folder();
    let text = stdout(&theriac(dir.path(), &evaluate(&["--active-test"])));
    assert!(text.contains("robust accuracy"), "{text}");
    // Twenty images are too few for a reliable verdict.
    assert!(text.contains("sample size (questionable)"), "{text}");
    let report = dir.path().join("theriac-report");
    let html = std::fs::read_to_string(report.join("index.html")).unwrap();
    for wanted in [
        "Questionable",
        "SHA-256",
        "Security curve",
        "data:image/png",
    ] {
        assert!(html.contains(wanted), "no {wanted}");
    }
    for name in ["report.md", "report.json", "evaluation.json"] {
        assert!(report.join(name).exists(), "{name}");
    }
    // Everything is known: the second run only reads.
    let json = stdout(&theriac(
        dir.path(),
        &evaluate(&["--active-test", "--json"]),
    ));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["table"]["images"].as_array().unwrap().len(), 20);

    let gate = |more: &[&str]| theriac(dir.path(), &[&["gate"], more].concat());
    let failed = gate(&["--junit", "gate.xml"]);
    assert_eq!(failed.status.code(), Some(1));
    let xml = std::fs::read_to_string(dir.path().join("gate.xml")).unwrap();
    assert!(
        xml.contains("<failure") && xml.contains("sample size"),
        "{xml}"
    );
    stdout(&gate(&["--verdict", "questionable"]));
    stdout(&gate(&[
        "--verdict",
        "questionable",
        "--min-robust",
        "0.05",
    ]));
    let failed = gate(&["--verdict", "questionable", "--min-robust", "0.99"]);
    assert_eq!(failed.status.code(), Some(1));
}

#[test]
fn killed_twenty_times_it_ends_with_the_same_table() {
    let dir = folder();
    let more = ["--batch", "7", "--threads", "1"];
    stdout(&theriac(dir.path(), &evaluate(&["--report", "whole"])));
    let arguments = evaluate(&[&more[..], &["--report", "killed"]].concat());
    let mut moment = 12_345u64;
    for _ in 0..20 {
        let mut child = Command::new(PROGRAM)
            .current_dir(dir.path())
            .args(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Any spread of moments will do.
        moment = moment
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        std::thread::sleep(Duration::from_millis(20 + (moment >> 33) % 400));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    stdout(&theriac(dir.path(), &arguments));
    let read = |name: &str| {
        std::fs::read_to_string(dir.path().join(name).join("evaluation.json")).unwrap()
    };
    assert_eq!(read("killed"), read("whole"));
}

#[test]
fn shards_merge_into_the_same_table() {
    let dir = folder();
    stdout(&theriac(dir.path(), &evaluate(&["--report", "whole"])));
    for (shard, report) in [("0/2", "a"), ("1/2", "b")] {
        stdout(&theriac(
            dir.path(),
            &evaluate(&["--shard", shard, "--report", report]),
        ));
    }
    let data = ["--data", "fashion-mnist:sample", "--images", "20"];
    let merge = [&["merge", "a", "b", "--report", "both"], &data[..]].concat();
    stdout(&theriac(dir.path(), &merge));
    let read = |name: &str| {
        std::fs::read_to_string(dir.path().join(name).join("evaluation.json")).unwrap()
    };
    assert_eq!(read("both"), read("whole"));
    let other = [
        "merge",
        "a",
        "b",
        "--report",
        "c",
        "--data",
        "cifar10:sample",
    ];
    assert!(complaint(dir.path(), &other).contains("not the images"));
}

#[test]
fn complaints_name_the_thing_and_the_fix() {
    let dir = folder();
    let complain = |arguments: &[&str]| complaint(dir.path(), arguments);
    let data = ["--data", "fashion-mnist:sample", "--images", "8"];
    let with = |more: &[&'static str]| -> Vec<&str> {
        [&["evaluate", "model.safetensors"], &data[..], more].concat()
    };
    let error = complain(&with(&["--eps", "8"]));
    assert!(error.contains("/255"), "{error}");
    let error = complain(&with(&["--eps", "8/255", "--arch", "lenet7"]));
    assert!(error.contains("lenet5"), "{error}");
    let error = complain(&with(&["--eps", "8/255", "--arch", "lenet5"]));
    assert!(error.contains("theriac convert"), "{error}");
    let error = complain(&with(&["--eps", "8/255", "--norm", "l7"]));
    assert!(error.contains("linf or l2"), "{error}");
    let error = complain(&with(&["--eps", "8/255", "--device", "tpu"]));
    assert!(error.contains("cuda:N"), "{error}");
    let error = complain(&[
        "evaluate",
        "none.safetensors",
        "--data",
        "fashion-mnist:sample",
        "--eps",
        "0.1",
    ]);
    assert!(error.contains("none.safetensors"), "{error}");
    let error = complain(&[
        "evaluate",
        "model.safetensors",
        "--data",
        "emnist",
        "--eps",
        "0.1",
    ]);
    assert!(error.contains("emnist"), "{error}");
    // Images of another size are refused before anything is written.
    let error = complain(&[
        "evaluate",
        "model.safetensors",
        "--data",
        "cifar10:sample",
        "--eps",
        "0.1",
    ]);
    assert!(error.contains("32"), "{error}");
    assert!(!dir.path().join("theriac-report").exists());

    stdout(&theriac(dir.path(), &evaluate(&[])));
    let error = complain(&evaluate(&["--seed", "3"]));
    assert!(
        error.contains("subject.seed") && error.contains("another folder"),
        "{error}"
    );
    let error = complain(&["gate", "nowhere"]);
    assert!(error.contains("theriac evaluate"), "{error}");
}

#[test]
fn inspects_converts_and_attacks() {
    let dir = folder();
    let told = stdout(&theriac(
        dir.path(),
        &["inspect", "model.safetensors", "--json"],
    ));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["parameters"], 166_406);
    assert_eq!(told["fits"][0], "atda-cnn");

    let convert = ["convert", "model.safetensors", "ours.safetensors", "--arch"];
    stdout(&theriac(
        dir.path(),
        &[&convert[..], &["atda-cnn"]].concat(),
    ));
    let error = complaint(dir.path(), &[&convert[..], &["lenet5"]].concat());
    assert!(error.contains("has shape [16]"), "{error}");

    let data = ["--data", "fashion-mnist:sample", "--images", "16"];
    let attack = [
        "attack",
        "ours.safetensors",
        "--attack",
        "pgd",
        "--eps",
        "0.1",
        "--json",
    ];
    let told = stdout(&theriac(dir.path(), &[&attack[..], &data[..]].concat()));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert!(told["correct_after"].as_u64() <= told["correct_before"].as_u64());
    assert!(dir.path().join("theriac-attack/grid.png").exists());
    assert!(
        dir.path()
            .join("theriac-attack/adversarial.safetensors")
            .exists()
    );
    let bare = ["attack", "ours.safetensors", "--attack", "pgd"];
    let error = complaint(dir.path(), &[&bare[..], &data[..]].concat());
    assert!(error.contains("--eps"), "{error}");

    let script = stdout(&theriac(dir.path(), &["completions", "bash"]));
    assert!(script.contains("evaluate"));
}

/// A kept network says which one it is and how its pixels are normalised.
#[test]
fn a_file_that_says_all_needs_no_options() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kept = "e7a09b88c85d488b9b6b37cfd21a264d1848534260267926afc82a46cd2104da";
    let file = root.join("../../datasets/checkpoints/train").join(kept);
    let file = file.join("model.safetensors");
    std::fs::copy(file, dir.path().join("mixup.safetensors")).unwrap();
    let attack = [
        "attack",
        "mixup.safetensors",
        "--attack",
        "fgsm",
        "--eps",
        "0",
    ];
    let data = ["--data", "cifar10:sample", "--images", "20", "--json"];
    let attack = [&attack[..], &data[..]].concat();
    let right = |more: &[&str]| {
        let told = stdout(&theriac(dir.path(), &[&attack[..], more].concat()));
        let told: Value = serde_json::from_str(&told).unwrap();
        told["correct_before"].as_u64().unwrap()
    };
    let said = right(&[]);
    assert!(said >= 15, "{said} of 20");
    assert_eq!(
        said,
        right(&["--arch", "resnet20", "--mean", "0.5", "--std", "0.5"])
    );
    assert_ne!(said, right(&["--mean", "0", "--std", "1"]));
}

/// The same images as pictures in folders of classes.
#[test]
fn a_folder_of_pictures_is_data() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kept = "e7a09b88c85d488b9b6b37cfd21a264d1848534260267926afc82a46cd2104da";
    let file = root.join(KEPT).join(kept).join("model.safetensors");
    std::fs::copy(file, dir.path().join("mixup.safetensors")).unwrap();
    let sample = theriac_datasets::embedded("cifar10").unwrap().test;
    for class in 0..10 {
        std::fs::create_dir_all(dir.path().join(format!("pictures/{class}"))).unwrap();
    }
    for (i, label) in sample.labels.iter().take(40).enumerate() {
        let planes = &sample.images[3072 * i..3072 * (i + 1)];
        let pixels: Vec<u8> = (0..1024)
            .flat_map(|at| (0..3).map(move |channel| planes[1024 * channel + at]))
            .collect();
        let path = dir.path().join(format!("pictures/{label}/{i:02}.png"));
        let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), 32, 32);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&pixels).unwrap();
    }
    let attack = "attack mixup.safetensors --attack fgsm --eps 0 --json --data";
    let right = |data: &str| {
        let all: Vec<&str> = attack.split(' ').chain(data.split(' ')).collect();
        let told: Value = serde_json::from_str(&stdout(&theriac(dir.path(), &all))).unwrap();
        told["correct_before"].as_u64().unwrap()
    };
    let size = "--resize 32 --crop 32";
    let of_sample = right("cifar10:sample --images 40");
    assert_eq!(right(&format!("pictures {size}")), of_sample);
    assert!(right(&format!("pictures {size} --images 10")) <= 10);
    std::fs::write(dir.path().join("pictures/3/broken.png"), "no picture").unwrap();
    let all = format!("{attack} pictures {size}");
    let error = complaint(dir.path(), &all.split(' ').collect::<Vec<_>>());
    assert!(error.contains("broken.png"), "{error}");
    assert_eq!(right(&format!("pictures {size} --skip-corrupt")), of_sample);
}

#[test]
fn an_onnx_file_is_inspected_and_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("../theriac-onnx/tests/data/lenet.onnx");
    std::fs::copy(&file, dir.path().join("lenet.onnx")).unwrap();
    std::fs::copy(&file, dir.path().join("lenet")).unwrap();
    for arguments in [
        &["inspect", "lenet.onnx", "--json"][..],
        &["inspect", "lenet", "--onnx", "--json"],
    ] {
        let told: Value = serde_json::from_str(&stdout(&theriac(dir.path(), arguments))).unwrap();
        assert_eq!(
            (&told["classes"], &told["parameters"]),
            (&10.into(), &6070.into())
        );
        assert_eq!(told["image"], serde_json::json!([1, 28, 28]));
        assert_eq!(told["operations"]["Conv"], 3);
    }
    let data = [
        "--data",
        "fashion-mnist:sample",
        "--images",
        "8",
        "--eps",
        "8/255",
    ];
    let evaluate = |model: &'static str, more: &[&'static str]| -> Vec<&'static str> {
        [
            &["evaluate", model],
            &data[..],
            &["--profile", "quick"],
            more,
        ]
        .concat()
    };
    let normalised = ["--mean", "0.5", "--std", "0.25", "--json"];
    let json = stdout(&theriac(dir.path(), &evaluate("lenet.onnx", &normalised)));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["table"]["images"].as_array().unwrap().len(), 8);
    let html = std::fs::read_to_string(dir.path().join("theriac-report/index.html")).unwrap();
    assert!(html.contains("lenet.onnx"));

    let error = complaint(dir.path(), &evaluate("lenet.onnx", &["--arch", "lenet5"]));
    assert!(error.contains("--arch"), "{error}");
    let error = complaint(dir.path(), &evaluate("lenet", &[]));
    assert!(error.contains("lenet"), "{error}");
    let colours = [
        "evaluate",
        "lenet.onnx",
        "--data",
        "cifar10:sample",
        "--eps",
        "0.1",
    ];
    let error = complaint(dir.path(), &colours);
    assert!(
        error.contains("(1, 28, 28)") && error.contains("[3, 32, 32]"),
        "{error}"
    );
    std::fs::write(
        dir.path().join("lenet.onnx"),
        &std::fs::read(&file).unwrap()[..9000],
    )
    .unwrap();
    let error = complaint(dir.path(), &evaluate("lenet.onnx", &[]));
    assert!(error.contains("not an ONNX model"), "{error}");
}
