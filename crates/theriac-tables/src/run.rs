//! The command line of an example that computes a paper's tables.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::any::Any;
use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;

use crate::interrupt::INTERRUPTED_STATUS;
use crate::ui::Ui;
use crate::{
    BoxError, Cell, Error, Event, Interrupt, Lab, Machine, Measured, Outcome, Record, Result,
    Results, Scale, Selection, Store, Table, log, text,
};

/// What a paper's example implements: how to compute one cell.
pub trait Experiment {
    /// Refuses a cell whose settings make no sense, before anything is computed. Usually
    /// `cell.settings::<Settings>()` and a look at `cell.column.measure`.
    ///
    /// # Errors
    /// If the cell cannot be computed whatever happens.
    fn check(&self, cell: &Cell<'_>) -> Result<(), BoxError>;

    /// Computes one cell.
    ///
    /// # Errors
    /// Any; the cell is then reported as failed and the others go on. After an interruption
    /// ([`Lab::interrupted`]) the cell is left for the next run instead.
    fn measure(&self, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError>;
}

/// Computes cells of a paper's tables.
#[derive(Debug, Parser)]
struct Options {
    /// Only this table or figure; may be repeated.
    #[arg(long)]
    table: Vec<String>,
    /// Only this row; may be repeated.
    #[arg(long)]
    row: Vec<String>,
    /// Only this column; may be repeated.
    #[arg(long)]
    column: Vec<String>,
    /// Only this reading of the paper; may be repeated.
    #[arg(long)]
    reading: Vec<String>,
    /// This seed instead of the table's; may be repeated.
    #[arg(long)]
    seed: Vec<u64>,
    /// smoke, desk or paper.
    #[arg(long, default_value_t)]
    scale: Scale,
    /// cpu, cuda:0 or metal:0.
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: String,
    /// Folder of the data sets.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Folder of trained models and measurements.
    #[arg(long, default_value = "target/reproduce/store")]
    store: PathBuf,
    /// Folder of kept models, read where the store has none.
    #[arg(long)]
    kept: Option<PathBuf>,
    /// Threads to compute with; default: one for each core.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    threads: Option<u64>,
    /// Ignore what is stored.
    #[arg(long)]
    fresh: bool,
    /// Ignore what was stored before this moment, in milliseconds since 1970.
    #[arg(long, hide = true)]
    fresh_since: Option<u64>,
    /// Log to standard error: off, error, warn, info, debug, trace.
    #[arg(long, default_value = "warn")]
    log: String,
    /// Log to this file as JSON lines.
    #[arg(long)]
    log_json: Option<PathBuf>,
    /// Tell what happens as JSON lines on standard output.
    #[arg(long)]
    events: bool,
    /// Stop when standard input ends.
    #[arg(long, hide = true)]
    stop_at_eof: bool,
    /// List the cells and whether they are stored; compute nothing.
    #[arg(long)]
    dry_run: bool,
    /// The commit to record with the measurements.
    #[arg(long)]
    commit: Option<String>,
}

/// Accepts `cpu`, `cuda:N` and `metal:N`.
///
/// # Errors
/// If the name is none of these.
pub fn device(name: &str) -> Result<String, String> {
    let numbered = name.split_once(':').is_some_and(|(kind, number)| {
        ["cuda", "metal"].contains(&kind) && number.parse::<usize>().is_ok()
    });
    if name == "cpu" || numbered {
        Ok(name.to_owned())
    } else {
        Err("known: cpu, cuda:N, metal:N".to_owned())
    }
}

/// The whole of an example's `main`: parses the command line, runs the cells of the tables in the
/// folder `tables`, keeps what they measure, and shows it.
///
/// The exit status is 0 if every cell has a value, 1 if some failed, 2 if the command or a table
/// is wrong, 130 after an interruption.
pub fn main(experiment: impl Experiment, tables: impl AsRef<Path>) -> ExitCode {
    let options = Options::parse();
    let run = || {
        let interrupt = Interrupt::on_signal()?;
        if options.stop_at_eof {
            interrupt.at_end_of_input();
        }
        run(&experiment, tables.as_ref(), &options, interrupt)
    };
    match run() {
        Ok(end) if end.interrupted => ExitCode::from(INTERRUPTED_STATUS),
        Ok(end) if end.failed > 0 => ExitCode::from(1),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

#[derive(Debug, Default, PartialEq)]
struct End {
    measured: usize,
    failed: usize,
    interrupted: bool,
}

fn run(
    experiment: &impl Experiment,
    dir: &Path,
    options: &Options,
    interrupt: Interrupt,
) -> Result<End> {
    let tables = choose(Table::load_dir(dir)?, &options.table)?;
    let selection = Selection {
        rows: options.row.clone(),
        columns: options.column.clone(),
        readings: options.reading.clone(),
        seeds: options.seed.clone(),
    };
    let mut cells = Vec::new();
    for table in &tables {
        cells.extend(table.cells(options.scale, &selection)?);
    }
    for cell in &cells {
        experiment.check(cell).map_err(|source| Error::Make {
            stage: format!("{}: {}", cell.table.file.display(), cell.name()),
            source,
        })?;
    }

    let mut store = Store::open(&options.store)?;
    if let Some(kept) = &options.kept {
        store = store.over(kept);
    }
    if let Some(since) = fresh_since(options) {
        store = store.fresh_since(since);
    }
    let mut missing = Vec::new();
    for cell in &cells {
        if !is_measured(&store, cell)? {
            missing.push(*cell);
        }
    }
    if options.dry_run {
        let names: BTreeSet<String> = missing.iter().map(|cell| cell.name().to_string()).collect();
        for name in cells.iter().map(|cell| cell.name().to_string()) {
            println!(
                "{} {name}",
                if names.contains(&name) {
                    "missing"
                } else {
                    "stored "
                }
            );
        }
        return Ok(End::default());
    }

    let ui = Ui::new(if options.events { 0 } else { missing.len() });
    log::init(&options.log, options.log_json.as_deref(), &ui)?;
    let lab = lab(options, store, interrupt, &ui);
    lab.tell(&Event::Begin {
        total: cells.len(),
        stored: cells.len() - missing.len(),
    });
    let end = measure_all(experiment, &missing, &lab, options.commit.as_deref())?;
    ui.finish();
    if !options.events {
        for table in &tables {
            println!(
                "{}",
                text(&Results::load(&lab.store, table, options.scale)?)
            );
        }
    }
    Ok(end)
}

fn choose(tables: Vec<Table>, wanted: &[String]) -> Result<Vec<Table>> {
    for name in wanted {
        if !tables.iter().any(|table| table.id == *name) {
            let known = tables.iter().map(|table| table.id.as_str());
            return Err(Error::unknown("--table", "table", name, known));
        }
    }
    let chosen = |table: &Table| wanted.is_empty() || wanted.contains(&table.id);
    Ok(tables.into_iter().filter(chosen).collect())
}

fn fresh_since(options: &Options) -> Option<SystemTime> {
    match options.fresh_since {
        Some(millis) => Some(SystemTime::UNIX_EPOCH + Duration::from_millis(millis)),
        None => options.fresh.then(SystemTime::now),
    }
}

/// Whether the store has a value for the cell; a failed attempt is none.
fn is_measured(store: &Store, cell: &Cell<'_>) -> Result<bool> {
    Ok(matches!(
        store.find(cell)?,
        Some(Record {
            outcome: Outcome::Measured(_),
            ..
        })
    ))
}

fn lab(options: &Options, store: Store, interrupt: Interrupt, ui: &Ui) -> Lab {
    let mut lab = if options.events {
        Lab::new(store, options.scale, interrupt, print_event)
    } else {
        let job = ui.job(options.scale.name());
        Lab::new(store, options.scale, interrupt, move |event| {
            job.show(event)
        })
    };
    lab.device = options.device.clone();
    lab.data_dir = options.data_dir.clone();
    lab.threads = options
        .threads
        .and_then(|threads| usize::try_from(threads).ok());
    lab
}

/// A reader that went away is no reason to stop computing.
fn print_event(event: &Event) {
    if let Ok(line) = serde_json::to_string(event) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

fn measure_all(
    experiment: &impl Experiment,
    cells: &[Cell<'_>],
    lab: &Lab,
    commit: Option<&str>,
) -> Result<End> {
    let _span = tracing::info_span!("run", scale = %lab.scale).entered();
    let machine = Machine::this(&lab.device, lab.threads);
    let mut end = End::default();
    for cell in cells {
        if lab.interrupted() {
            break;
        }
        lab.tell(&Event::Cell(cell.name()));
        let started = Instant::now();
        let outcome = match measure(experiment, cell, lab) {
            Ok(mut measured) => {
                if measured.seconds == 0.0 {
                    measured.seconds = started.elapsed().as_secs_f64();
                }
                Outcome::Measured(measured)
            }
            // What fails because it was told to stop has not failed.
            Err(_) if lab.interrupted() => break,
            Err(reason) => Outcome::Failed(reason),
        };
        let record = Record {
            spec: cell.spec()?,
            outcome,
            commit: commit.map(str::to_owned),
            machine: machine.clone(),
        };
        lab.store.keep(&record)?;
        match record.outcome {
            Outcome::Measured(measured) => {
                end.measured += 1;
                lab.tell(&Event::Measured {
                    cell: cell.name(),
                    value: measured.value,
                    unit: cell.column.unit,
                    n: measured.n,
                    interval: measured.interval,
                    verdict: measured.verdict,
                    seconds: measured.seconds,
                });
            }
            Outcome::Failed(reason) => {
                end.failed += 1;
                lab.tell(&Event::Failed {
                    cell: cell.name(),
                    reason,
                });
            }
        }
    }
    end.interrupted = lab.interrupted();
    let End {
        measured,
        failed,
        interrupted,
    } = end;
    lab.tell(&Event::End {
        measured,
        failed,
        interrupted,
    });
    Ok(end)
}

/// Computes one cell; a panic is a failure of that cell alone.
fn measure(experiment: &impl Experiment, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, String> {
    let _span = tracing::info_span!("cell", name = %cell.name()).entered();
    let measured = catch_unwind(AssertUnwindSafe(|| experiment.measure(cell, lab)))
        .map_err(|panic| format!("panicked: {}", panic_text(&*panic)))?
        .map_err(|error| chain(&*error))?;
    match measured.problem() {
        Some(problem) => Err(problem),
        None => Ok(measured),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}

/// The error with its causes, leaving out those that the message before them repeats.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text += &format!(": {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Mutex;

    use serde::Deserialize;

    use super::*;
    use crate::table::tests::{CSV, TOML};

    /// Gives each column's number of steps, and fails or panics for one row.
    #[derive(Default)]
    struct Steps {
        trained: Mutex<usize>,
        fail: bool,
        interrupt: Option<Interrupt>,
    }

    #[derive(Deserialize)]
    struct Settings {
        method: String,
        attack: Attack,
    }

    #[derive(Deserialize)]
    struct Attack {
        steps: u32,
    }

    impl Experiment for Steps {
        fn check(&self, cell: &Cell<'_>) -> Result<(), BoxError> {
            cell.settings::<Settings>()?;
            Ok(())
        }

        fn measure(&self, cell: &Cell<'_>, lab: &Lab) -> Result<Measured, BoxError> {
            let settings: Settings = cell.settings()?;
            lab.memo(cell, "train", &settings.method, |_| {
                *self.trained.lock().unwrap() += 1;
                lab.progress("training", 1, 2);
                if let Some(interrupt) = &self.interrupt {
                    interrupt.raise();
                    return Err(crate::Interrupted.into());
                }
                Ok(())
            })?;
            match (self.fail, &*cell.column.name) {
                (true, "Clean") => Err("no images".into()),
                (true, _) => panic!("index {}", 3),
                _ => Ok(Measured {
                    value: settings.attack.steps.into(),
                    n: 1,
                    ..Default::default()
                }),
            }
        }
    }

    struct Place {
        _dir: tempfile::TempDir,
        tables: PathBuf,
        store: PathBuf,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (tables, store) = (dir.path().join("tables"), dir.path().join("store"));
        fs::create_dir(&tables).unwrap();
        fs::write(tables.join("table1.toml"), TOML).unwrap();
        fs::write(tables.join("table1.csv"), CSV).unwrap();
        Place {
            _dir: dir,
            tables,
            store,
        }
    }

    /// As `run`, without its global logger.
    fn go(place: &Place, experiment: &Steps) -> (End, Store) {
        let store = Store::open(&place.store).unwrap();
        let table = &Table::load_dir(&place.tables).unwrap()[0];
        let cells = table.cells(Scale::Smoke, &Selection::default()).unwrap();
        let missing: Vec<_> = cells
            .into_iter()
            .filter(|cell| !is_measured(&store, cell).unwrap())
            .collect();
        let interrupt = experiment.interrupt.clone().unwrap_or_default();
        let lab = Lab::new(store.clone(), Scale::Smoke, interrupt, |_| {});
        (
            measure_all(experiment, &missing, &lab, Some("abc")).unwrap(),
            store,
        )
    }

    #[test]
    fn every_cell_is_measured_once_and_models_are_shared() {
        let place = place();
        let experiment = Steps::default();
        let (end, store) = go(&place, &experiment);
        assert_eq!(
            end,
            End {
                measured: 6,
                failed: 0,
                interrupted: false
            }
        );
        assert_eq!(*experiment.trained.lock().unwrap(), 2);
        let (end, _) = go(&place, &experiment);
        assert_eq!(end, End::default());

        let table = &Table::load_dir(&place.tables).unwrap()[0];
        let results = Results::load(&store, table, Scale::Smoke).unwrap();
        assert_eq!(results.mean("Plain", "Clean"), Some(10.0));
        assert_eq!(results.mean("Hard, robust", "BIM(30)"), Some(40.0));
        assert_eq!(results.commits().into_iter().collect::<Vec<_>>(), ["abc"]);
    }

    #[test]
    fn a_failed_cell_stops_no_other_and_is_tried_again() {
        let place = place();
        let (end, store) = go(
            &place,
            &Steps {
                fail: true,
                ..Steps::default()
            },
        );
        assert_eq!(
            end,
            End {
                measured: 0,
                failed: 6,
                interrupted: false
            }
        );
        let reasons: BTreeSet<String> = store
            .records("demo", "table1", Scale::Smoke)
            .unwrap()
            .into_iter()
            .map(|record| match record.outcome {
                Outcome::Failed(reason) => reason,
                Outcome::Measured(measured) => panic!("{measured:?}"),
            })
            .collect();
        let expected = ["no images", "panicked: index 3"];
        assert_eq!(reasons, expected.map(str::to_owned).into_iter().collect());
        let (end, _) = go(&place, &Steps::default());
        assert_eq!(end.measured, 6);
    }

    #[test]
    fn an_interrupted_cell_has_not_failed() {
        let place = place();
        let interrupt = Some(Interrupt::default());
        let (end, store) = go(
            &place,
            &Steps {
                interrupt,
                ..Steps::default()
            },
        );
        assert_eq!(
            end,
            End {
                measured: 0,
                failed: 0,
                interrupted: true
            }
        );
        assert_eq!(store.records("demo", "table1", Scale::Smoke).unwrap(), []);
        let (end, _) = go(&place, &Steps::default());
        assert_eq!(end.measured, 6);
    }

    #[test]
    fn wrong_settings_and_unknown_tables_end_the_run_before_it_begins() {
        let place = place();
        let store = place.store.display().to_string();
        let options = |more: &[&str]| {
            let base = ["demo", "--store", &store, "--scale", "smoke", "--dry-run"];
            Options::try_parse_from(base.iter().chain(more)).unwrap()
        };
        let go = |options: &Options| {
            run(
                &Steps::default(),
                &place.tables,
                options,
                Interrupt::default(),
            )
        };
        assert_eq!(go(&options(&[])).unwrap(), End::default());
        let error = go(&options(&["--table", "table9"]))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "--table: unknown table \"table9\"; known: table1");
        fs::write(
            place.tables.join("table1.toml"),
            TOML.replace("steps = 40", "steps = \"40\""),
        )
        .unwrap();
        let error = go(&options(&[])).unwrap_err().to_string();
        assert!(
            error.contains("column \"BIM(30)\"") && error.contains("steps"),
            "{error}"
        );
    }

    #[test]
    fn devices_are_checked() {
        for good in ["cpu", "cuda:0", "metal:1"] {
            assert_eq!(device(good).as_deref(), Ok(good));
        }
        for bad in ["gpu", "cuda", "cuda:x", "cpu:0"] {
            assert!(device(bad).is_err(), "{bad}");
        }
        let error = Options::try_parse_from(["demo", "--scale", "tiny"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("known: smoke, desk, paper"), "{error}");
    }
}
