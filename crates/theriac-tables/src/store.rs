//! What was computed before: trained models, crafted examples, measurements.
//!
//! ```text
//! <dir>/<stage>/<key>/               a finished artefact, with spec.json
//! <dir>/<stage>/<key>.partial/       one being made, or interrupted
//! <dir>/<stage>/<key>.lock           held by the process that makes it
//! <kept>/<stage>/<key>/              one that came with the code
//! <dir>/results/<paper>/<table>/<scale>/<key>.json    a measurement
//! ```

use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{BoxError, Cell, Error, Record, Result, Scale};

/// A folder of artefacts and measurements, shared by processes.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    kept: Option<PathBuf>,
    fresh_since: Option<SystemTime>,
}

const RESULTS: &str = "results";
const SPEC: &str = "spec.json";

impl Store {
    /// Opens the folder, making it if needed.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        Ok(Self {
            dir,
            kept: None,
            fresh_since: None,
        })
    }

    /// The same store over a folder of kept artefacts, laid out alike and never written: what is
    /// not in the store itself is looked for there before it is made.
    #[must_use]
    pub fn over(mut self, kept: impl Into<PathBuf>) -> Self {
        self.kept = Some(kept.into());
        self
    }

    /// The same store, blind to everything that was begun before `since`. Processes that are given
    /// the same moment still share what they make after it.
    #[must_use]
    pub fn fresh_since(mut self, since: SystemTime) -> Self {
        self.fresh_since = Some(since);
        self
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of kept artefacts, if there is one.
    pub fn kept(&self) -> Option<&Path> {
        self.kept.as_deref()
    }

    /// The folder of the artefact that `stage` and `spec` describe, made by `make` unless it is
    /// there already.
    ///
    /// `make` gets a work folder that outlives interruptions: it should save its state there and
    /// resume from what it finds. The folder gets its final name when `make` returns `Ok`. While
    /// one process makes an artefact, others that need it wait.
    ///
    /// `spec` must hold everything that decides the result, seed and revision included
    /// ([`Lab::memo`](crate::Lab::memo) adds those two).
    ///
    /// # Errors
    /// If `make` fails, a file cannot be written, or a finished folder does not hold the `spec`.
    pub fn memo(
        &self,
        stage: &str,
        spec: &impl Serialize,
        make: impl FnOnce(&Path) -> Result<(), BoxError>,
    ) -> Result<PathBuf> {
        let spec = canonical(&to_value(stage, spec)?);
        let folder = self.dir.join(stage);
        let key = sha256(&[stage, &spec]);
        let done = folder.join(&key);
        if self.is_done(&done, &spec)? {
            return Ok(done);
        }
        if let (Some(kept), None) = (&self.kept, self.fresh_since) {
            let kept = kept.join(stage).join(&key);
            if self.is_done(&kept, &spec)? {
                tracing::info!(stage, path = %kept.display(), "kept");
                return Ok(kept);
            }
        }

        fs::create_dir_all(&folder).map_err(Error::io("make", &folder))?;
        let lock_path = folder.join(format!("{key}.lock"));
        let lock = File::create(&lock_path).map_err(Error::io("make", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!(
                    stage,
                    key,
                    "waiting for the process that makes the same artefact"
                );
                lock.lock().map_err(Error::io("lock", &lock_path))?;
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &lock_path)(error)),
        }
        if self.is_done(&done, &spec)? {
            return Ok(done);
        }
        remove(&done)?;

        let partial = folder.join(format!("{key}.partial"));
        if partial.exists() && self.is_stale(&partial.join(SPEC)) {
            remove(&partial)?;
        }
        if partial.exists() {
            tracing::info!(stage, key, "resuming");
        }
        fs::create_dir_all(&partial).map_err(Error::io("make", &partial))?;
        if !partial.join(SPEC).exists() {
            write_atomic(&partial.join(SPEC), spec.as_bytes())?;
        }
        make(&partial).map_err(|source| Error::Make {
            stage: stage.into(),
            source,
        })?;
        fs::rename(&partial, &done).map_err(Error::io("rename", &partial))?;
        Ok(done)
    }

    /// Whether the finished folder can be used. One from before the fresh start cannot; one whose
    /// spec is missing or different is an error.
    fn is_done(&self, done: &Path, spec: &str) -> Result<bool> {
        if !done.exists() {
            return Ok(false);
        }
        let path = done.join(SPEC);
        let corrupt = |problem: &str| Error::Corrupt {
            path: done.to_path_buf(),
            problem: problem.into(),
        };
        let found = fs::read_to_string(&path).map_err(|_| corrupt("spec.json is missing"))?;
        if found != spec {
            return Err(corrupt("spec.json describes something else"));
        }
        Ok(!self.is_stale(&path))
    }

    fn is_stale(&self, path: &Path) -> bool {
        self.fresh_since.is_some_and(|since| {
            fs::metadata(path)
                .and_then(|data| data.modified())
                .is_ok_and(|then| then < since)
        })
    }

    /// Keeps a measurement.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn keep(&self, record: &Record) -> Result<PathBuf> {
        let cell = &record.spec.cell;
        let dir = self.results(&cell.paper, &cell.table, cell.scale);
        fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        let path = dir.join(format!("{}.json", record_key(&record.spec)?));
        let text = serde_json::to_string_pretty(record).map_err(|source| Error::Json {
            what: cell.to_string(),
            source,
        })?;
        write_atomic(&path, text.as_bytes())?;
        Ok(path)
    }

    /// The measurement of a cell with its present settings and revision.
    ///
    /// # Errors
    /// If the stored file is not a measurement.
    pub fn find(&self, cell: &Cell<'_>) -> Result<Option<Record>> {
        let spec = cell.spec()?;
        let dir = self.results(&spec.cell.paper, &spec.cell.table, spec.cell.scale);
        let path = dir.join(format!("{}.json", record_key(&spec)?));
        if !path.exists() || self.is_stale(&path) {
            return Ok(None);
        }
        read_record(&path).map(Some)
    }

    /// All measurements of a table at a scale, of whatever revision and settings.
    ///
    /// # Errors
    /// If the folder cannot be read or holds a file that is not a measurement.
    pub fn records(&self, paper: &str, table: &str, scale: Scale) -> Result<Vec<Record>> {
        let dir = self.results(paper, table, scale);
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let mut paths = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::io("read", &dir))? {
            let path = entry.map_err(Error::io("read", &dir))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                paths.push(path);
            }
        }
        paths.sort();
        paths.iter().map(|path| read_record(path)).collect()
    }

    fn results(&self, paper: &str, table: &str, scale: Scale) -> PathBuf {
        self.dir
            .join(RESULTS)
            .join(paper)
            .join(table)
            .join(scale.name())
    }
}

