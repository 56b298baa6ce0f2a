//! Progress for people: bars with the time left on a terminal, now and then a line elsewhere.

#![allow(clippy::print_stderr)]

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use crate::Event;

/// How long a stage may go on without a line, where there are no bars.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Shows what one or several runs are doing, on standard error. Clones share the screen.
#[derive(Clone)]
pub struct Ui {
    bars: Option<Bars>,
}

#[derive(Clone)]
struct Bars {
    screen: MultiProgress,
    cells: ProgressBar,
}

impl Ui {
    /// Bars if standard error is a terminal, lines otherwise; `cells` are to be computed.
    pub fn new(cells: usize) -> Self {
        if !io::stderr().is_terminal() {
            return Self { bars: None };
        }
        let screen = MultiProgress::new();
        let cells = screen.add(ProgressBar::new(cells as u64));
        cells.set_style(style(
            "{bar:30} {pos}/{len} cells, {elapsed} gone, {eta} left",
        ));
        cells.enable_steady_tick(Duration::from_secs(1));
        Self {
            bars: Some(Bars { screen, cells }),
        }
    }

    /// A part of the screen for one run.
    pub fn job(&self, name: &str) -> Job {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.screen.insert_before(&bars.cells, ProgressBar::new(0));
            bar.set_style(style("{prefix}: {msg} {bar:20} {pos}/{len}, {eta} left"));
            bar.set_prefix(name.to_owned());
            bar.set_message("starting");
            bar
        });
        let stage = Stage {
            label: String::new(),
            first: 0,
            begun: Instant::now(),
            shown: Instant::now(),
        };
        Job {
            ui: self.clone(),
            name: name.into(),
            bar,
            stage: Arc::new(Mutex::new(stage)),
        }
    }

    /// Shows a line above the bars.
    pub fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.screen.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Clears the bars.
    pub fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.cells.finish_and_clear();
        }
    }
}

/// A log may be written to the user interface: it appears above the bars.
impl Write for Ui {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.bars {
            Some(bars) => bars.screen.suspend(|| io::stderr().write_all(bytes))?,
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The part of the screen that belongs to one run.
#[derive(Clone)]
pub struct Job {
    ui: Ui,
    name: String,
    bar: Option<ProgressBar>,
    stage: Arc<Mutex<Stage>>,
}

struct Stage {
    label: String,
    /// Steps that were done before: a resumed stage begins with some.
    first: u64,
    begun: Instant,
    shown: Instant,
}

impl Job {
    /// Shows an event.
    pub fn show(&self, event: &Event) {
        match event {
            Event::Begin { total, stored } => {
                if *stored > 0 {
                    self.line(&format!("{stored} of {total} cells are stored already"));
                }
            }
            Event::Cell(cell) => self.step(&format!("{}, {}", cell.row, cell.column), 0, 0),
            Event::Progress { label, done, total } => self.step(label, *done, *total),
            Event::Measured {
                cell,
                value,
                unit,
                n,
                interval,
                verdict,
                seconds,
            } => {
                let mut text = format!("{cell}: {}", unit.format(*value));
                if let Some((low, high)) = interval {
                    text += &format!(" [{}, {}]", unit.format(*low), unit.format(*high));
                }
                text += &format!(" (n = {n}, {seconds:.1} s");
                if let Some(verdict) = verdict {
                    text += &format!(", {verdict}");
                }
                self.cell_done(&(text + ")"));
            }
            Event::Failed { cell, reason } => self.cell_done(&format!("{cell}: failed: {reason}")),
            Event::End { interrupted, .. } => {
                if *interrupted {
                    self.line("interrupted; what is done is kept");
                }
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
            }
        }
    }

    /// Shows a line of this run.
    pub fn line(&self, text: &str) {
        self.ui.line(&format!("[{}] {text}", self.name));
    }

    fn cell_done(&self, text: &str) {
        self.ui.line(text);
        if let Some(bars) = &self.ui.bars {
            bars.cells.inc(1);
        }
    }

    fn step(&self, label: &str, done: u64, total: u64) {
        let mut stage = lock(&self.stage);
        let new = stage.label != label;
        let now = Instant::now();
        if new {
            *stage = Stage {
                label: label.into(),
                first: done,
                begun: now,
                shown: now,
            };
        }
        if let Some(bar) = &self.bar {
            if new {
                bar.reset();
                bar.set_message(label.to_owned());
            }
            bar.set_length(total);
            bar.set_position(done);
            if new {
                bar.reset_eta();
            }
            return;
        }
        let over = total > 0 && done >= total;
        if total == 0 || !(over || now - stage.shown >= BETWEEN_LINES) {
            return;
        }
        stage.shown = now;
        let gone = now - stage.begun;
        let here = done.saturating_sub(stage.first);
        let left = if over || here == 0 {
            String::new()
        } else {
            let left = gone.mul_f64((total - done) as f64 / here as f64);
            format!(", {} left", HumanDuration(left))
        };
        self.line(&format!("{label}: {done}/{total}{left}"));
    }
}

/// A panic while drawing leaves nothing inconsistent behind.
fn lock(stage: &Mutex<Stage>) -> MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
