//! Who imports whom, and why each dependency is there.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::files::{Document, Row, code_spans, line_of};

/// What nobody may import, whatever the table says.
const LEAVES: [&str; 4] = ["tests", "xtask", "bench", "fuzz"];

/// Checks each import inside the workspace against the table `imports`:
/// crate, folder, may import, its tests also.
pub fn edges(rules: &Document<'_>, packages: &[Value]) -> Vec<String> {
    let mut findings = Vec::new();
    let table = rules.table("imports");
    let at = |row: &Row<'_>| format!("{}:{}", rules.path, row.line);
    let mut rows: BTreeMap<String, &Row<'_>> = BTreeMap::new();
    for row in &table {
        let names = code_spans(row.cells[0]);
        let (4, [name]) = (row.cells.len(), names.as_slice()) else {
            findings.push(format!("{}: a row needs one crate and four cells; mend it", at(row)));
            continue;
        };
        rows.insert(name.to_string(), row);
        if packages.iter().all(|p| p["name"] != *name) {
            findings.push(format!("{}: the workspace has no crate `{name}`; remove the row", at(row)));
        }
        for leaf in LEAVES {
            if row.cells[2..].iter().any(|cell| code_spans(cell).contains(&leaf)) {
                findings.push(format!("{}: nobody may import `{leaf}`; remove it", at(row)));
            }
        }
    }
    for package in packages {
        let name = text(&package["name"]);
        let Some(row) = rows.get(name) else {
            findings
                .push(format!("{}:1: crate `{name}` has no row in the table `imports`; add one", rules.path));
            continue;
        };
        let folder = folder(package);
        if code_spans(row.cells[1]) != [folder.as_str()] {
            findings.push(format!("{}: crate `{name}` lies in `{folder}`; correct the row", at(row)));
        }
        for import in list(&package["dependencies"]).filter(|d| d["path"].is_string()) {
            let imported = text(&import["name"]);
            let for_tests = import["kind"] == "dev";
            // A crate may use itself in its tests, with other features.
            let allowed = for_tests && imported == name
                || code_spans(row.cells[2]).contains(&imported)
                || for_tests && code_spans(row.cells[3]).contains(&imported);
            if !allowed {
                findings.push(format!(
                    "{folder}/Cargo.toml:{}: `{name}` may not import `{imported}`{}; \
                     move the code, or change the rule in {} with a decision record",
                    manifest_line(package, imported),
                    if for_tests { " in its tests" } else { "" },
                    rules.path,
                ));
            }
        }
    }
    findings
}

/// Checks that `[workspace.dependencies]`, the table `dependencies` (name, reason) and what crates use
/// are the same set.
pub fn dependencies(rules: &Document<'_>, manifest: &str, packages: &[Value]) -> Vec<String> {
    let mut findings = Vec::new();
    let declared = external_dependencies(manifest);
    let mut reasons = BTreeSet::new();
    for row in rules.table("dependencies") {
        let at = format!("{}:{}", rules.path, row.line);
        for name in code_spans(row.cells[0]) {
            if !declared.contains_key(name) {
                findings.push(format!("{at}: `{name}` is not in [workspace.dependencies]; remove it here"));
            }
            if !reasons.insert(name.to_string()) {
                findings.push(format!("{at}: `{name}` has two rows; keep one"));
            }
        }
        if row.cells.get(1).is_none_or(|reason| reason.split_whitespace().count() < 3) {
            findings.push(format!("{at}: a dependency without a reason; say what it is for"));
        }
    }
    let used: BTreeSet<&str> = packages
        .iter()
        .flat_map(|package| list(&package["dependencies"]))
        .filter(|dependency| dependency["path"].is_null())
        .map(|dependency| text(&dependency["name"]))
        .collect();
    for (name, line) in &declared {
        if !reasons.contains(*name) {
            findings.push(format!(
                "Cargo.toml:{line}: `{name}` has no row in {}'s table `dependencies`; add its reason",
                rules.path
            ));
        }
        if !used.contains(name) {
            findings.push(format!("Cargo.toml:{line}: no crate uses `{name}`; remove it"));
        }
    }
    for package in packages {
        for dependency in list(&package["dependencies"]).filter(|d| d["path"].is_null()) {
            let name = text(&dependency["name"]);
            if !declared.contains_key(name) {
                findings.push(format!(
                    "{}/Cargo.toml:{}: `{name}` is not in [workspace.dependencies]; declare it there",
                    folder(package),
                    manifest_line(package, name),
                ));
            }
        }
    }
    findings
}

