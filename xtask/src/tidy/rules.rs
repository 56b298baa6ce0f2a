//! One function for each rule.

use std::collections::BTreeMap;
use std::path::Path;

use theriac_tables::Table;

use super::Violation;
use super::source::{Line, Package, Source, Workspace, has_word};

/// A normal dependency within the workspace leads to a smaller layer.
pub(super) fn layers(workspace: &Workspace) -> Vec<Violation> {
    let layers: BTreeMap<&str, u64> = workspace
        .packages
        .iter()
        .filter_map(|package| Some((package.name.as_str(), package.layer?)))
        .collect();
    let mut broken = Vec::new();
    for package in workspace
        .packages
        .iter()
        .filter(|package| package.is_library())
    {
        let Some(layer) = package.layer else { continue };
        for member in &package.members {
            let problem = match layers.get(member.as_str()) {
                None => format!("layer {layer} depends on {member}, which has no layer"),
                Some(below) if *below < layer => continue,
                Some(other) => format!("layer {layer} depends on {member} of layer {other}"),
            };
            broken.push(Violation {
                place: format!("{}/Cargo.toml", package.folder),
                problem,
                remedy: "move the code down, or make it a dev-dependency",
            });
        }
    }
    broken
}

const CALLS: [&str; 11] = [
    ".conv2d(",
    ".conv2d_with_algo(",
    ".max_pool2d(",
    ".max_pool2d_with_stride(",
    ".relu()",
    "candle_nn::batch_norm",
    "candle_nn::BatchNorm",
    "candle_nn::conv2d",
    "candle_nn::Conv2d",
    "candle_nn::linear",
    "candle_nn::loss",
];
const IMPORTS: [&str; 6] = [
    "batch_norm",
    "BatchNorm",
    "conv2d",
    "Conv2d",
    "linear",
    "loss",
];

/// Operations whose gradient or speed candle gets wrong are called through theriac-ops alone.
pub(super) fn operations(workspace: &Workspace) -> Vec<Violation> {
    each_line(workspace, |source, line| {
        if ["theriac-ops", "theriac-kernels"].contains(&source.package.as_str()) {
            return None;
        }
        let code = line.code();
        let call = CALLS.into_iter().find(|call| code.contains(call));
        let import = || {
            let list = code.trim().strip_prefix("use candle_nn::")?;
            IMPORTS.into_iter().find(|name| has_word(list, name))
        };
        let found = call.or_else(import)?;
        Some((
            format!("`{found}` of candle"),
            "use theriac_ops or a layer of theriac_nn",
        ))
    })
}

/// Every crate looks the same from outside.
pub(super) fn skeleton(workspace: &Workspace) -> Vec<Violation> {
    workspace.packages.iter().flat_map(skeleton_of).collect()
}

const DOC: &str = "#![doc = include_str!(\"../README.md\")]";

fn skeleton_of(package: &Package) -> Vec<Violation> {
    let mut broken = Vec::new();
    let mut require = |holds: bool, file: &str, problem: &str, remedy: &'static str| {
        if !holds {
            broken.push(Violation {
                place: format!("{}/{file}", package.folder),
                problem: problem.into(),
                remedy,
            });
        }
    };
    let from_workspace = |section: &str, key: Option<&str>| {
        let value = package.manifest.get(section);
        let value = match key {
            Some(key) => value.and_then(|section| section.get(key)),
            None => value,
        };
        value
            .and_then(|value| value.get("workspace"))
            .and_then(toml::Value::as_bool)
            == Some(true)
    };
    let toml = "Cargo.toml";
    require(
        from_workspace("lints", None),
        toml,
        "the workspace's lints are not on",
        "add [lints] workspace = true",
    );
    for key in ["version", "edition", "license"] {
        require(
            from_workspace("package", Some(key)),
            toml,
            &format!("{key} is not the workspace's"),
            "write `<key>.workspace = true`",
        );
    }
    if package.is_library() {
        let folder = package.folder.strip_prefix("crates/");
        require(
            folder.is_none_or(|folder| folder == package.name),
            toml,
            &format!("the package is called {}, unlike its folder", package.name),
            "give both the same name",
        );
        require(
            package.layer.is_some(),
            toml,
            "no layer",
            "add [package.metadata.theriac] layer = N",
        );
        require(
            package.has_readme,
            "README.md",
            "missing",
            "say what, why, and one example",
        );
        require(
            package.is_program || package.first_line.as_deref() == Some(DOC),
            "src/lib.rs",
            "does not begin with its README",
            "make the first line #![doc = include_str!(\"../README.md\")]",
        );
    }
    broken
}

