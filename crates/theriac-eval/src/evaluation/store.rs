//! What an evaluation has found so far, in a folder that survives a kill at any moment.
//!
//! ```text
//! manifest.json                     what is evaluated, how, and by which version
//! lock                              held while a process works
//! facts/apgd-ce.jsonl               a line for each image and stage
//! examples/apgd-ce/000128.safetensors   images that break the model: "images", "positions"
//! ```
//!
//! Examples are written under a temporary name and renamed, then their lines are appended in one
//! write and brought to the disk. A line that was cut short by a kill is taken away when the folder
//! is opened; its batch is done again and gives the same bits.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use theriac::Pixels;

use super::facts::{Fact, Facts};
use super::plan::Plan;

/// Version of the files; raised when their meaning changes.
const FORMAT: u32 = 1;

/// What goes wrong with the folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The system refused.
    #[error("{path}: {source}; {remedy}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Another process works there.
    #[error(
        "{0} is in use by another process: wait for it, or give each its own folder and \
             merge them"
    )]
    Locked(PathBuf),
    /// The folder holds another evaluation.
    #[error(
        "{dir} holds an evaluation with another {what} ({there}, here {here}): choose another \
         folder, or remove this one"
    )]
    Other {
        /// The folder.
        dir: PathBuf,
        /// What differs.
        what: String,
        /// Its value in the folder.
        there: String,
        /// Its value now.
        here: String,
    },
    /// A file says what cannot be.
    #[error("{path}{line}: {reason}; remove the file, and its work is done again")]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, with a colon before it, or nothing.
        line: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A part that does not exist.
    #[error(
        "part {0} of {1}: parts are numbered from 0, so the last is one less than their number"
    )]
    Shard(u32, u32),
    /// Folders that cannot be merged.
    #[error("cannot merge: {0}")]
    Merge(String),
    /// Images could not be written or read.
    #[error("{path}: {source}")]
    Images {
        /// The file.
        path: PathBuf,
        /// Why.
        source: candle_core::Error,
    },
}

impl From<StoreError> for theriac::Error {
    fn from(error: StoreError) -> Self {
        Self::Other(Box::new(error))
    }
}

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What is evaluated. Two evaluations with equal subjects and plans give equal tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Name of the model.
    pub model: String,
    /// SHA-256 of its weights.
    pub weights_sha256: String,
    /// Name of the data.
    pub data: String,
    /// SHA-256 of images and labels.
    pub data_sha256: String,
    /// Number of images.
    pub images: u32,
    /// Shape of an image, [C, H, W].
    pub shape: Vec<usize>,
    /// Number of classes.
    pub classes: usize,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Element type.
    pub dtype: String,
    /// Device.
    pub device: String,
    /// Anything else that results depend on.
    #[serde(default)]
    pub more: BTreeMap<String, String>,
}

/// A part of the images: those whose position leaves `index` when divided by `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which part, from 0.
    pub index: u32,
    /// Number of parts.
    pub of: u32,
}

impl Shard {
    /// All images.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    fn check(self) -> Result<()> {
        if self.index < self.of {
            return Ok(());
        }
        Err(StoreError::Shard(self.index, self.of))
    }

    /// Whether a position belongs to this part.
    pub fn has(self, position: u32) -> bool {
        position % self.of.max(1) == self.index
    }
}

/// What stands in `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the files.
    pub format: u32,
    /// Version of this crate.
    pub version: String,
    /// What is evaluated.
    pub subject: Subject,
    /// What is done.
    pub plan: Plan,
    /// Which images.
    pub shard: Shard,
}

impl Manifest {
    /// Of this version.
    pub fn new(subject: Subject, plan: Plan, shard: Shard) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            subject,
            plan,
            shard,
        }
    }

    /// The positions of its images.
    pub fn positions(&self) -> impl Iterator<Item = u32> {
        let shard = self.shard;
        (0..self.subject.images).filter(move |&position| shard.has(position))
    }
}

/// The folder of one evaluation, locked while this lives.
#[derive(Debug)]
pub struct Store {
    dir: Option<PathBuf>,
    manifest: Manifest,
    facts: Facts,
    state_kept: Option<bool>,
    /// By stage, where there is no folder.
    examples: BTreeMap<String, Vec<(u32, Tensor)>>,
    _lock: Option<File>,
}

