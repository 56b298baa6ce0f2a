//! Rules of the workspace that neither rustc nor clippy checks.

mod rules;
mod source;

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;

use crate::root::Root;
use crate::tidy::source::Workspace;

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    /// File, with the line where there is one.
    place: String,
    problem: String,
    remedy: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}\n    remedy: {}",
            self.place, self.problem, self.remedy
        )
    }
}

type Rule = fn(&Workspace) -> Vec<Violation>;

const RULES: [(&str, Rule); 10] = [
    ("layers", rules::layers),
    ("operations", rules::operations),
    ("skeleton", rules::skeleton),
    ("unsafe", rules::unsafe_code),
    ("prints and stubs", rules::prints_and_stubs),
    ("tables", rules::tables),
    ("light tools", rules::light_tools),
    ("large files", rules::large_files),
    ("top level", rules::top_level),
    ("edges", rules::edges),
];

pub(crate) fn run(root: &Root) -> Result<ExitCode> {
    let workspace = Workspace::read(root)?;
    let mut broken = 0;
    for (name, rule) in RULES {
        let violations = rule(&workspace);
        println!(
            "{name}: {}",
            if violations.is_empty() {
                "ok"
            } else {
                "broken"
            }
        );
        for violation in &violations {
            println!("  {violation}");
        }
        broken += violations.len();
    }
    Ok(if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