/// Names in `[workspace.dependencies]` that are not ours, with their lines.
fn external_dependencies(manifest: &str) -> BTreeMap<&str, usize> {
    let mut inside = false;
    let mut names = BTreeMap::new();
    for (n, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            inside = line.trim() == "[workspace.dependencies]";
        } else if inside
            && let Some((name, value)) = line.split_once('=')
            && !name.trim_start().starts_with('#')
            && !value.contains("path =")
        {
            names.insert(name.trim(), n + 1);
        }
    }
    names
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The folder of a package, from the root.
fn folder(package: &Value) -> String {
    let manifest = text(&package["manifest_path"]).trim_end_matches("/Cargo.toml").to_string();
    let root = tests::places::root();
    let root = std::fs::canonicalize(&root).unwrap_or(root);
    manifest.strip_prefix(&format!("{}/", root.display())).unwrap_or(&manifest).to_string()
}

/// Where a package's manifest names `dependency`.
fn manifest_line(package: &Value, dependency: &str) -> usize {
    let manifest = std::fs::read_to_string(text(&package["manifest_path"])).unwrap_or_default();
    line_of(&manifest, |line| {
        line.strip_prefix(dependency).is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
    })
}

#[cfg(test)]
mod tests_of_this {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: Value) -> Value {
        json!({ "name": name, "manifest_path": format!("{name}/Cargo.toml"), "dependencies": dependencies })
    }

    #[test]
    fn forbidden_imports_are_found() {
        let text = "<!-- tidy: imports -->\n| crate | folder | may | tests |\n|-|-|-|-|\n\
            | `low` | `low` | nothing | nothing |\n| `high` | `high` | `low` | `mid` |\n| `gone` | `gone` | `tests` | |";
        let rules = Document { path: "A.md", text };
        let low = package("low", json!([{ "name": "high", "path": "/high", "kind": null }]));
        let high = package(
            "high",
            json!([
                { "name": "low", "path": "/low", "kind": null },
                { "name": "mid", "path": "/mid", "kind": "dev" },
                { "name": "serde", "path": null, "kind": null },
            ]),
        );
        let odd = package("odd", json!([{ "name": "mid", "path": "/mid", "kind": null }]));
        let findings = edges(&rules, &[low, high, odd]).join("\n");
        assert!(findings.contains("`low` may not import `high`"), "{findings}");
        assert!(findings.contains("no crate `gone`"), "{findings}");
        assert!(findings.contains("nobody may import `tests`"), "{findings}");
        assert!(findings.contains("`odd` has no row"), "{findings}");
        assert_eq!(findings.lines().count(), 4, "{findings}");
    }

    #[test]
    fn dependencies_must_agree() {
        let manifest = "[workspace.dependencies]\nours = { path = \"ours\" }\na = \"1\"\nb = \"1\"\nc = \"1\"\n[x]\nd = \"1\"";
        let text = "<!-- tidy: dependencies -->\n| crate | reason |\n|-|-|\n| `a` | it is needed |\n| `b` | no |\n| `d` | it is gone |";
        let rules = Document { path: "A.md", text };
        let user = package("p", json!(["a", "b", "e"].map(|name| json!({ "name": name, "path": null }))));
        let findings = dependencies(&rules, manifest, &[user]).join("\n");
        for expected in [
            "`d` is not in [workspace",
            "without a reason",
            "`c` has no row",
            "no crate uses `c`",
            "`e` is not in [work",
        ] {
            assert!(findings.contains(expected), "{expected} in {findings}");
        }
        assert_eq!(findings.lines().count(), 5, "{findings}");
    }
}