impl Store {
    /// Opens or starts the folder of an evaluation.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another process works there, [`StoreError::Other`] if another
    /// evaluation or version wrote it, [`StoreError::Broken`] for files that do not read,
    /// [`StoreError::Io`] from the system.
    pub fn open(dir: &Path, manifest: Manifest) -> Result<Self> {
        manifest.shard.check()?;
        fs::create_dir_all(dir).map_err(io(dir))?;
        let lock = Some(lock(dir)?);
        let path = dir.join("manifest.json");
        if path.exists() {
            let there = read_manifest(dir)?;
            same(dir, &there, &manifest)?;
        } else {
            let foreign = fs::read_dir(dir).map_err(io(dir))?.flatten();
            let foreign = foreign.filter(|entry| entry.file_name() != "lock");
            if let Some(entry) = foreign.into_iter().next() {
                return Err(StoreError::Other {
                    dir: dir.to_owned(),
                    what: "purpose".to_owned(),
                    there: format!("it holds {:?}", entry.file_name()),
                    here: "an evaluation".to_owned(),
                });
            }
            let text = serde_json::to_string_pretty(&manifest).map_err(broken(&path))?;
            replace(&path, text.as_bytes())?;
        }
        let facts = Self::read_facts(dir, &manifest, true)?;
        let state_kept = read_state(dir)?;
        Ok(Self {
            dir: Some(dir.to_owned()),
            manifest,
            facts,
            state_kept,
            examples: BTreeMap::new(),
            _lock: lock,
        })
    }

    /// An evaluation that leaves nothing behind.
    ///
    /// # Errors
    /// [`StoreError::Shard`] for a part that does not exist.
    pub fn in_memory(manifest: Manifest) -> Result<Self> {
        manifest.shard.check()?;
        Ok(Self {
            dir: None,
            manifest,
            facts: Facts::default(),
            state_kept: None,
            examples: BTreeMap::new(),
            _lock: None,
        })
    }

    /// What is evaluated, and how.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What is known.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether the model's weights and statistics were the same after every run; `None` if nobody
    /// looked.
    pub fn state_kept(&self) -> Option<bool> {
        self.state_kept
    }

