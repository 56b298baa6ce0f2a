//! What the rules look at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

use crate::root::Root;

/// The workspace as the rules see it.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
    /// Rust files of the library crates and of the tools.
    pub(crate) sources: Vec<Source>,
    /// Files that git has or would add, with their sizes in bytes; paths from the root.
    pub(crate) files: Vec<(String, u64)>,
    /// Folders `crates/*/tables`.
    pub(crate) tables: Vec<PathBuf>,
}

/// A member of the workspace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Path from the root: "crates/theriac-nn".
    pub(crate) folder: String,
    pub(crate) layer: Option<u64>,
    pub(crate) manifest: toml::Table,
    pub(crate) has_readme: bool,
    /// Whether it is a program and nothing else, such as the command line.
    pub(crate) is_program: bool,
    /// The first line of src/lib.rs.
    pub(crate) first_line: Option<String>,
    /// Members among the normal dependencies.
    pub(crate) members: Vec<String>,
    /// Every package that the normal dependencies lead to.
    pub(crate) reaches: BTreeSet<String>,
}

impl Package {
    /// Whether it is a library that others build on, rather than a tool.
    pub(crate) fn is_library(&self) -> bool {
        self.folder.starts_with("crates/") || self.folder == "datasets"
    }
}

/// A Rust file.
#[derive(Debug)]
pub(crate) struct Source {
    /// The package it belongs to.
    pub(crate) package: String,
    /// Path from the root.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A line with its number, counted from 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'s> {
    pub(crate) number: usize,
    pub(crate) text: &'s str,
}

impl Source {
    /// The lines before the tests at the bottom of the file.
    pub(crate) fn shipped_lines(&self) -> impl Iterator<Item = Line<'_>> {
        let lines: Vec<&str> = self.text.lines().collect();
        let tests = lines.windows(2).position(|pair| {
            pair[0].trim() == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].ends_with('{')
        });
        let end = tests.unwrap_or(lines.len());
        let numbered = lines.into_iter().take(end).enumerate();
        numbered.map(|(index, text)| Line {
            number: index + 1,
            text,
        })
    }

    pub(crate) fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path)
    }
}

impl<'s> Line<'s> {
    /// The line without its comment.
    pub(crate) fn code(&self) -> &'s str {
        match self
            .text
            .match_indices("//")
            .find(|(at, _)| !self.text[..*at].ends_with(':'))
        {
            Some((at, _)) => &self.text[..at],
            None => self.text,
        }
    }
}

/// Whether `word` stands in `text` without a letter, digit or underscore before it.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_')
    })
}

impl Workspace {
    pub(crate) fn read(root: &Root) -> Result<Self> {
        let metadata = MetadataCommand::new()
            .manifest_path(root.path("Cargo.toml"))
            .exec()
            .context("cargo metadata failed")?;
        let packages = packages(root, &metadata)?;
        let mut sources = Vec::new();
        for package in &packages {
            read_sources(root, package, Path::new(&package.folder), &mut sources)?;
        }
        let mut tables: Vec<PathBuf> = root
            .crates()?
            .into_iter()
            .map(|folder| folder.join("tables"))
            .collect();
        tables.retain(|dir| dir.is_dir());
        Ok(Self {
            packages,
            sources,
            files: files(root)?,
            tables,
        })
    }
}

fn packages(root: &Root, metadata: &Metadata) -> Result<Vec<Package>> {
    let mut graph: BTreeMap<&PackageId, Vec<&PackageId>> = BTreeMap::new();
    let resolve = metadata
        .resolve
        .as_ref()
        .context("cargo metadata gave no graph")?;
    for node in &resolve.nodes {
        let normal = node.deps.iter().filter(|dependency| {
            dependency
                .dep_kinds
                .iter()
                .any(|kind| kind.kind == DependencyKind::Normal)
        });
        graph.insert(&node.id, normal.map(|dependency| &dependency.pkg).collect());
    }
    let names: BTreeMap<&PackageId, &str> = metadata
        .packages
        .iter()
        .map(|package| (&package.id, package.name.as_str()))
        .collect();
    let members: BTreeSet<&PackageId> = metadata.workspace_members.iter().collect();
    let base = fs::canonicalize(root.path("")).context("the workspace's folder is gone")?;

    let mut packages = Vec::new();
    for package in metadata.workspace_packages() {
        let manifest_path = package.manifest_path.as_std_path();
        let dir = manifest_path
            .parent()
            .context("a manifest without a folder")?;
        let dir = fs::canonicalize(dir)?;
        let folder = dir
            .strip_prefix(&base)
            .unwrap_or(&dir)
            .to_string_lossy()
            .replace('\\', "/");
        let manifest = fs::read_to_string(manifest_path)?;
        let next = graph.get(&package.id).cloned().unwrap_or_default();
        let name = |id: &&PackageId| names.get(*id).map(|name| (*name).to_owned());
        packages.push(Package {
            name: package.name.to_string(),
            layer: package.metadata["theriac"]["layer"].as_u64(),
            manifest: manifest
                .parse()
                .with_context(|| format!("{}", manifest_path.display()))?,
            is_program: package.targets.iter().any(|target| target.is_bin())
                && !package.targets.iter().any(|target| target.is_lib()),
            has_readme: dir.join("README.md").exists(),
            first_line: fs::read_to_string(dir.join("src/lib.rs"))
                .ok()
                .map(|text| text.lines().next().unwrap_or_default().to_owned()),
            members: next
                .iter()
                .filter(|id| members.contains(**id))
                .filter_map(name)
                .collect(),
            reaches: reach(&graph, &package.id).iter().filter_map(name).collect(),
            folder,
        });
    }
    packages.sort_by(|one, other| one.folder.cmp(&other.folder));
    Ok(packages)
}

fn reach<'g>(
    graph: &BTreeMap<&'g PackageId, Vec<&'g PackageId>>,
    from: &'g PackageId,
) -> BTreeSet<&'g PackageId> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(id) = open.pop() {
        for next in graph.get(id).into_iter().flatten() {
            if seen.insert(*next) {
                open.push(next);
            }
        }
    }
    seen
}

/// Reads the Rust files of a folder and of those within it.
fn read_sources(root: &Root, package: &Package, dir: &Path, into: &mut Vec<Source>) -> Result<()> {
    let absolute = root.path(&dir.to_string_lossy());
    let mut names = Vec::new();
    for entry in fs::read_dir(&absolute).with_context(|| absolute.display().to_string())? {
        names.push(entry?.file_name());
    }
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let place = absolute.join(&name);
        let hidden = name.to_string_lossy().starts_with('.');
        if place.is_dir() && !hidden && name != "target" {
            read_sources(root, package, &path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(Source {
                package: package.name.clone(),
                path: path.to_string_lossy().replace('\\', "/"),
                text: fs::read_to_string(&place).with_context(|| place.display().to_string())?,
            });
        }
    }
    Ok(())
}

/// What git has or would add.
fn files(root: &Root) -> Result<Vec<(String, u64)>> {
    let out = Command::new("git")
        .current_dir(root.path(""))
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .output()
        .context("cannot start git")?;
    if !out.status.success() {
        bail!(
            "git ls-files: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    let names = String::from_utf8(out.stdout).context("a file name is not UTF-8")?;
    let size = |name: &str| fs::metadata(root.path(name)).map(|data| data.len());
    let names = names.split('\0').filter(|name| !name.is_empty());
    // A file that git still has but that was deleted weighs nothing.
    Ok(names
        .map(|name| (name.to_owned(), size(name).unwrap_or(0)))
        .collect())
}
