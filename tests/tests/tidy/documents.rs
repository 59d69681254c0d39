//! What documents name: paths, links, commands, crates, modules, tests. All of it must exist.

use std::collections::BTreeSet;

use crate::files::{Project, code_spans};

/// Endings that make a word without `/` the name of a file.
const FILES: [&str; 5] = [".rs", ".toml", ".md", ".sh", ".ts"];

/// Every reference in every document.
pub fn references(project: &Project) -> Vec<String> {
    let known = Known::new(project);
    project.documents().flat_map(|(path, text)| in_document(&known, project, path, text)).collect()
}

/// Documents that comments in sources name, such as `docs/protocol.md`.
pub fn named_in_sources(project: &Project) -> Vec<String> {
    let mut findings = Vec::new();
    for (path, text) in project.rust().filter(|(path, _)| !path.starts_with("tests/tests/tidy/")) {
        for (n, line) in text.lines().enumerate() {
            for (start, _) in line.match_indices("docs/") {
                let named = &line[start..];
                let end = named.find(|c: char| !(c.is_alphanumeric() || "-_./".contains(c)));
                let named = named[..end.unwrap_or(named.len())].trim_end_matches('.');
                if named.ends_with(".md") && !project.exists(named) {
                    findings.push(format!(
                        "{path}:{}: `{named}` does not exist; write it, or correct the name",
                        n + 1
                    ));
                }
            }
        }
    }
    findings
}

/// Rust samples of the README that the compiler does not see.
pub fn samples(readme: &str, tests_root: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if !tests_root.contains(r#"include_str!("../../README.md")"#) {
        findings.push(
            "tests/src/lib.rs:1: the README's samples are not compiled; include it as a doctest".into(),
        );
    }
    let mut count = 0;
    for (n, line) in readme.lines().enumerate() {
        let Some(tags) = line.strip_prefix("```rust") else { continue };
        count += 1;
        if !["", ",no_run", ",should_panic", ",compile_fail"].contains(&tags) {
            findings.push(format!(
                "README.md:{}: a sample that is not compiled; take `{tags}` off, or use `no_run`",
                n + 1
            ));
        }
    }
    if count == 0 {
        findings.push("README.md:1: no Rust sample; show a reducer and the client".into());
    }
    findings
}

/// Decision records: names, numbers, headings.
pub fn decisions(project: &Project) -> Vec<String> {
    let mut findings = Vec::new();
    let records =
        project.files().filter_map(|(path, text)| Some((path.strip_prefix("docs/decisions/")?, text)));
    let mut next = 1;
    for (name, text) in records {
        findings.extend(decision(name, text, next));
        next += 1;
    }
    if next == 1 {
        findings.push("docs/decisions:1: there are no decision records; add 0001".into());
    }
    findings
}

fn decision(name: &str, text: &str, number: u32) -> Vec<String> {
    let at = format!("docs/decisions/{name}:1");
    let mut findings = Vec::new();
    let title = name.strip_prefix(&format!("{number:04}-")).and_then(|rest| rest.strip_suffix(".md"));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !title.is_some_and(|title| !title.is_empty() && title.chars().all(plain)) {
        findings
            .push(format!("{at}: not named `{number:04}-some-title.md`; rename it (numbers have no gaps)"));
    }
    if !text.starts_with(&format!("# {number:04}: ")) {
        findings.push(format!("{at}: the first line is to be `# {number:04}: the decision`"));
    }
    for heading in ["## Decision", "## Why", "## Rejected"] {
        if !text.lines().any(|line| line == heading) {
            findings.push(format!("{at}: the section `{heading}` is missing; add it"));
        }
    }
    findings
}

/// What there is to name.
struct Known {
    /// The first part of every path.
    tops: BTreeSet<String>,
    /// Package names, and their library names, each with its folder.
    crates: Vec<(String, String)>,
    /// Words after `cargo xtask`.
    commands: BTreeSet<String>,
    /// Names of functions, of which tests are some.
    functions: BTreeSet<String>,
}

