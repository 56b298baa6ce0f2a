//! `cargo xtask new`: the skeleton of a defence or an attack.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::root::Root;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// A crate of its own: crates/theriac-NAME.
    Defence,
    /// A file of its own: crates/theriac-attacks/src/NAME.rs.
    Attack,
}

pub(crate) fn run(root: &Root, kind: Kind, name: &str) -> Result<ExitCode> {
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let words = name
        .split('-')
        .all(|word| !word.is_empty() && word.chars().all(plain));
    if !words || !name.starts_with(|letter: char| letter.is_ascii_lowercase()) {
        bail!("name \"{name}\": use lower case and hyphens, such as \"mi-fgsm\"");
    }
    match kind {
        Kind::Defence => defence(root, name)?,
        Kind::Attack => attack(root, name)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// "mi-fgsm" becomes "MiFgsm".
fn type_name(name: &str) -> String {
    name.split('-')
        .map(|word| {
            let (first, rest) = word.split_at(1);
            first.to_uppercase() + rest
        })
        .collect()
}

/// Templates are named "skeleton" and are compiled and tested as they stand.
fn fill(template: &str, name: &str) -> String {
    template
        .replace("theriac-skeleton", &format!("theriac-{name}"))
        .replace(
            "theriac_skeleton",
            &format!("theriac_{}", name.replace('-', "_")),
        )
        .replace("Skeleton", &type_name(name))
}

/// Writes a file that does not exist yet.
fn write(path: &Path, text: &str) -> Result<()> {
    if path.exists() {
        bail!("{} exists already", path.display());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

fn defence(root: &Root, name: &str) -> Result<()> {
    let dir = root.path("crates").join(format!("theriac-{name}"));
    if dir.exists() {
        bail!("{} exists already", dir.display());
    }
    for (file, template) in [
        (
            "Cargo.toml",
            include_str!("templates/defence/Cargo.toml.txt"),
        ),
        ("README.md", include_str!("templates/defence/README.md")),
        ("src/lib.rs", include_str!("templates/defence/lib.rs")),
        (
            "src/objective.rs",
            include_str!("templates/defence/objective.rs"),
        ),
        (
            "tests/contract.rs",
            include_str!("templates/defence/contract.rs"),
        ),
    ] {
        write(&dir.join(file), &fill(template, name))?;
    }
    println!("\nNothing else has to change. For use by other crates, in Cargo.toml:");
    println!("theriac-{name} = {{ path = \"crates/theriac-{name}\", version = \"0.1.0\" }}");
    Ok(())
}

fn attack(root: &Root, name: &str) -> Result<()> {
    let module = name.replace('-', "_");
    let path = root
        .path("crates/theriac-attacks/src")
        .join(format!("{module}.rs"));
    write(&path, &fill(include_str!("templates/attack.rs"), name))?;
    println!("\nAdd to crates/theriac-attacks/src/lib.rs:");
    println!("mod {module}; pub use {module}::{};", type_name(name));
    println!("and to the list in crates/theriac-attacks/src/spec.rs:");
    println!("{0}(crate::{0}),", type_name(name));
    println!(
        "and a test to crates/theriac-attacks/tests/gate/main.rs, which says how strong it is."
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skeletons_bear_their_name_and_overwrite_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        run(&root, Kind::Attack, "mi-fgsm").unwrap();
        let text = fs::read_to_string(dir.path().join("crates/theriac-attacks/src/mi_fgsm.rs"));
        assert!(text.unwrap().contains("pub struct MiFgsm {"));
        assert!(run(&root, Kind::Attack, "mi-fgsm").is_err());

        run(&root, Kind::Defence, "mixup").unwrap();
        let crate_dir = dir.path().join("crates/theriac-mixup");
        let manifest = fs::read_to_string(crate_dir.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("name = \"theriac-mixup\""));
        for file in [
            "README.md",
            "src/lib.rs",
            "src/objective.rs",
            "tests/contract.rs",
        ] {
            let text = fs::read_to_string(crate_dir.join(file)).unwrap();
            assert!(
                text.contains("Mixup") && !text.to_lowercase().contains("skeleton"),
                "{file}: {text}"
            );
        }
        assert!(run(&root, Kind::Defence, "mixup").is_err());
        for bad in ["", "Mixup", "mix_up", "-mixup", "mix--up", "4d"] {
            assert!(run(&root, Kind::Defence, bad).is_err(), "{bad}");
        }
    }
}