fn read_record(path: &Path) -> Result<Record> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    serde_json::from_str(&text).map_err(|error| Error::Corrupt {
        path: path.into(),
        problem: error.to_string(),
    })
}

fn record_key(spec: &impl Serialize) -> Result<String> {
    Ok(sha256(&[RESULTS, &canonical(&to_value(RESULTS, spec)?)]))
}

fn to_value(what: &str, value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|source| Error::Json {
        what: format!("the spec of {what}"),
        source,
    })
}

/// JSON with the keys of every object in order. serde_json alone promises it only while no crate
/// of the build turns its `preserve_order` on.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let entries: Vec<_> = entries
                .into_iter()
                .map(|(key, value)| format!("{}:{}", json!(key), canonical(value)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(list) => {
            format!(
                "[{}]",
                list.iter().map(canonical).collect::<Vec<_>>().join(",")
            )
        }
        plain => plain.to_string(),
    }
}

fn sha256(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Writes beside the file and renames, so that nobody ever reads half of it.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::table::tests::demo;
    use crate::{Machine, Measured, Outcome, Selection};

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        (dir, store)
    }

    #[test]
    fn a_kept_artefact_is_used_unless_a_fresh_start_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let made = |store: &Store| {
            let mut calls = 0;
            let path = store
                .memo("train", &json!({ "seed": 1 }), |work| {
                    calls += 1;
                    Ok(fs::write(work.join("model"), "weights")?)
                })
                .unwrap();
            (calls, path)
        };
        let kept = Store::open(dir.path().join("kept")).unwrap();
        assert_eq!(made(&kept).0, 1);
        let store = Store::open(dir.path().join("store")).unwrap();
        let over = store.clone().over(dir.path().join("kept"));
        let (calls, path) = made(&over);
        assert!(calls == 0 && path.starts_with(dir.path().join("kept")));
        let (calls, path) = made(&over.fresh_since(SystemTime::now()));
        assert!(calls == 1 && path.starts_with(dir.path().join("store")));
        fs::write(
            kept.dir()
                .join("train")
                .join(path.file_name().unwrap())
                .join(SPEC),
            "{}",
        )
        .unwrap();
        let other = Store::open(dir.path().join("other"))
            .unwrap()
            .over(dir.path().join("kept"));
        assert!(
            other
                .memo("train", &json!({ "seed": 1 }), |_| Ok(()))
                .is_err()
        );
    }

    #[test]
    fn memo_makes_once_and_resumes_after_a_failure() {
        let (_dir, store) = store();
        let spec = json!({ "epochs": 2, "seed": 0 });
        let error = store
            .memo("train", &spec, |work| {
                fs::write(work.join("epoch1"), "weights")?;
                Err("power cut".into())
            })
            .unwrap_err();
        assert!(error.to_string().contains("train: power cut"), "{error}");

        let made = store
            .memo("train", &spec, |work| {
                assert_eq!(fs::read_to_string(work.join("epoch1"))?, "weights");
                fs::write(work.join("epoch2"), "more")?;
                Ok(())
            })
            .unwrap();
        assert!(made.join("epoch2").exists() && made.join(SPEC).exists());

        let again = store
            .memo("train", &spec, |_| Err("made twice".into()))
            .unwrap();
        assert_eq!(again, made);
        let other = store
            .memo("train", &json!({ "epochs": 3, "seed": 0 }), |_| Ok(()))
            .unwrap();
        assert_ne!(other, made);
        let stage = store.memo("craft", &spec, |_| Ok(())).unwrap();
        assert_ne!(stage, made);
    }

    #[test]
    fn a_finished_folder_without_its_spec_is_an_error() {
        let (_dir, store) = store();
        let made = store
            .memo("train", &json!({ "seed": 0 }), |_| Ok(()))
            .unwrap();
        fs::write(made.join(SPEC), "{}").unwrap();
        let error = store
            .memo("train", &json!({ "seed": 0 }), |_| Ok(()))
            .unwrap_err();
        assert!(
            error.to_string().contains("describes something else"),
            "{error}"
        );
        fs::remove_file(made.join(SPEC)).unwrap();
        let error = store
            .memo("train", &json!({ "seed": 0 }), |_| Ok(()))
            .unwrap_err();
        assert!(
            error.to_string().contains("spec.json is missing"),
            "{error}"
        );
    }

    #[test]
    fn two_that_need_the_same_artefact_make_it_once() {
        let (_dir, store) = store();
        let made = AtomicUsize::new(0);
        let need = || {
            store.memo("train", &json!({ "seed": 0 }), |_| {
                made.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(100));
                Ok(())
            })
        };
        std::thread::scope(|scope| {
            let threads = [scope.spawn(need), scope.spawn(need)];
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_fresh_start_ignores_what_was_before_and_shares_what_comes_after() {
        let (_dir, store) = store();
        let spec = json!({ "seed": 0 });
        store
            .memo("train", &spec, |work| Ok(fs::write(work.join("old"), "")?))
            .unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let fresh = store.clone().fresh_since(SystemTime::now());
        std::thread::sleep(Duration::from_millis(20));
        let made = fresh.memo("train", &spec, |_| Ok(())).unwrap();
        assert!(!made.join("old").exists());
        fresh
            .memo("train", &spec, |_| Err("made twice".into()))
            .unwrap();
    }

    #[test]
    fn measurements_are_found_again_until_the_settings_change() {
        let (_dir, store) = store();
        let table = demo();
        let cells = table.cells(Scale::Smoke, &Selection::default()).unwrap();
        let cell = cells[0];
        assert_eq!(store.find(&cell).unwrap(), None);
        let record = Record {
            spec: cell.spec().unwrap(),
            outcome: Outcome::Measured(Measured {
                value: 98.0,
                n: 100,
                ..Measured::default()
            }),
            commit: Some("abc".into()),
            machine: Machine::this("cpu", None),
        };
        let path = store.keep(&record).unwrap();
        assert_eq!(store.find(&cell).unwrap(), Some(record.clone()));
        assert_eq!(
            store.records("demo", "table1", Scale::Smoke).unwrap(),
            [record]
        );
        assert_eq!(store.records("demo", "table1", Scale::Desk).unwrap(), []);

        let mut raised = table.clone();
        raised.revision += 1;
        let cell = raised.cells(Scale::Smoke, &Selection::default()).unwrap()[0];
        assert_eq!(store.find(&cell).unwrap(), None);

        fs::write(&path, "half a fi").unwrap();
        let error = store.records("demo", "table1", Scale::Smoke).unwrap_err();
        assert!(error.to_string().contains("delete it"), "{error}");
    }

    proptest! {
        #[test]
        fn the_canonical_form_does_not_depend_on_the_order_of_keys(
            entries in prop::collection::btree_map("[a-z]{1,4}", -1e6f64..1e6, 1..8),
            swap in any::<prop::sample::Index>(),
        ) {
            let one: Vec<String> =
                entries.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
            let mut other = one.clone();
            other.rotate_left(swap.index(one.len()));
            let parse = |parts: &[String]| -> Value {
                serde_json::from_str(&format!("{{\"in\":{{{}}}}}", parts.join(","))).unwrap()
            };
            prop_assert_eq!(canonical(&parse(&one)), canonical(&parse(&other)));
            // Canonical JSON is JSON of the same value.
            let back: Value = serde_json::from_str(&canonical(&parse(&one))).unwrap();
            prop_assert_eq!(back, parse(&one));
        }
    }
}
