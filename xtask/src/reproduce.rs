//! `cargo xtask reproduce`: finds the tables by folder, builds the examples that compute them, and
//! runs one process for each table and seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Message, TargetKind};
use theriac_tables::interrupt::INTERRUPTED_STATUS;
use theriac_tables::ui::{Job as Screen, Ui};
use theriac_tables::{
    Cell, CellName, Error, Event, Interrupt, Machine, Outcome, Record, Results, Scale, Selection,
    Store, Table, aligned, device, report, text,
};

use crate::page;
use crate::root::{self, Root};

/// Without arguments: every table at smoke scale.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only this paper.
    paper: Option<String>,
    /// Only this table or figure of the paper.
    table: Option<String>,
    /// smoke (embedded data, minutes), desk (hours on two cores) or paper (as printed).
    #[arg(long, default_value_t)]
    scale: Scale,
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
    /// cpu, cuda:0 or metal:0.
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: String,
    /// Processes at a time. More than one makes measured times longer.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
    /// Threads of each process; default: the cores, shared among the jobs.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    threads: Option<u64>,
    /// Folder of the data sets.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Use what is stored and go on where the last run stopped. The default.
    #[arg(long, conflicts_with = "fresh")]
    resume: bool,
    /// Ignore what is stored.
    #[arg(long)]
    fresh: bool,
    /// List papers, tables and how many of their cells are stored; compute nothing.
    #[arg(long)]
    list: bool,
    /// Show what would run; compute nothing.
    #[arg(long)]
    dry_run: bool,
    /// Log of the examples: off, error, warn, info, debug, trace.
    #[arg(long, default_value = "warn")]
    log: String,
    /// Folder for logs as JSON lines, one file for each process.
    #[arg(long)]
    log_json: Option<PathBuf>,
}

/// The cells of one table and seed that one process computes.
struct Job<'t> {
    table: &'t Table,
    seed: u64,
    cells: Vec<Cell<'t>>,
    missing: usize,
}

impl Job<'_> {
    fn name(&self) -> String {
        format!("{} {} seed {}", self.table.paper, self.table.id, self.seed)
    }
}

pub(crate) fn run(root: &Root, options: &Options) -> Result<ExitCode> {
    let all = root.tables()?;
    let tables = choose(&all, options)?;
    let mut store = Store::open(root.store())?.over(root.path("datasets/checkpoints"));
    if options.list {
        print!("{}", list(&tables, &store, options)?);
        return Ok(ExitCode::SUCCESS);
    }
    let started = SystemTime::now();
    if options.fresh {
        store = store.fresh_since(started);
    }
    let jobs = plan(&tables, &store, options)?;
    println!("{}", overview(&jobs, options.scale));
    if options.dry_run {
        return Ok(ExitCode::SUCCESS);
    }

    let jobs: Vec<Job<'_>> = jobs.into_iter().filter(|job| job.missing > 0).collect();
    let interrupt = Interrupt::on_signal()?;
    if !jobs.is_empty() {
        if let Some(dir) = &options.log_json {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let programs = build(root, &jobs, options);
        if interrupt.is_raised() {
            return Ok(ExitCode::from(INTERRUPTED_STATUS));
        }
        let programs = programs?;
        let shared = Shared {
            options,
            programs,
            store: &store,
            commit: commit(root),
            fresh_since: options.fresh.then_some(started),
            interrupt: &interrupt,
            ui: Ui::new(jobs.iter().map(|job| job.missing).sum()),
        };
        shared.run_all(jobs)?;
        shared.ui.finish();
    }

    let store = Store::open(root.store())?;
    let failures = print_results(&tables, &store, options)?;
    let papers: BTreeSet<&str> = tables.iter().map(|table| table.paper.as_str()).collect();
    let reported: Vec<Table> = all
        .iter()
        .filter(|table| papers.contains(&*table.paper))
        .cloned()
        .collect();
    let dir = root
        .path("target/reproduce/report")
        .join(options.scale.name());
    let index = report::write(&dir, &reported, &store, options.scale)?;
    if interrupt.is_raised() {
        eprintln!("Interrupted. The same command goes on from here.");
    }
    println!("Report: {}", index.display());
    for paper in papers {
        let page = page::page(paper, &reported, &store, options.scale)?;
        println!("        {}", page.write(dir.join(paper))?.display());
    }
    Ok(if interrupt.is_raised() {
        ExitCode::from(INTERRUPTED_STATUS)
    } else if failures > 0 {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    })
}

/// The tables that the arguments name; all without arguments.
fn choose<'t>(all: &'t [Table], options: &Options) -> Result<Vec<&'t Table>> {
    let mut chosen: Vec<&Table> = all.iter().collect();
    if let Some(paper) = &options.paper {
        let papers = root::papers(all);
        chosen.retain(|table| table.paper == *paper);
        if chosen.is_empty() {
            return Err(Error::unknown("reproduce", "paper", paper, papers).into());
        }
    }
    if let Some(name) = &options.table {
        let known: Vec<&str> = chosen.iter().map(|table| table.id.as_str()).collect();
        if !known.contains(&name.as_str()) {
            let place = format!("reproduce {}", options.paper.as_deref().unwrap_or_default());
            return Err(Error::unknown(place, "table", name, known).into());
        }
        chosen.retain(|table| table.id == *name);
    }
    Ok(chosen)
}