    /// Notes whether the model's weights and statistics are the same as before.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn note_state(&mut self, kept: bool) -> Result<()> {
        let kept = kept && self.state_kept != Some(false);
        if let Some(dir) = &self.dir {
            let text = if kept { "true" } else { "false" };
            replace(&dir.join("state.json"), text.as_bytes())?;
        }
        self.state_kept = Some(kept);
        Ok(())
    }

    /// The folder, unless all is in memory.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Adds a batch of one stage: its facts, and the images that break the model, if any.
    ///
    /// # Errors
    /// [`StoreError::Io`] or [`StoreError::Images`]; nothing of the batch is then known.
    pub fn add(
        &mut self,
        stage: &str,
        facts: Vec<(u32, Fact)>,
        examples: Option<(&[u32], &Pixels)>,
    ) -> Result<()> {
        match (&self.dir, examples) {
            (Some(dir), examples) => Self::write(dir, stage, &facts, examples)?,
            (None, Some((positions, images))) => {
                let kept = self.examples.entry(stage.to_owned()).or_default();
                for (i, &position) in positions.iter().enumerate() {
                    let image = images.tensor().get(i).and_then(|image| image.copy());
                    kept.push((position, image.map_err(in_memory)?));
                }
            }
            (None, None) => {}
        }
        for (position, fact) in facts {
            self.facts.insert(stage, position, fact);
        }
        Ok(())
    }

    fn write(
        dir: &Path,
        stage: &str,
        facts: &[(u32, Fact)],
        examples: Option<(&[u32], &Pixels)>,
    ) -> Result<()> {
        if let Some((positions, images)) = examples {
            let dir = dir.join("examples").join(stage);
            fs::create_dir_all(&dir).map_err(io(&dir))?;
            let first = positions.first().copied().unwrap_or_default();
            let path = dir.join(format!("{first:06}.safetensors"));
            write_images(&path, positions, images)?;
        }
        let dir = dir.join("facts");
        fs::create_dir_all(&dir).map_err(io(&dir))?;
        let path = dir.join(format!("{stage}.jsonl"));
        let mut text = String::new();
        for line in facts {
            text += &serde_json::to_string(line).map_err(broken(&path))?;
            text.push('\n');
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let mut file = file.map_err(io(&path))?;
        let before = file.metadata().map_err(io(&path))?.len();
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_data());
        if let Err(error) = written {
            // A part of a line must not stay before the next. If this fails too, the line is taken
            // away when the folder is opened.
            let _ = file.set_len(before);
            return Err(io(&path)(error));
        }
        Ok(())
    }

    /// The images of a stage that break the model, with their positions, in order.
    ///
    /// # Errors
    /// [`StoreError::Io`] or [`StoreError::Images`].
    pub fn examples(&self, stage: &str) -> Result<Vec<(u32, Tensor)>> {
        match &self.dir {
            Some(dir) => examples(dir, stage),
            None => {
                let mut kept = self.examples.get(stage).cloned().unwrap_or_default();
                kept.sort_by_key(|(position, _)| *position);
                Ok(kept)
            }
        }
    }

    /// Joins the folders of all shards of one evaluation into a new one.
    ///
    /// # Errors
    /// [`StoreError::Merge`] unless the folders are the shards `0 .. n` of `n`, each complete, of
    /// one evaluation; those of [`Store::open`].
    pub fn merge(dirs: &[PathBuf], into: &Path) -> Result<Self> {
        let merge = |text: String| Err(StoreError::Merge(text));
        let Some(first) = dirs.first() else {
            return merge("no folders were named".to_owned());
        };
        let mut whole = read_manifest(first)?;
        let parts = whole.shard.of;
        whole.shard = Shard::WHOLE;
        let mut seen = vec![None; parts as usize];
        let (mut read, mut states) = (Vec::new(), Vec::new());
        for dir in dirs {
            let lock = lock(dir)?;
            let manifest = read_manifest(dir)?;
            let Shard { index, of } = manifest.shard;
            if of != parts {
                return merge(format!(
                    "{} is one of {of} parts, {} one of {parts}",
                    dir.display(),
                    first.display()
                ));
            }
            let alike = Manifest {
                shard: Shard::WHOLE,
                ..manifest.clone()
            };
            same(dir, &whole, &alike)?;
            if let Some(other) = seen[index as usize].replace(dir) {
                return merge(format!(
                    "{} and {} are both part {index} of {of}",
                    other.display(),
                    dir.display()
                ));
            }
            states.push(read_state(dir)?);
            read.push((dir, Self::read_facts(dir, &manifest, false)?, lock));
        }
        if let Some(missing) = seen.iter().position(Option::is_none) {
            return merge(format!(
                "part {missing} of {parts} is not among the folders"
            ));
        }
        let mut store = Self::open(into, whole)?;
        for stage in store.manifest.plan.stages.clone() {
            for (dir, facts, _) in &read {
                let known = facts.of_stage(&stage.name);
                let new = known.filter(|(position, _)| !store.facts.has(&stage.name, *position));
                let new: Vec<(u32, Fact)> = new.map(|(at, fact)| (at, fact.clone())).collect();
                let from = dir.join("examples").join(&stage.name);
                for file in files(&from)? {
                    let to = into.join("examples").join(&stage.name);
                    fs::create_dir_all(&to).map_err(io(&to))?;
                    let name = file.file_name().unwrap_or_default();
                    let bytes = fs::read(&file).map_err(io(&file))?;
                    replace(&to.join(name), &bytes)?;
                }
                if !new.is_empty() {
                    store.add(&stage.name, new, None)?;
                }
            }
        }
        if let Some(kept) = states.into_iter().collect::<Option<Vec<bool>>>() {
            store.note_state(kept.into_iter().all(|kept| kept))?;
        }
        Ok(store)
    }

    fn read_facts(dir: &Path, manifest: &Manifest, mend: bool) -> Result<Facts> {
        let mut facts = Facts::default();
        for stage in &manifest.plan.stages {
            let path = dir.join("facts").join(format!("{}.jsonl", stage.name));
            let Some(bytes) = read_if_there(&path)? else {
                continue;
            };
            let end = bytes.iter().rposition(|byte| *byte == b'\n');
            let end = end.map_or(0, |at| at + 1);
            if end < bytes.len() && mend {
                tracing::warn!(file = %path.display(), "the last line was cut short: removed");
                let file = OpenOptions::new().write(true).open(&path);
                let cut = file.and_then(|file| file.set_len(end as u64));
                cut.map_err(io(&path))?;
            }
            for (number, line) in bytes[..end].split(|byte| *byte == b'\n').enumerate() {
                if line.is_empty() {
                    continue;
                }
                let wrong = |reason: String| StoreError::Broken {
                    path: path.clone(),
                    line: format!(":{}", number + 1),
                    reason,
                };
                let (position, fact): (u32, Fact) =
                    serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
                if position >= manifest.subject.images || !manifest.shard.has(position) {
                    return Err(wrong(format!("no image {position} belongs here")));
                }
                facts.insert(&stage.name, position, fact);
            }
        }
        Ok(facts)
    }
}

fn in_memory(source: candle_core::Error) -> StoreError {
    let path = PathBuf::from("examples in memory");
    StoreError::Images { path, source }
}

/// The images of a stage in a folder that break the model, with their positions, in order.
fn examples(dir: &Path, stage: &str) -> Result<Vec<(u32, Tensor)>> {
    let mut all = BTreeMap::new();
    for path in files(&dir.join("examples").join(stage))? {
        let wrong = |source| StoreError::Images {
            path: path.clone(),
            source,
        };
        let file = candle_core::safetensors::load(&path, &Device::Cpu).map_err(wrong)?;
        let (Some(images), Some(positions)) = (file.get("images"), file.get("positions")) else {
            return Err(StoreError::Broken {
                path: path.clone(),
                line: String::new(),
                reason: "it has no \"images\" and \"positions\"".to_owned(),
            });
        };
        for (i, position) in positions
            .to_vec1::<u32>()
            .map_err(wrong)?
            .into_iter()
            .enumerate()
        {
            all.insert(position, images.get(i).map_err(wrong)?);
        }
    }
    Ok(all.into_iter().collect())
}

