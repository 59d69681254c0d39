//! The storage engines beside ours, each from its registry: Litestream's VFS as a loadable extension from
//! PyPI; upstream Graft and turbolite as programs built with their crates, in `bench/peers`.
//!
//! Upstream Graft is on PyPI too, but compiled for a C library that is newer than Debian 12's.
//!
//! They are kept in `GRAFT_BENCH_PEERS`, else `~/.cache/graft/peers`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio::process::Command;

use super::Install;
use crate::process::finish;

/// Upstream's crate, which `bench/peers/upstream/Cargo.toml` pins.
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

/// Upstream Graft's program.
pub async fn upstream(install: Install) -> anyhow::Result<PathBuf> {
    program("upstream", "bench-upstream-graft", "upstream-graft", install.upstream, install).await
}

/// turbolite's program.
pub async fn turbolite(install: Install) -> anyhow::Result<PathBuf> {
    program("turbolite", "bench-turbolite", "turbolite", install.turbolite, install).await
}

/// What is built of `bench/peers/FOLDER`; only where `may` says so, for that takes many minutes.
async fn program(
    folder: &str,
    binary: &str,
    name: &str,
    may: bool,
    install: Install,
) -> anyhow::Result<PathBuf> {
    let home = home()?;
    let path = home.join("bin").join(binary);
    if path.exists() {
        return Ok(path);
    }
    if !may || !install.packages {
        bail!("{} is not there; --install-{name} builds it, in ten minutes or more", path.display());
    }
    println!("building {name} with its crate, which takes ten minutes or more");
    let target = home.join(format!("build-{folder}"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(folder);
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--locked"]).current_dir(source).env("CARGO_TARGET_DIR", &target);
    finish(build).await?;
    std::fs::create_dir_all(home.join("bin"))?;
    let built = target.join("release").join(binary);
    std::fs::copy(&built, &path).with_context(|| format!("{} cannot be copied", built.display()))?;
    std::fs::remove_dir_all(&target).with_context(|| format!("{} cannot be removed", target.display()))?;
    Ok(path)
}