fn selection(options: &Options) -> Selection {
    Selection {
        rows: options.row.clone(),
        columns: options.column.clone(),
        readings: options.reading.clone(),
        seeds: options.seed.clone(),
    }
}

/// The selection for one table. A name that another chosen table knows selects nothing here, but
/// a name that none knows is an error.
fn cells<'t>(tables: &[&'t Table], scale: Scale, selection: &Selection) -> Result<Vec<Cell<'t>>> {
    let mut cells = Vec::new();
    let mut first_error = None;
    let mut any = false;
    for table in tables {
        match table.cells(scale, selection) {
            Ok(found) => {
                any = true;
                cells.extend(found);
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    match first_error {
        Some(error) if !any => Err(error.into()),
        _ => Ok(cells),
    }
}

fn plan<'t>(tables: &[&'t Table], store: &Store, options: &Options) -> Result<Vec<Job<'t>>> {
    let mut jobs: Vec<Job<'t>> = Vec::new();
    for cell in cells(tables, options.scale, &selection(options))? {
        let missing = usize::from(!is_stored(store, &cell)?);
        let same =
            |job: &&mut Job<'_>| std::ptr::eq(job.table, cell.table) && job.seed == cell.seed;
        match jobs.iter_mut().find(same) {
            Some(job) => {
                job.cells.push(cell);
                job.missing += missing;
            }
            None => {
                let (table, seed) = (cell.table, cell.seed);
                jobs.push(Job {
                    table,
                    seed,
                    cells: vec![cell],
                    missing,
                });
            }
        }
    }
    Ok(jobs)
}

fn is_stored(store: &Store, cell: &Cell<'_>) -> Result<bool> {
    Ok(matches!(
        store.find(cell)?,
        Some(Record {
            outcome: Outcome::Measured(_),
            ..
        })
    ))
}