/// `unsafe` lives in theriac-kernels, and says why it is sound.
pub(super) fn unsafe_code(workspace: &Workspace) -> Vec<Violation> {
    let mut broken = Vec::new();
    for source in &workspace.sources {
        let lines: Vec<Line<'_>> = source.shipped_lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.code();
            // The body of an `unsafe fn` has blocks of its own, which carry the reasons.
            let declared = code.contains("unsafe fn") && source.package == "theriac-kernels";
            let used = has_word(code, "unsafe")
                && !declared
                && !has_word(code, "unsafe_code")
                && !code.contains("\"unsafe");
            if !used {
                continue;
            }
            let violation = |problem: &str, remedy| Violation {
                place: source.at(line.number),
                problem: problem.into(),
                remedy,
            };
            if source.package != "theriac-kernels" {
                broken.push(violation(
                    "unsafe code",
                    "move it to theriac-kernels behind a safe function",
                ));
            } else if !is_justified(&lines[..=index]) {
                broken.push(violation(
                    "unsafe code without its reason",
                    "write `// SAFETY: ...` on the line above",
                ));
            }
        }
    }
    broken
}

/// Whether the comments and attributes directly above the last line, or the line itself, say why
/// it is sound.
fn is_justified(lines: &[Line<'_>]) -> bool {
    let says =
        |line: &Line<'_>| line.text.contains("// SAFETY:") || line.text.trim() == "/// # Safety";
    let Some((last, above)) = lines.split_last() else {
        return false;
    };
    let attached = above.iter().rev().take_while(|line| {
        let text = line.text.trim();
        text.starts_with("//") || text.starts_with("#[")
    });
    says(last) || attached.into_iter().any(says)
}

/// Libraries log; only programs print. Nothing is left half done.
pub(super) fn prints_and_stubs(workspace: &Workspace) -> Vec<Violation> {
    let programs = workspace.packages.iter().filter(|one| one.is_program);
    let programs: Vec<&str> = programs.map(|package| package.name.as_str()).collect();
    let mut broken = each_line(workspace, |source, line| {
        let file = source.path.rsplit('/').next().unwrap_or_default();
        let program = ["ui.rs", "main.rs"].contains(&file)
            || programs.contains(&source.package.as_str())
            || source.path.contains("/bin/")
            || source.path == "crates/theriac-tables/src/run.rs";
        let code = line.code();
        let print = ["println!", "eprintln!", "print!", "eprint!"]
            .into_iter()
            .find(|print| !program && has_word(code, print))?;
        Some((
            format!("`{print}` in a library"),
            "use tracing, or return the text",
        ))
    });
    // Spelt in halves: this file is looked at too.
    let stubs = [
        concat!("to", "do!("),
        concat!("un", "implemented!("),
        concat!("FIX", "ME"),
    ];
    for source in &workspace.sources {
        for (index, text) in source.text.lines().enumerate() {
            if let Some(stub) = stubs.into_iter().find(|stub| text.contains(stub)) {
                broken.push(Violation {
                    place: source.at(index + 1),
                    problem: format!("`{stub}`"),
                    remedy: "finish it or leave it out",
                });
            }
        }
    }
    broken
}

/// Each table's TOML and CSV agree, and its crate can compute it.
pub(super) fn tables(workspace: &Workspace) -> Vec<Violation> {
    workspace
        .tables
        .iter()
        .flat_map(|dir| tables_of(dir))
        .collect()
}

fn tables_of(dir: &Path) -> Vec<Violation> {
    let mut broken = Vec::new();
    let mut add = |place: &Path, problem: String, remedy| {
        broken.push(Violation {
            place: place.display().to_string(),
            problem,
            remedy,
        });
    };
    let folder = dir.parent().unwrap_or(dir);
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let mut paths: Vec<_> = match std::fs::read_dir(dir) {
        Ok(entries) => entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect(),
        Err(error) => {
            add(dir, error.to_string(), "make the folder readable");
            Vec::new()
        }
    };
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => match Table::load(&path) {
                Err(error) => add(&path, error.to_string(), "let TOML and CSV agree"),
                Ok(table) => {
                    if name != format!("theriac-{}", table.paper) {
                        let problem = format!("paper \"{}\" in crate {name}", table.paper);
                        add(&path, problem, "put it into the crate theriac-<paper>");
                    }
                    let example = folder.join("examples").join(&table.paper);
                    if !example.with_extension("rs").exists() && !example.join("main.rs").exists() {
                        let problem = "missing: nothing computes the tables".into();
                        add(
                            &example,
                            problem,
                            "implement theriac_tables::Experiment there",
                        );
                    }
                }
            },
            Some("csv") if path.with_extension("toml").exists() => {}
            _ => add(
                &path,
                "neither a table nor its printed numbers".into(),
                "move or delete it",
            ),
        }
    }
    broken
}

