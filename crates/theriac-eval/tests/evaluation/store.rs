//! Interrupted, divided and damaged evaluations.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device};
use theriac::{Result, Run};
use theriac_eval::evaluation::{Models, Profile, Shard, Store, StoreError};
use theriac_eval::{Evaluation, Measure};

use crate::golden_models::{Net, load};
use crate::setup::{Golden, manifest, measure, plan};

const IMAGES: usize = 24;

fn open(dir: &Path, shard: Shard) -> Result<Store, StoreError> {
    let mut plan = plan(Profile::Quick, false);
    plan.few = 6;
    Store::open(dir, manifest(plan, IMAGES, shard))
}

fn text(evaluation: &Evaluation) -> String {
    serde_json::to_string(evaluation).unwrap()
}

/// Works until `batches` batches are done.
fn measure_a_part(model: &Net, store: &mut Store, batch: usize, batches: usize) -> Result<()> {
    let run = Run::new(0, &Device::Cpu);
    let data = Golden::new(IMAGES);
    let work = Measure {
        models: Models::of(model),
        data: &data,
        run: &run,
        dtype: DType::F32,
        batch,
    };
    let mut done = 0;
    let flow = work.run(store, |_| {
        done += 1;
        match done < batches {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    })?;
    assert!(flow.is_break());
    Ok(())
}

#[test]
fn interruptions_batches_and_shards_change_nothing() -> Result<()> {
    let twin = load("rob", DType::F32)?;
    let (model, data) = (&twin.frozen, Golden::new(IMAGES));
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut store = open(&at("whole"), Shard::WHOLE)?;
    let whole = text(&measure(model, &data, &mut store, 24)?);

    for batches in [1, 3, 9] {
        let dir = at(&format!("after {batches}"));
        let mut store = open(&dir, Shard::WHOLE)?;
        measure_a_part(model, &mut store, 5, batches)?;
        assert!(Evaluation::of(&store).is_err());
        drop(store);
        // As after a kill in the middle of a write.
        let torn = dir.join("facts").join("clean.jsonl");
        let mut lines = std::fs::read(&torn).unwrap();
        lines.truncate(lines.len() - 10);
        std::fs::write(&torn, lines).unwrap();
        let mut store = open(&dir, Shard::WHOLE)?;
        assert_eq!(text(&measure(model, &data, &mut store, 7)?), whole);
    }

    let shards: Vec<_> = (0..3).map(|index| at(&format!("part {index}"))).collect();
    for (index, dir) in shards.iter().enumerate() {
        let index = index as u32;
        let mut store = open(dir, Shard { index, of: 3 })?;
        measure(model, &data, &mut store, 4)?;
    }
    let merged = Store::merge(&shards, &at("merged"))?;
    assert_eq!(text(&Evaluation::of(&merged)?), whole);
    let examples = |store: &Store| -> Result<Vec<u32>> {
        let found = store.examples("apgd-ce")?;
        Ok(found.into_iter().map(|(position, _)| position).collect())
    };
    assert_eq!(examples(&merged)?, examples(&store)?);
    assert!(!examples(&merged)?.is_empty());

    let error = Store::merge(&shards[..2], &at("two")).unwrap_err();
    assert!(error.to_string().contains("part 2 of 3"), "{error}");
    let error = open(&at("part 0"), Shard { index: 3, of: 3 }).unwrap_err();
    assert!(error.to_string().contains("part 3 of 3"), "{error}");
    Ok(())
}

#[test]
fn folders_of_others_are_refused() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = open(&path, Shard::WHOLE)?;
    let error = open(&path, Shard::WHOLE).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    drop(store);

    let mut other = manifest(plan(Profile::Quick, false), IMAGES, Shard::WHOLE);
    other.plan.few = 6;
    other.subject.seed = 7;
    let error = Store::open(&path, other).unwrap_err().to_string();
    assert!(error.contains("subject.seed (0, here 7)"), "{error}");

    let file = path.join("manifest.json");
    let written = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, written.replace("\"format\": 1", "\"format\": 9")).unwrap();
    let error = open(&path, Shard::WHOLE).unwrap_err().to_string();
    assert!(error.contains("format of its files (9"), "{error}");
    std::fs::write(&file, &written[..written.len() / 2]).unwrap();
    let error = open(&path, Shard::WHOLE).unwrap_err().to_string();
    assert!(error.contains("manifest.json"), "{error}");

    let foreign = dir.path().join("photos");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("cat.png"), "meow").unwrap();
    let error = open(&foreign, Shard::WHOLE).unwrap_err().to_string();
    assert!(error.contains("cat.png"), "{error}");
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_nothing_that_was_done() -> Result<()> {
    let twin = load("rob", DType::F32)?;
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), Shard::WHOLE)?;
    measure_a_part(&twin.frozen, &mut store, 12, 2)?;
    let facts = dir.path().join("facts");
    std::os::unix::fs::symlink("/dev/full", facts.join("fgsm.jsonl")).unwrap();
    let error = measure(&twin.frozen, &Golden::new(IMAGES), &mut store, 12).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("fgsm.jsonl") && error.contains("free some space"),
        "{error}"
    );
    drop(store);
    std::fs::remove_file(facts.join("fgsm.jsonl")).unwrap();
    let mut store = open(dir.path(), Shard::WHOLE)?;
    assert_eq!(store.facts().count("clean"), IMAGES);
    measure(&twin.frozen, &Golden::new(IMAGES), &mut store, 12)?;
    Ok(())
}