/// A name of so many words is a test's.
const TEST_WORDS_MIN: usize = 5;

impl Known {
    fn new(project: &Project) -> Known {
        let tops =
            project.files().filter_map(|(path, _)| path.split_once('/')).map(|(top, _)| top.to_string());
        let root = tests::places::root();
        let root = std::fs::canonicalize(&root).unwrap_or(root);
        let packages = project.packages();
        let crates = packages.iter().map(|package| {
            let text = |name: &str| package[name].as_str().unwrap_or_default().to_string();
            let folder = text("manifest_path");
            let folder = folder.trim_start_matches(&format!("{}/", root.display()));
            (text("name"), folder.trim_end_matches("/Cargo.toml").to_string())
        });
        let commands = project.text("xtask/src/main.rs").split("name: \"").skip(1);
        let commands = commands.filter_map(|rest| rest.split('"').next()).map(String::from);
        let functions = project
            .rust()
            .flat_map(|(_, text)| text.split("fn ").skip(1))
            .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>());
        Known {
            functions: functions.collect(),
            tops: tops.collect(),
            crates: crates.collect(),
            commands: commands.chain(["help".into()]).collect(),
        }
    }
}

fn in_document(known: &Known, project: &Project, path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut fenced = false;
    for (n, line) in text.lines().enumerate() {
        let mut found = |what: String| findings.push(format!("{path}:{}: {what}", n + 1));
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        commands(known, line).into_iter().for_each(&mut found);
        if fenced {
            continue;
        }
        for span in code_spans(line) {
            span_names(known, project, path, span).into_iter().for_each(&mut found);
        }
        for target in links(line) {
            link(project, path, text, target).into_iter().for_each(&mut found);
        }
    }
    if fenced {
        findings.push(format!("{path}:1: a code block is not closed; close it"));
    }
    findings
}

/// `cargo xtask WORD` and `cargo … -p NAME`, in prose and in code blocks.
fn commands(known: &Known, line: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
    };
    for (start, what) in line.match_indices("cargo xtask ") {
        let name = word(&line[start + what.len()..]);
        let is_word = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase());
        if is_word && !known.commands.contains(&name) {
            findings
                .push(format!("there is no `cargo xtask {name}`; `cargo xtask help` lists what there is"));
        }
    }
    if line.contains("cargo ") {
        for (start, what) in line.match_indices(" -p ") {
            let name = word(&line[start + what.len()..]);
            if !name.is_empty() && !known.crates.iter().any(|(package, _)| *package == name) {
                findings.push(format!("the workspace has no crate `{name}`; correct the name"));
            }
        }
    }
    findings
}

/// Paths, modules and tests in backticks.
fn span_names(known: &Known, project: &Project, document: &str, span: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    if span.is_empty() || !span.chars().all(plain) {
        return None;
    }
    if let Some((library, rest)) = span.split_once("::") {
        let (package, folder) =
            known.crates.iter().find(|(package, _)| package.replace('-', "_") == library)?;
        let module = rest.split("::").next().unwrap_or_default();
        let file = [format!("{folder}/src/{module}.rs"), format!("{folder}/src/{module}/mod.rs")];
        let named_at_root = project.files().any(|(path, text)| {
            path == format!("{folder}/src/lib.rs")
                && text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == module)
        });
        let exists = named_at_root || file.iter().any(|file| project.exists(file));
        return (!exists).then(|| format!("crate `{package}` has no `{module}`; correct `{span}`"));
    }
    let is_name = span.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_name && span.split('_').count() >= TEST_WORDS_MIN && !known.functions.contains(span) {
        return Some(format!("there is no test `{span}`; correct the name"));
    }
    // A line number after the name, as in `a/b.rs:12`.
    let path = match span.rsplit_once(':') {
        Some((path, line)) if line.chars().all(|c| c.is_ascii_digit()) => path,
        Some(_) => return None,
        None => span,
    };
    let path = path.trim_end_matches('/');
    let exists = match path.split_once('/') {
        Some((top, _)) if known.tops.contains(top) => project.exists(path),
        Some((".", _) | ("..", _)) => project.exists(&join(document, path)?),
        Some(_) => return None,
        None if FILES.iter().any(|ending| path.ends_with(ending)) => project.has_file_named(path),
        None => return None,
    };
    (!exists).then(|| format!("`{path}` does not exist; correct the path"))
}