/// The tools build in seconds.
pub(super) fn light_tools(workspace: &Workspace) -> Vec<Violation> {
    let mut broken = Vec::new();
    let light = |package: &&Package| ["xtask", "theriac-tables"].contains(&package.name.as_str());
    for package in workspace.packages.iter().filter(light) {
        for heavy in &package.reaches {
            if heavy.starts_with("candle") || ["hf-hub", "tokio"].contains(&heavy.as_str()) {
                broken.push(Violation {
                    place: format!("{}/Cargo.toml", package.folder),
                    problem: format!("depends on {heavy}"),
                    remedy: "leave the work to a paper's example or to theriac-datasets",
                });
            }
        }
    }
    broken
}

const LARGEST: u64 = 2_200_000;

/// The repository stays small.
pub(super) fn large_files(workspace: &Workspace) -> Vec<Violation> {
    let large = workspace.files.iter().filter(|(_, size)| *size > LARGEST);
    large
        .map(|(name, size)| Violation {
            place: name.clone(),
            problem: format!("{size} bytes, more than {LARGEST}"),
            remedy: "keep it out of the repository, or split it",
        })
        .collect()
}

const TOP: [&str; 8] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "crates",
    "datasets",
    "xtask",
    "tests",
    "docs",
];

/// The top level stays as it is.
pub(super) fn top_level(workspace: &Workspace) -> Vec<Violation> {
    let mut names: Vec<&str> = workspace
        .files
        .iter()
        .map(|(name, _)| name.split('/').next().unwrap_or(name))
        .collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| {
        let known = TOP.contains(name)
            || name.starts_with('.')
            || name.starts_with("LICENSE-")
            || *name == "CHANGELOG.md";
        !known
    });
    names
        .into_iter()
        .map(|name| Violation {
            place: name.into(),
            problem: "not a name of the top level".into(),
            remedy: "move it into crates, datasets, xtask, tests or docs",
        })
        .collect()
}

const GLOBALS: [&str; 6] = [
    "env::var(",
    "env::var_os(",
    "env::vars(",
    "rand::",
    "thread_rng(",
    "from_os_rng(",
];
const EDGES: [&str; 3] = [
    "datasets/",
    "crates/theriac-tables/src/log.rs",
    "crates/theriac-tables/src/run.rs",
];

/// Libraries read no environment and use no global generator.
pub(super) fn edges(workspace: &Workspace) -> Vec<Violation> {
    each_line(workspace, |source, line| {
        if EDGES.iter().any(|edge| source.path.starts_with(edge)) {
            return None;
        }
        let found = GLOBALS
            .into_iter()
            .find(|global| has_word(line.code(), global))?;
        Some((
            format!("`{found}` in a library"),
            "take it as an argument; draw through theriac's seeded generator",
        ))
    })
}

