//! `theriac gate`: an evaluation as a test.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde::{Deserialize, Serialize};

use crate::Common;
use crate::evaluate::write;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The report folder of an evaluation, or its `evaluation.json`.
    #[arg(default_value = "theriac-report")]
    report: PathBuf,
    /// The smallest robust accuracy that passes, in [0, 1].
    #[arg(long, value_name = "SHARE")]
    min_robust: Option<f64>,
    /// The worst verdict that passes: reliable, questionable or invalid.
    #[arg(long, default_value = "reliable", value_parser = ["reliable", "questionable", "invalid"])]
    verdict: String,
    /// Also writes the outcome as `JUnit` XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Evaluation {
    verdict: String,
    robust: Mean,
    checks: Vec<Check>,
}

#[derive(Deserialize)]
struct Mean {
    sum: f64,
    n: usize,
}

#[derive(Deserialize)]
struct Check {
    name: String,
    finding: String,
    detail: String,
}

/// One condition and whether it holds.
#[derive(Serialize)]
struct Outcome {
    name: String,
    passed: bool,
    detail: String,
}

/// From best to worst.
const WORDS: [&str; 3] = ["reliable", "questionable", "invalid"];

fn rank(word: &str) -> usize {
    let place = WORDS.iter().position(|known| *known == word);
    place.unwrap_or(WORDS.len())
}

pub(crate) fn run(options: &Options, common: &Common) -> Result<ExitCode> {
    let path = match options.report.is_dir() {
        true => options.report.join("evaluation.json"),
        false => options.report.clone(),
    };
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{}; run `theriac evaluate` first", path.display()))?;
    let evaluation: Evaluation = serde_json::from_str(&text)
        .with_context(|| format!("{} is not an evaluation", path.display()))?;
    let outcomes = outcomes(options, &evaluation)?;
    let passed = outcomes.iter().all(|outcome| outcome.passed);
    if let Some(path) = &options.junit {
        write(path, junit(&outcomes, &evaluation)?.as_bytes())?;
    }
    if common.json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    } else {
        for outcome in &outcomes {
            let word = if outcome.passed { "passed" } else { "FAILED" };
            println!("{word}: {}: {}", outcome.name, outcome.detail);
        }
    }
    Ok(match passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn outcomes(options: &Options, evaluation: &Evaluation) -> Result<Vec<Outcome>> {
    let allowed = rank(&options.verdict);
    let reasons: Vec<&str> = evaluation
        .checks
        .iter()
        .filter(|check| WORDS.contains(&check.finding.as_str()) && rank(&check.finding) > allowed)
        .map(|check| check.name.as_str())
        .collect();
    let mut detail = format!(
        "{}, wanted {} or better",
        evaluation.verdict, options.verdict
    );
    if !reasons.is_empty() {
        detail += &format!(" ({})", reasons.join(", "));
    }
    let mut outcomes = vec![Outcome {
        name: "verdict".to_owned(),
        passed: rank(&evaluation.verdict) <= allowed,
        detail,
    }];
    if let Some(least) = options.min_robust {
        anyhow::ensure!(
            (0.0..=1.0).contains(&least),
            "--min-robust {least}: give a share from 0 to 1, such as 0.4"
        );
        let share = evaluation.robust.sum / evaluation.robust.n as f64;
        outcomes.push(Outcome {
            name: "robust accuracy".to_owned(),
            passed: share >= least,
            detail: format!("{share:.4}, wanted {least} or more"),
        });
    }
    Ok(outcomes)
}

fn junit(outcomes: &[Outcome], evaluation: &Evaluation) -> Result<String> {
    let mut suite = TestSuite::new("theriac gate");
    for outcome in outcomes {
        let mut status = TestCaseStatus::success();
        if !outcome.passed {
            status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(&outcome.detail);
        }
        suite.add_test_case(TestCase::new(&outcome.name, status));
    }
    let mut checks = TestSuite::new("theriac checks");
    for check in &evaluation.checks {
        let mut status = match check.finding.as_str() {
            "questionable" | "invalid" => TestCaseStatus::non_success(NonSuccessKind::Failure),
            "passed" => TestCaseStatus::success(),
            _ => TestCaseStatus::skipped(),
        };
        status.set_message(&check.detail);
        checks.add_test_case(TestCase::new(&check.name, status));
    }
    let mut report = Report::new("theriac");
    report.add_test_suite(suite);
    report.add_test_suite(checks);
    Ok(report.to_string()?)
}