/// The targets of `[text](target)`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](")
        .filter_map(|(start, _)| line[start + 2..].split_once(')').map(|(target, _)| target))
}

fn link(project: &Project, document: &str, text: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let (path, text) = if file.is_empty() {
        (document.to_string(), Some(text))
    } else {
        let path = join(document, file).filter(|path| project.exists(path));
        let Some(path) = path else { return Some(format!("the link `{target}` leads nowhere; correct it")) };
        let text = project.files().find(|(other, _)| *other == path).map(|(_, text)| text);
        (path, text)
    };
    let anchor = anchor?;
    let has_heading = text.is_some_and(|text| headings(text).any(|heading| heading == anchor));
    (!has_heading).then(|| format!("{path} has no heading `#{anchor}`; correct the link"))
}

/// `target`, as seen from `document`, from the root; `None` if it leaves the project.
fn join(document: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Headings as the anchors that GitHub makes of them.
fn headings(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter(|line| line.starts_with('#')).map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

#[cfg(test)]
mod tests_of_this {
    use super::*;

    /// Each wrong reference is found, and the right ones beside them are not.
    #[test]
    fn wrong_references_are_found() {
        let project = Project::read();
        let known = Known::new(&project);
        let check = |text: &str| in_document(&known, &project, "docs/x.md", text);
        for wrong in [
            "see `tests/src/gone.rs`",
            "see `gone_file.rs`",
            "see `tests::gone_module`",
            "as `a_test_that_nobody_wrote` shows",
            "see [that](gone.md)",
            "see [that](../README.md#no-such-heading)",
            "see [that](#no-such-heading)",
            "see [that](../../../outside.md)",
            "run `cargo xtask gone`",
            "run `cargo test -p gone`",
            "```sh\ncargo xtask gone\n```",
            "```sh\nnever closed",
        ] {
            assert_eq!(check(wrong).len(), 1, "{wrong}: {:?}", check(wrong));
        }
        for right in [
            "see `tests/src/places.rs`, `tests/src/places.rs:3`, `places.rs`, `tests/`, `log/{!lsn}`, `a/b`",
            "see `tests::places`, `std::fs`, `tests::places::root`",
            "as `wrong_references_are_found` shows, or `too_many_in_flight`",
            "see [that](../README.md), [this](https://example.org/x.md), [here](#here)\n\n## Here",
            "run `cargo xtask test` or `cargo test -p tests`",
            "```rust\nuse crate::gone; // `tests/src/gone.rs`\n```",
        ] {
            assert_eq!(check(right), Vec::<String>::new(), "{right}");
        }
    }

    #[test]
    fn samples_that_are_not_compiled_are_found() {
        let root = r#"#[doc = include_str!("../../README.md")]"#;
        assert!(samples("```rust\n```\n```rust,no_run\n```", root).is_empty());
        assert_eq!(samples("```rust,ignore\n```", root).len(), 1);
        assert_eq!(samples("no sample", root).len(), 1);
        assert_eq!(samples("```rust\n```", "").len(), 1);
    }

    #[test]
    fn odd_decisions_are_found() {
        let good = "# 0002: B\n\n## Decision\n\n## Why\n\n## Rejected\n";
        assert!(decision("0002-b.md", good, 2).is_empty());
        assert_eq!(decision("0003-b.md", good, 3).len(), 1, "number in the heading");
        assert_eq!(decision("0002-B b.md", good, 2).len(), 1, "name");
        assert_eq!(decision("0002-b.md", "# 0002: B\n", 2).len(), 3, "sections");
    }
}
