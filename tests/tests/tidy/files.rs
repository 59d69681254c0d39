//! The project as text: its files, its packages, the tables in its documents.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Folders that hold nothing of ours.
const SKIPPED: [&str; 5] = ["target", "target-wasm", "node_modules", ".git", "dist"];
/// Endings of the files that are read as text.
const TEXT: [&str; 15] =
    ["rs", "toml", "md", "sh", "ts", "tsx", "js", "jsx", "mjs", "html", "css", "json", "yml", "yaml", "txt"];

/// Every text file of the project, by its path from the root with `/` between parts.
pub struct Project {
    files: BTreeMap<String, String>,
    /// Every path, of folders too.
    paths: std::collections::BTreeSet<String>,
}

impl Project {
    /// Reads the files as they lie on disk, committed or not.
    pub fn read() -> Project {
        let mut project = Project { files: BTreeMap::new(), paths: std::collections::BTreeSet::new() };
        project.add(&tests::places::root(), "");
        assert!(project.files.len() > 20, "the project's folder was not found");
        project
    }

    fn add(&mut self, dir: &Path, prefix: &str) {
        let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        for entry in entries {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            let path = format!("{prefix}{name}");
            self.paths.insert(path.clone());
            if entry.file_type().unwrap().is_dir() {
                self.add(&entry.path(), &format!("{path}/"));
            } else if is_text(&path) {
                let bytes = std::fs::read(entry.path()).unwrap_or_else(|e| panic!("{path}: {e}"));
                self.files.insert(path, String::from_utf8_lossy(&bytes).into_owned());
            }
        }
    }

    /// All text files.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Text files that are code or configuration, not prose or data.
    pub fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        let prose = [".md", ".txt", ".json"];
        self.files().filter(move |(path, _)| !prose.iter().any(|ending| path.ends_with(ending)))
    }

    /// Rust files.
    pub fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files().filter(|(path, _)| path.ends_with(".rs"))
    }

    /// README.md, ARCHITECTURE.md and everything below `docs/`.
    pub fn documents(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files()
            .filter(|(path, _)| path.ends_with(".md") && (path.starts_with("docs/") || !path.contains('/')))
    }

    /// One file, which must exist.
    pub fn text(&self, path: &str) -> &str {
        self.files.get(path).unwrap_or_else(|| panic!("{path} does not exist"))
    }

    /// The document that holds the rules.
    pub fn architecture(&self) -> Document<'_> {
        Document { path: "ARCHITECTURE.md", text: self.text("ARCHITECTURE.md") }
    }

    /// Whether `path`, from the root, is a file or folder.
    pub fn exists(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    /// Whether some file is called `name`.
    pub fn has_file_named(&self, name: &str) -> bool {
        self.paths.iter().any(|path| path.rsplit('/').next() == Some(name))
    }

    /// The workspace's packages, from `cargo metadata`.
    pub fn packages(&self) -> Vec<Value> {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(tests::places::root())
            .output()
            .unwrap();
        assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        metadata["packages"].as_array().unwrap().clone()
    }
}

fn is_text(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.') {
        Some((_, ending)) => TEXT.contains(&ending),
        None => path.starts_with(".ci/"),
    }
}

/// A document that holds tables to be checked.
pub struct Document<'a> {
    /// Its path.
    pub path: &'a str,
    /// Its text.
    pub text: &'a str,
}

/// One row of a table: its line in the document, and its cells.
#[derive(Debug, PartialEq)]
pub struct Row<'a> {
    /// From 1.
    pub line: usize,
    /// Without the bars and the spaces around.
    pub cells: Vec<&'a str>,
}

impl Document<'_> {
    /// The rows, without the heading, of the table after the comment `<!-- tidy: NAME -->`.
    pub fn table(&self, name: &str) -> Vec<Row<'_>> {
        let marker = format!("<!-- tidy: {name} -->");
        let lines = self.text.lines().enumerate();
        let after = lines.skip_while(|(_, line)| line.trim() != marker).skip(1);
        let table = after.skip_while(|(_, line)| !line.starts_with('|'));
        let rows = table.take_while(|(_, line)| line.starts_with('|')).skip(2);
        let rows: Vec<_> = rows
            .map(|(n, line)| Row {
                line: n + 1,
                cells: line.trim().trim_matches('|').split('|').map(str::trim).collect(),
            })
            .collect();
        assert!(!rows.is_empty(), "{} has no table after `{marker}`", self.path);
        rows
    }
}

/// The words between backticks.
pub fn code_spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The line, from 1, of the first line of `text` for which `is` holds; 1 if there is none.
pub fn line_of(text: &str, is: impl Fn(&str) -> bool) -> usize {
    text.lines().position(is).map_or(1, |n| n + 1)
}

#[test]
fn tables_are_found_by_their_markers() {
    let text = "# A\n\n| x |\n| --- |\n| no |\n\n<!-- tidy: rule -->\n\n| a | b |\n|---|---|\n| `one` | `two`, `three` |\n\n| other |";
    let document = Document { path: "d.md", text };
    let rows = document.table("rule");
    assert_eq!(rows, [Row { line: 11, cells: vec!["`one`", "`two`, `three`"] }]);
    assert_eq!(code_spans(rows[0].cells[1]), ["two", "three"]);
}