fn overview(jobs: &[Job<'_>], scale: Scale) -> String {
    let mut lines = vec![
        ["paper", "table", "seed", "cells", "stored", "to run"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for job in jobs {
        lines.push(vec![
            job.table.paper.clone(),
            job.table.id.clone(),
            job.seed.to_string(),
            job.cells.len().to_string(),
            (job.cells.len() - job.missing).to_string(),
            job.missing.to_string(),
        ]);
    }
    if jobs.is_empty() {
        return format!("Nothing to run at {scale} scale.\n");
    }
    format!("At {scale} scale:\n{}", aligned(&lines))
}

/// Papers and tables with the state of their cells at each scale; the cells' names too where a
/// table is named.
fn list(tables: &[&Table], store: &Store, options: &Options) -> Result<String> {
    let mut lines = vec![vec![
        "paper".to_owned(),
        "table".to_owned(),
        "title".to_owned(),
    ]];
    lines[0].extend(Scale::ALL.map(|scale| format!("{scale}: stored/cells")));
    for table in tables {
        let mut line = vec![table.paper.clone(), table.id.clone(), table.title.clone()];
        for scale in Scale::ALL {
            let cells = cells(&[*table], scale, &selection(options))?;
            let mut stored = 0;
            for cell in &cells {
                stored += usize::from(is_stored(store, cell)?);
            }
            line.push(format!("{stored}/{}", cells.len()));
        }
        lines.push(line);
    }
    let mut out = aligned(&lines);
    if let (Some(_), [table]) = (&options.table, tables) {
        out += "\nrows:\n";
        table
            .rows
            .iter()
            .for_each(|row| out += &format!("  {}\n", row.name));
        out += "columns:\n";
        table
            .columns
            .iter()
            .for_each(|column| out += &format!("  {}\n", column.name));
        out += "readings:\n";
        table
            .readings
            .iter()
            .for_each(|reading| out += &format!("  {}\n", reading.name));
    }
    Ok(out)
}

/// Builds the examples of all jobs at once and returns their programs by paper. The whole
/// workspace is named, so that the features, and with them the compiled dependencies, are those of
/// `cargo test --workspace`.
fn build(root: &Root, jobs: &[Job<'_>], options: &Options) -> Result<BTreeMap<String, PathBuf>> {
    let papers: BTreeSet<&str> = jobs.iter().map(|job| job.table.paper.as_str()).collect();
    let mut cargo = root::cargo();
    cargo
        .current_dir(root.path(""))
        .args(["build", "--workspace"]);
    cargo.arg("--message-format=json-render-diagnostics");
    if options.scale != Scale::Smoke {
        cargo.arg("--release");
    }
    for paper in &papers {
        cargo.args(["--example", paper]);
    }
    let (kind, _) = options
        .device
        .split_once(':')
        .unwrap_or((&options.device, ""));
    if kind != "cpu" {
        let features: Vec<String> = papers
            .iter()
            .map(|paper| format!("theriac-{paper}/{kind}"))
            .collect();
        cargo.args(["--features", &features.join(",")]);
    }
    eprintln!(
        "Building {}",
        papers.iter().copied().collect::<Vec<_>>().join(", ")
    );
    let mut child = cargo
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut programs = BTreeMap::new();
    if let Some(out) = child.stdout.take() {
        for message in Message::parse_stream(BufReader::new(out)) {
            if let Message::CompilerArtifact(artifact) = message?
                && artifact.target.kind.contains(&TargetKind::Example)
                && let Some(program) = artifact.executable
            {
                programs.insert(artifact.target.name, program.into_std_path_buf());
            }
        }
    }
    if !child.wait()?.success() {
        bail!("the examples do not build");
    }
    for paper in papers {
        if !programs.contains_key(paper) {
            bail!("crate theriac-{paper} has tables but no examples/{paper}.rs to compute them");
        }
    }
    Ok(programs)
}

/// The commit of the working tree, if it is one.
fn commit(root: &Root) -> Option<String> {
    let git = |arguments: &[&str]| {
        let out = Command::new("git")
            .current_dir(root.path(""))
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8(out.stdout).ok()?;
        out.status.success().then(|| text.trim().to_owned())
    };
    let head = git(&["rev-parse", "--short=12", "HEAD"])?;
    let clean = git(&["status", "--porcelain"])?.is_empty();
    Some(if clean { head } else { format!("{head}-dirty") })
}

/// What all jobs of a run have in common.
struct Shared<'r> {
    options: &'r Options,
    programs: BTreeMap<String, PathBuf>,
    store: &'r Store,
    commit: Option<String>,
    fresh_since: Option<SystemTime>,
    interrupt: &'r Interrupt,
    ui: Ui,
}

impl Shared<'_> {
    fn run_all(&self, jobs: Vec<Job<'_>>) -> Result<()> {
        let timed = jobs.iter().any(|job| {
            job.table
                .columns
                .iter()
                .any(|it| it.unit == theriac_tables::Unit::Seconds)
        });
        if self.options.jobs > 1 && timed {
            self.ui
                .line("warning: with --jobs > 1 the measured times are those of a busy machine");
        }
        let queue = Mutex::new(VecDeque::from(jobs));
        let next = || {
            queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front()
        };
        let work = || -> Result<()> {
            while let Some(job) = next() {
                if self.interrupt.is_raised() {
                    break;
                }
                self.run_job(&job)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.options.jobs).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| match worker.join() {
                    Ok(done) => done,
                    Err(_) => bail!("a worker of `reproduce` panicked"),
                })
        })
    }

    /// Runs one process. Cells that it should have computed but neither measured nor reported are
    /// recorded as failed, with the reason why the process ended.
    fn run_job(&self, job: &Job<'_>) -> Result<()> {
        let program = &self.programs[&job.table.paper];
        let screen = self.ui.job(&job.name());
        let mut child = self
            .command(program, job)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let input = child.stdin.take();
        let (out, errors) = (child.stdout.take(), child.stderr.take());
        let over = AtomicBool::new(false);
        let (answered, last_words) = thread::scope(|scope| {
            scope.spawn(|| self.hold_open(input, &over));
            let errors = scope.spawn(|| {
                let mut last = None;
                for line in errors.into_iter().flat_map(|it| BufReader::new(it).lines()) {
                    let Ok(line) = line else { break };
                    screen.line(&line);
                    last = Some(line);
                }
                last
            });
            let mut answered = Vec::new();
            for line in out.into_iter().flat_map(|it| BufReader::new(it).lines()) {
                let Ok(line) = line else { break };
                show(&line, &screen, &mut answered);
            }
            let last_words = errors.join().ok().flatten();
            over.store(true, Ordering::SeqCst);
            (answered, last_words)
        });
        let status = child.wait()?;
        screen.show(&Event::End {
            measured: 0,
            failed: 0,
            interrupted: false,
        });
        if self.interrupt.is_raised() || status.code() == Some(INTERRUPTED_STATUS.into()) {
            return Ok(());
        }
        self.record_unanswered(job, &answered, status, last_words.as_deref())
    }

    /// Keeps the child's standard input open until it ends or is to stop: it stops by itself when
    /// this process is killed, and nothing keeps computing unseen.
    fn hold_open(&self, input: Option<ChildStdin>, over: &AtomicBool) {
        while !over.load(Ordering::SeqCst) && !self.interrupt.is_raised() {
            thread::sleep(Duration::from_millis(100));
        }
        drop(input);
    }

    fn command(&self, program: &Path, job: &Job<'_>) -> Command {
        let options = self.options;
        let mut command = Command::new(program);
        command.args(["--table", &job.table.id, "--seed", &job.seed.to_string()]);
        command.args(["--scale", options.scale.name(), "--device", &options.device]);
        command.args(["--log", &options.log, "--events", "--stop-at-eof"]);
        command.arg("--store").arg(self.store.dir());
        if let Some(kept) = self.store.kept() {
            command.arg("--kept").arg(kept);
        }
        let named = [
            ("--row", &options.row),
            ("--column", &options.column),
            ("--reading", &options.reading),
        ];
        for (name, values) in named {
            for value in values {
                command.args([name, value]);
            }
        }
        if let Some(dir) = &options.data_dir {
            command.arg("--data-dir").arg(dir);
        }
        if let Some(commit) = &self.commit {
            command.args(["--commit", commit]);
        }
        if let Some(threads) = self.threads() {
            let threads = threads.to_string();
            command.args(["--threads", &threads]);
            // candle has threads of its own, which wait for one another by spinning.
            command.envs(["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"].map(|name| (name, &threads)));
        }
        let since = self
            .fresh_since
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        if let Some(since) = since {
            command.args(["--fresh-since", &since.as_millis().to_string()]);
        }
        if let Some(dir) = &options.log_json {
            let name = job.name().replace(' ', "-");
            command
                .arg("--log-json")
                .arg(dir.join(format!("{name}.jsonl")));
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The cores shared among the jobs, unless the user gave a number.
    fn threads(&self) -> Option<u64> {
        let shared = || {
            let cores = thread::available_parallelism().map_or(1, usize::from) as u64;
            (self.options.jobs > 1).then(|| (cores / self.options.jobs).max(1))
        };
        self.options.threads.or_else(shared)
    }

    fn record_unanswered(
        &self,
        job: &Job<'_>,
        answered: &[CellName],
        status: ExitStatus,
        last_words: Option<&str>,
    ) -> Result<()> {
        for cell in &job.cells {
            if answered.contains(&cell.name()) || is_stored(self.store, cell)? {
                continue;
            }
            let reason = match last_words {
                Some(words) => format!("the program ended ({status}): {words}"),
                None => format!("the program ended ({status})"),
            };
            self.ui.line(&format!("{}: failed: {reason}", cell.name()));
            self.store.keep(&Record {
                spec: cell.spec()?,
                outcome: Outcome::Failed(reason),
                commit: self.commit.clone(),
                machine: Machine::this(&self.options.device, None),
            })?;
        }
        Ok(())
    }
}

/// Shows a line of a program; what is not an event was printed by accident and is passed on.
fn show(line: &str, screen: &Screen, answered: &mut Vec<CellName>) {
    let Ok(event) = serde_json::from_str::<Event>(line) else {
        return screen.line(line);
    };
    if let Event::Measured { cell, .. } | Event::Failed { cell, .. } = &event {
        answered.push(cell.clone());
    }
    screen.show(&event);
}

/// Prints every table with the paper's value beside ours and returns how many cells failed.
fn print_results(tables: &[&Table], store: &Store, options: &Options) -> Result<usize> {
    let mut failures = 0;
    for table in tables {
        let results = Results::load(store, table, options.scale)?;
        println!("{}", text(&results));
        failures += results.counts().1;
    }
    Ok(failures)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(arguments: &[&str]) -> Options {
        Line::try_parse_from(["reproduce"].iter().chain(arguments))
            .unwrap()
            .options
    }

    #[test]
    fn every_table_of_the_workspace_can_be_listed_and_planned() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let all = Root::of_this_workspace().tables().unwrap();
        let defaults = options(&[]);
        assert_eq!(defaults.scale, Scale::Smoke);
        let tables = choose(&all, &defaults).unwrap();
        assert_eq!(tables.len(), all.len());
        let listed = list(&tables, &store, &defaults).unwrap();
        for table in &all {
            assert!(listed.contains(&table.title), "{listed}");
        }
        let jobs = plan(&tables, &store, &defaults).unwrap();
        assert!(
            jobs.iter()
                .all(|job| job.missing == job.cells.len() && job.missing > 0)
        );
        assert!(jobs.iter().any(|job| job.table.id == "table1"));
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let all = Root::of_this_workspace().tables().unwrap();
        let error = choose(&all, &options(&["epochwize"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(
                "unknown paper \"epochwize\"; known: advamd, bpn, counteract, epochwise, learn2perturb"
            ),
            "{error}"
        );
        let error = choose(&all, &options(&["epochwise", "table7"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("unknown table \"table7\"; known: fig1a"),
            "{error}"
        );
        let row = options(&["--row", "Vanila"]);
        let error = plan(&choose(&all, &row).unwrap(), &store, &row)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("unknown row \"Vanila\""), "{error}");
        // A row of some tables only is no error.
        let row = options(&["--row", "ATDA"]);
        let jobs = plan(&choose(&all, &row).unwrap(), &store, &row).unwrap();
        assert!(!jobs.is_empty() && jobs.iter().all(|job| job.table.id == "table1"));
        assert!(Line::try_parse_from(["reproduce", "--fresh", "--resume"]).is_err());
        assert!(Line::try_parse_from(["reproduce", "--device", "gpu"]).is_err());
    }

    /// A program that dies leaves a reason for every cell that it owed.
    #[cfg(unix)]
    #[test]
    fn cells_of_a_program_that_ends_early_are_failed_cells() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let program = dir.path().join("program");
        fs::write(&program, "#!/bin/sh\necho 'out of memory' >&2\nexit 3\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();

        let all = Root::of_this_workspace().tables().unwrap();
        let options = options(&["epochwise", "table1", "--row", "Proposed"]);
        let jobs = plan(&choose(&all, &options).unwrap(), &store, &options).unwrap();
        let (cells, table) = (jobs[0].cells.len(), jobs[0].table);
        let shared = Shared {
            options: &options,
            programs: BTreeMap::from([("epochwise".to_owned(), program)]),
            store: &store,
            commit: None,
            fresh_since: None,
            interrupt: &Interrupt::default(),
            ui: Ui::new(cells),
        };
        shared.run_all(jobs).unwrap();
        let records = store.records("epochwise", &table.id, Scale::Smoke).unwrap();
        assert_eq!(records.len(), cells);
        for record in &records {
            let Outcome::Failed(reason) = &record.outcome else {
                panic!("{record:?}")
            };
            assert!(
                reason.contains("3") && reason.ends_with("out of memory"),
                "{reason}"
            );
        }
        let results = Results::load(&store, table, Scale::Smoke).unwrap();
        assert_eq!(results.counts(), (0, cells));
    }
}
