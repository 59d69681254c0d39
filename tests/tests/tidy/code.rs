//! What sources must not hold, and what they must.
//!
//! The words looked for are put together from halves here, so that this file does not find itself.

use std::collections::BTreeMap;

use crate::files::{Document, Project, code_spans, line_of};

/// The one file that may name the folder of test data beside the project.
const MAY_NAME_SHARED: &str = "tests/src/places.rs";

/// Notes of unfinished work.
pub fn leftovers(path: &str, text: &str) -> Vec<String> {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("HA", "CK")];
    let macros = [concat!("to", "do!("), concat!("unimple", "mented!(")];
    let mut findings = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let is_letter = |c: char| c.is_alphanumeric() || c == '_';
        let word = line.split(|c| !is_letter(c)).find(|word| words.contains(word));
        let call = macros.into_iter().find(|call| line.contains(call));
        if let Some(found) = word.or(call) {
            findings.push(format!(
                "{path}:{}: `{found}`: finish it, or say in the documents that it is not there",
                n + 1
            ));
        }
    }
    findings
}

/// `unsafe` outside the files that the table `unsafe` names, rows without any, and blocks without a
/// `SAFETY:` line.
pub fn unsafe_code<'a>(
    rules: &Document<'_>,
    sources: impl Iterator<Item = (&'a str, &'a str)>,
) -> Vec<String> {
    let allow = concat!("allow(", "unsafe_code");
    let mut findings = Vec::new();
    let mut rows: BTreeMap<&str, usize> = BTreeMap::new();
    let table = rules.table("unsafe");
    for row in &table {
        rows.extend(code_spans(row.cells[0]).into_iter().map(|path| (path, row.line)));
    }
    for (path, text) in sources {
        if text.contains(allow) && rows.remove(path).is_none() {
            let line = line_of(text, |line| line.contains(allow));
            findings.push(format!(
                "{path}:{line}: unsafe code where {} does not list it; do without, or add the file and why",
                rules.path
            ));
        }
        findings.extend(unexplained(path, text));
    }
    for (path, line) in rows {
        findings.push(format!("{}:{line}: `{path}` holds no unsafe code; remove the row", rules.path));
    }
    findings
}

/// Unsafe blocks and implementations without `SAFETY:` on the lines before.
fn unexplained(path: &str, text: &str) -> Vec<String> {
    let starts = [concat!("uns", "afe {"), concat!("uns", "afe impl")];
    let lines: Vec<&str> = text.lines().collect();
    let mut findings = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let explained = lines[n.saturating_sub(8)..=n].iter().any(|line| line.contains("SAFETY:"));
        if starts.iter().any(|start| code.contains(start)) && !explained {
            findings.push(format!(
                "{path}:{}: unsafe without a reason; say before it `// SAFETY:` and which guarantee holds",
                n + 1
            ));
        }
    }
    findings
}

/// Crate roots without a module header.
pub fn headers(project: &Project) -> Vec<String> {
    let root = tests::places::root();
    let root = format!("{}/", std::fs::canonicalize(&root).unwrap_or(root).display());
    let mut findings = Vec::new();
    for package in project.packages() {
        for target in package["targets"].as_array().into_iter().flatten() {
            let path = target["src_path"].as_str().unwrap_or_default();
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if let Some(finding) = header(path.trim_start_matches(&root), &text) {
                findings.push(finding);
            }
        }
    }
    findings
}

fn header(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().take_while(|line| line.starts_with("//!"));
    let words = lines.flat_map(|line| line.trim_start_matches("//!").split_whitespace()).count();
    (words < 8).then(|| {
        format!("{path}:1: no module header; begin with `//!` lines: purpose, mechanism, invariants")
    })
}

/// Names of folders that exist on one machine only.
pub fn strangers(path: &str, text: &str) -> Vec<String> {
    let folders = [concat!("/work/", "shared"), concat!("../", "shared"), concat!("/tmp/", "work")];
    if path == MAY_NAME_SHARED {
        return Vec::new();
    }
    let lines = text.lines().enumerate();
    let found = lines.filter_map(|(n, line)| Some((n, folders.into_iter().find(|f| line.contains(f))?)));
    found
        .map(|(n, folder)| format!("{path}:{}: `{folder}` is not part of the project; do without it", n + 1))
        .collect()
}

/// Lint exceptions that do not say why.
pub fn reasons(path: &str, text: &str) -> Vec<String> {
    let exception = concat!("allow(clippy::disallowed", "_methods");
    let mut findings = Vec::new();
    for (start, _) in text.match_indices(exception) {
        let attribute = &text[start..];
        let attribute = &attribute[..attribute.find(']').unwrap_or(attribute.len())];
        if !attribute.contains("reason") {
            let line = text[..start].lines().count().max(1);
            findings.push(format!("{path}:{line}: an exception without a reason; add `reason = \"…\"`"));
        }
    }
    findings
}

#[cfg(test)]
mod tests_of_this {
    use super::*;

    #[test]
    fn leftovers_are_found() {
        let text = format!(
            "a\n// {}: later\nlet todo = 1; // {}s are fine\n{}\"\")",
            concat!("TO", "DO"),
            concat!("TO", "DO"),
            concat!("to", "do!(")
        );
        let lines: Vec<_> = leftovers("a.rs", &text).iter().map(|f| f[..6].to_string()).collect();
        assert_eq!(lines, ["a.rs:2", "a.rs:4"]);
    }

    #[test]
    fn unlisted_and_unexplained_unsafe_is_found() {
        let table = "<!-- tidy: unsafe -->\n| file | why |\n|-|-|\n| `ok.rs` | ffi |\n| `idle.rs` | ffi |";
        let allow = concat!("#![allow(", "unsafe_code)]");
        let block = concat!("uns", "afe { x() }");
        let ok = format!("{allow}\n// SAFETY: x has no preconditions\n{block}\n");
        let bad = format!("{allow}\n\n{block} // unsafe\n");
        let files =
            [("ok.rs", ok.as_str()), ("bad.rs", bad.as_str()), ("plain.rs", "// an unsafe { } thing")];
        let findings = unsafe_code(&Document { path: "A.md", text: table }, files.into_iter());
        let starts: Vec<_> = findings.iter().map(|f| f.split(": ").next().unwrap()).collect();
        assert_eq!(starts, ["bad.rs:1", "bad.rs:3", "A.md:5"]);
    }

    #[test]
    fn thin_headers_are_found() {
        assert!(header("a.rs", "//! Placeholder.\n").is_some());
        assert!(header("a.rs", "fn main() {}").is_some());
        assert!(header("a.rs", "//! What this is, in a sentence long enough to say it.\n").is_none());
    }

    #[test]
    fn strangers_and_missing_reasons_are_found() {
        let text = format!("x\nsee {}/DESIGN.md\n", concat!("/work/", "shared"));
        assert_eq!(strangers("a.rs", &text).len(), 1);
        assert!(strangers(MAY_NAME_SHARED, &text).is_empty());
        let lint = concat!("#[allow(clippy::disallowed", "_methods");
        assert_eq!(reasons("a.rs", &format!("{lint})]")).len(), 1);
        assert!(reasons("a.rs", &format!("{lint},\n reason = \"a driver\")]")).is_empty());
    }
}