/// Applies a rule to every line of library code.
fn each_line(
    workspace: &Workspace,
    rule: impl Fn(&Source, &Line<'_>) -> Option<(String, &'static str)>,
) -> Vec<Violation> {
    let is_library = |source: &&Source| {
        (source.path.starts_with("crates/") || source.path.starts_with("datasets/"))
            && source.path.contains("/src/")
    };
    let mut broken = Vec::new();
    for source in workspace.sources.iter().filter(is_library) {
        for line in source.shipped_lines() {
            if let Some((problem, remedy)) = rule(source, &line) {
                broken.push(Violation {
                    place: source.at(line.number),
                    problem,
                    remedy,
                });
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::Root;

    /// The workspace itself obeys each rule.
    macro_rules! obeyed {
        ($($test:ident: $rule:ident,)*) => {$(
            #[test]
            fn $test() {
                let workspace = Workspace::read(&Root::of_this_workspace()).unwrap();
                let broken = $rule(&workspace);
                let list: Vec<String> = broken.iter().map(ToString::to_string).collect();
                assert!(list.is_empty(), "\n{}", list.join("\n"));
            }
        )*};
    }

    obeyed! {
        layers_are_obeyed: layers,
        operations_are_obeyed: operations,
        skeleton_is_obeyed: skeleton,
        unsafe_code_is_obeyed: unsafe_code,
        prints_and_stubs_are_obeyed: prints_and_stubs,
        tables_are_obeyed: tables,
        light_tools_are_obeyed: light_tools,
        large_files_are_obeyed: large_files,
        top_level_is_obeyed: top_level,
        edges_are_obeyed: edges,
    }

    fn package(name: &str, layer: u64, members: &[&str]) -> Package {
        Package {
            name: name.into(),
            folder: format!("crates/{name}"),
            layer: Some(layer),
            members: members.iter().map(|&member| member.into()).collect(),
            ..Package::default()
        }
    }

    fn source(package: &str, text: &str) -> Workspace {
        let path = format!("crates/{package}/src/lib.rs");
        let sources = vec![Source {
            package: package.into(),
            path,
            text: text.into(),
        }];
        Workspace {
            sources,
            ..Workspace::default()
        }
    }

    fn places(broken: Vec<Violation>) -> Vec<String> {
        broken
            .into_iter()
            .map(|violation| violation.place)
            .collect()
    }

    #[test]
    fn a_dependency_upwards_or_sideways_is_seen() {
        let workspace = Workspace {
            packages: vec![
                package("a", 0, &[]),
                package("b", 1, &["a"]),
                package("c", 1, &["a", "b"]),
                package("d", 0, &["c"]),
            ],
            ..Workspace::default()
        };
        let broken = layers(&workspace);
        assert_eq!(broken[0].problem, "layer 1 depends on b of layer 1");
        assert_eq!(broken[1].problem, "layer 0 depends on c of layer 1");
        assert_eq!(broken.len(), 2);
    }

    #[test]
    fn candles_own_operations_are_seen() {
        let text = "let y = x.relu()?;\n\
                    // x.relu() in a comment\n\
                    let y = theriac_ops::relu(&x)?;\n\
                    use candle_nn::{Module, conv2d};\n\
                    let l = candle_nn::loss::nll(&y, &t)?;\n\
                    #[cfg(test)]\n\
                    mod tests {\n\
                    let y = x.conv2d(&k, 1, 1, 1, 1)?;\n";
        let seen = places(operations(&source("theriac-nn", text)));
        assert_eq!(
            seen,
            [
                "crates/theriac-nn/src/lib.rs:1",
                "crates/theriac-nn/src/lib.rs:4",
                "crates/theriac-nn/src/lib.rs:5",
            ]
        );
        assert!(operations(&source("theriac-ops", text)).is_empty());
    }

    #[test]
    fn an_incomplete_crate_is_seen() {
        let manifest = "[package]\nname = \"x\"\nversion = \"1\"\nedition.workspace = true\n\
                        license.workspace = true\n";
        let workspace = Workspace {
            packages: vec![Package {
                name: "x".into(),
                folder: "crates/y".into(),
                manifest: manifest.parse().unwrap(),
                first_line: Some("//! Hello".into()),
                ..Package::default()
            }],
            ..Workspace::default()
        };
        let problems: Vec<String> = skeleton(&workspace)
            .into_iter()
            .map(|violation| violation.problem)
            .collect();
        assert_eq!(
            problems,
            [
                "the workspace's lints are not on",
                "version is not the workspace's",
                "the package is called x, unlike its folder",
                "no layer",
                "missing",
                "does not begin with its README",
            ]
        );
    }

    #[test]
    fn unsafe_code_needs_its_place_and_its_reason() {
        let reasoned =
            "#![allow(unsafe_code)]\n// SAFETY: checked above.\n#[inline]\nunsafe { f() }";
        assert!(unsafe_code(&source("theriac-kernels", reasoned)).is_empty());
        assert_eq!(unsafe_code(&source("theriac-nn", reasoned)).len(), 1);
        let declared = "unsafe fn f() {\n}";
        assert!(unsafe_code(&source("theriac-kernels", declared)).is_empty());
        assert_eq!(unsafe_code(&source("theriac-nn", declared)).len(), 1);
        let bare = "// SAFETY: of another line.\nlet x = 1;\nunsafe { f() }";
        let seen = places(unsafe_code(&source("theriac-kernels", bare)));
        assert_eq!(seen, ["crates/theriac-kernels/src/lib.rs:3"]);
    }

    #[test]
    fn prints_stubs_globals_and_environment_are_seen() {
        let stub = concat!("to", "do!()");
        let text = format!(
            "println!(\"x\");\nwriteln!(f, \"x\")?;\n{stub};\nstd::env::var(\"X\");\n\
             rand::random();\nlet operand::x = 1;"
        );
        let workspace = source("theriac-nn", &text);
        let at = |line: usize| format!("crates/theriac-nn/src/lib.rs:{line}");
        assert_eq!(places(prints_and_stubs(&workspace)), [at(1), at(3)]);
        assert_eq!(places(edges(&workspace)), [at(4), at(5)]);
    }

    #[test]
    fn heavy_tools_large_files_and_strangers_at_the_top_are_seen() {
        let mut tool = package("xtask", 0, &[]);
        tool.reaches = ["candle-core", "serde", "tokio"].map(str::to_owned).into();
        let workspace = Workspace {
            packages: vec![tool],
            files: vec![
                ("notes.txt".into(), 10),
                ("docs/film.gif".into(), LARGEST + 1),
                ("docs/still.png".into(), LARGEST),
                (".gitignore".into(), 1),
                ("LICENSE-MIT".into(), 1),
            ],
            ..Workspace::default()
        };
        assert_eq!(light_tools(&workspace).len(), 2);
        assert_eq!(places(large_files(&workspace)), ["docs/film.gif"]);
        assert_eq!(places(top_level(&workspace)), ["notes.txt"]);
    }

    #[test]
    fn tables_that_disagree_or_that_nothing_computes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let tables = dir.path().join("theriac-demo/tables");
        std::fs::create_dir_all(&tables).unwrap();
        std::fs::write(tables.join("table1.toml"), "paper = 1").unwrap();
        std::fs::write(tables.join("table1.csv"), "").unwrap();
        std::fs::write(tables.join("table2.csv"), "").unwrap();
        let seen = places(tables_of(&tables));
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(seen[0].ends_with("table1.toml") && seen[1].ends_with("table2.csv"));

        let ours = Root::of_this_workspace().path("crates/theriac-epochwise/tables");
        for file in ["fig1a.toml", "fig1a.csv"] {
            std::fs::copy(ours.join(file), tables.join(file)).unwrap();
        }
        let problems: Vec<String> = tables_of(&tables)
            .into_iter()
            .map(|violation| violation.problem)
            .collect();
        assert!(problems[0].contains("paper \"epochwise\" in crate theriac-demo"));
        assert!(problems[1].contains("nothing computes the tables"));
    }
}
