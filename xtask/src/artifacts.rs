//! What other steps need built first: the `graft` program, the guests, the wasm32 libraries.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::setup::Tools;

/// Builds `graft`; its path. A debug build is what the end-to-end tests run.
pub fn graft(tools: &Tools, release: bool) -> anyhow::Result<PathBuf> {
    let profile: &[&str] = if release { &["--release"] } else { &[] };
    tools.cargo(["build", "-p", "graft-cli"]).args(profile).check()?;
    let path = tools.root.join("target").join(if release { "release" } else { "debug" }).join("graft");
    if !path.is_file() {
        bail!("cargo built graft-cli, but {} does not exist", path.display());
    }
    Ok(path)
}

/// Builds the loadable SQLite extension; its path.
pub fn sqlite_extension(tools: &Tools) -> anyhow::Result<PathBuf> {
    tools.cargo(["build", "-p", "sqlite-ext"]).check()?;
    let name = format!("{}graft_sqlite{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let path = tools.root.join("target/debug").join(name);
    if !path.is_file() {
        bail!("cargo built sqlite-ext, but {} does not exist", path.display());
    }
    Ok(path)
}

/// Builds every example's reducers to `target/reducers/{example}.wasm`; that folder.
pub fn reducers(tools: &Tools) -> anyhow::Result<PathBuf> {
    let examples = examples(&tools.root)?;
    let mut build = tools.wasm_cargo(["build", "--profile", "wasm"]);
    for example in &examples {
        build = build.args(["-p", &format!("{example}-reducer")]);
    }
    build.check()?;
    let dir = tools.root.join("target/reducers");
    std::fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    for example in &examples {
        let built = tools.wasm_output("wasm").join(format!("{example}_reducer.wasm"));
        let to = dir.join(format!("{example}.wasm"));
        let copied = std::fs::copy(&built, &to);
        copied.with_context(|| format!("{} cannot be copied to {}", built.display(), to.display()))?;
    }
    Ok(dir)
}

/// Builds `graft` and `sqlsync-layer` as the browser core will use them: without native parts.
pub fn wasm_libraries(tools: &Tools) -> anyhow::Result<()> {
    tools.wasm_cargo(["build", "-p", "graft", "-p", "sqlsync-layer", "--no-default-features"]).check()
}

/// The examples that have reducers: each `examples/NAME/reducer` is the package `NAME-reducer`.
fn examples(root: &Path) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(root.join("examples")).context("examples/ cannot be read")?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.path().join("reducer/Cargo.toml").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    if names.is_empty() {
        bail!("examples/ holds no reducer");
    }
    Ok(names)
}