fn write_images(path: &Path, positions: &[u32], images: &Pixels) -> Result<()> {
    let wrong = |source| StoreError::Images {
        path: path.to_owned(),
        source,
    };
    let images = images.tensor().to_device(&Device::Cpu).map_err(wrong)?;
    let positions = Tensor::new(positions, &Device::Cpu).map_err(wrong)?;
    let tensors = HashMap::from([("images", images), ("positions", positions)]);
    let dir = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .suffix(".part")
        .tempfile_in(dir)
        .map_err(io(dir))?;
    candle_core::safetensors::save(&tensors, file.path()).map_err(wrong)?;
    file.as_file().sync_data().map_err(io(path))?;
    file.persist(path).map_err(|error| io(path)(error.error))?;
    Ok(())
}

/// Finished files of a folder, in order; none if it is not there.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io(dir))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(io(dir))?.path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_state(dir: &Path) -> Result<Option<bool>> {
    let path = dir.join("state.json");
    match read_if_there(&path)? {
        Some(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(broken(&path))?)),
        None => Ok(None),
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(io(&path)(error)),
    }
}

/// The manifest of a folder.
///
/// # Errors
/// [`StoreError::Io`] if there is none, [`StoreError::Broken`] if it does not read,
/// [`StoreError::Other`] if another version wrote it.
pub fn read_manifest(dir: &Path) -> Result<Manifest> {
    #[derive(Deserialize)]
    struct Written {
        format: u32,
        version: String,
    }
    let path = dir.join("manifest.json");
    let bytes = fs::read(&path).map_err(io(&path))?;
    let Written { format, version } = serde_json::from_slice(&bytes).map_err(broken(&path))?;
    if format != FORMAT {
        return Err(StoreError::Other {
            dir: dir.to_owned(),
            what: "format of its files".to_owned(),
            there: format!("{format}, written by version {version}"),
            here: format!("{FORMAT}, version {}", env!("CARGO_PKG_VERSION")),
        });
    }
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(broken(&path))?;
    manifest.shard.check()?;
    Ok(manifest)
}

/// An error naming the first difference of two manifests.
fn same(dir: &Path, there: &Manifest, here: &Manifest) -> Result<()> {
    let value = |manifest: &Manifest| serde_json::to_value(manifest).map_err(broken(dir));
    let (a, b) = (value(there)?, value(here)?);
    match difference(String::new(), &a, &b) {
        None => Ok(()),
        Some((what, there, here)) => Err(StoreError::Other {
            dir: dir.to_owned(),
            what,
            there,
            here,
        }),
    }
}

fn difference(
    at: String,
    a: &serde_json::Value,
    b: &serde_json::Value,
) -> Option<(String, String, String)> {
    use serde_json::Value::{Array, Object};
    let under = |key: &str| match at.is_empty() {
        true => key.to_owned(),
        false => format!("{at}.{key}"),
    };
    match (a, b) {
        (Object(a), Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            let null = serde_json::Value::Null;
            keys.into_iter().find_map(|key| {
                let (a, b) = (a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null));
                difference(under(key), a, b)
            })
        }
        (Array(a), Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs
                .into_iter()
                .find_map(|(i, (a, b))| difference(under(&i.to_string()), a, b))
        }
        _ if a == b => None,
        _ => Some((at, short(a), short(b))),
    }
}

fn short(value: &serde_json::Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        file => {
            let read = file.and_then(|mut file| file.read_to_end(&mut bytes));
            read.map_err(io(path))?;
            Ok(Some(bytes))
        }
    }
}

/// Writes a file under a temporary name, brings it to the disk and renames it.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(io(dir))?;
    file.write_all(bytes).map_err(io(path))?;
    file.as_file().sync_data().map_err(io(path))?;
    file.persist(path).map_err(|error| io(path)(error.error))?;
    Ok(())
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| {
        let remedy = match source.kind() {
            std::io::ErrorKind::StorageFull => "free some space and start again: it goes on",
            std::io::ErrorKind::PermissionDenied => "choose a folder that can be written",
            std::io::ErrorKind::NotFound => "is this the folder of an evaluation?",
            _ => "start again when the cause is gone: it goes on",
        };
        let path = path.clone();
        StoreError::Io {
            path,
            source,
            remedy,
        }
    }
}

fn broken(path: &Path) -> impl Fn(serde_json::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Broken {
        path: path.clone(),
        line: String::new(),
        reason: error.to_string(),
    }
}
