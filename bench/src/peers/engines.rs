//! The storage engines beside ours, each from its registry: two as loadable extensions from PyPI, and
//! turbolite as a program of `bench/peers/turbolite`, built with its crate.
//!
//! They are kept in `GRAFT_BENCH_PEERS`, else `~/.cache/graft/peers`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio::process::Command;

use super::Install;
use crate::process::finish;

/// Upstream's release, on PyPI as on crates.io.
pub const UPSTREAM: &str = "0.2.1";
/// Litestream's.
pub const LITESTREAM: &str = "0.5.17";
/// turbolite's crate, which `bench/peers/turbolite/Cargo.toml` pins.
pub const TURBOLITE: &str = "0.5.0";

/// Where peers are kept.
pub fn home() -> anyhow::Result<PathBuf> {
    let usual = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/graft/peers"));
    let dir = std::env::var_os("GRAFT_BENCH_PEERS").map(PathBuf::from).or_else(usual);
    dir.context("set GRAFT_BENCH_PEERS or HOME to say where peers are kept")
}

/// Upstream Graft's extension.
pub async fn upstream(install: Install) -> anyhow::Result<PathBuf> {
    wheel("sqlite-graft", UPSTREAM, "sqlite_graft/libgraft_ext.so", install).await
}

/// Litestream's VFS.
pub async fn litestream(install: Install) -> anyhow::Result<PathBuf> {
    wheel("litestream-vfs", LITESTREAM, "litestream_vfs/litestream-vfs.so", install).await
}

/// A library out of a wheel.
async fn wheel(package: &str, version: &str, library: &str, install: Install) -> anyhow::Result<PathBuf> {
    let dir = home()?.join(format!("{package}-{version}"));
    let path = dir.join(library);
    if path.exists() {
        return Ok(path);
    }
    if !install.packages {
        bail!("{} is not there, and --no-install was given", path.display());
    }
    println!("installing {package} {version} from PyPI");
    std::fs::create_dir_all(&dir)?;
    let pip = |args: &[&str]| {
        let mut command = Command::new("python3");
        command.args(["-m", "pip", "--disable-pip-version-check"]).args(args);
        command
    };
    let mut install = pip(&["install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target"]);
    install.arg(&dir).arg(format!("{package}=={version}"));
    finish(install).await?;
    if !path.exists() {
        bail!("{package} {version} holds no {library} for this machine");
    }
    Ok(path)
}

/// turbolite's program; built only where [`Install::turbolite`] says so, for that takes many minutes.
pub async fn turbolite(install: Install) -> anyhow::Result<PathBuf> {
    let home = home()?;
    let path = home.join("bin/bench-turbolite");
    if path.exists() {
        return Ok(path);
    }
    if !install.turbolite {
        bail!("{} is not there; --install-turbolite builds it, in about ten minutes", path.display());
    }
    println!("building turbolite {TURBOLITE} with its crate, which takes about ten minutes");
    let target = home.join("build-turbolite");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/turbolite");
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--locked"]).current_dir(source).env("CARGO_TARGET_DIR", &target);
    finish(build).await?;
    std::fs::create_dir_all(home.join("bin"))?;
    let built = target.join("release/bench-turbolite");
    std::fs::copy(&built, &path).with_context(|| format!("{} cannot be copied", built.display()))?;
    std::fs::remove_dir_all(&target).with_context(|| format!("{} cannot be removed", target.display()))?;
    Ok(path)
}
