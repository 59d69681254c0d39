//! The product: `graft serve` as its own process on loopback, with a directory store, fsynced.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use sqlsync_layer::client::{Client, ClientConfig};
use tokio::process::Command;

use crate::process::{Process, finish};

/// A running coordinator with one module deployed to the volume `bench`, on a store of its own.
pub struct Server {
    /// Where it listens.
    pub url: String,
    _process: Process,
    /// Removed after the server has ended.
    _dir: tempfile::TempDir,
}

/// What an environment variable names, else a path in the project.
pub fn built(variable: &str, usual: &str) -> PathBuf {
    let usual = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(usual);
    std::env::var_os(variable).map_or_else(usual, PathBuf::from)
}

/// A temporary folder under the project's `target`, so that every system writes to the disk that the
/// project builds on and none to a file system in memory.
pub fn scratch() -> anyhow::Result<tempfile::TempDir> {
    let target = built("GRAFT_BENCH_DIR", "target");
    tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(&target)
        .with_context(|| format!("no folder can be made in {}", target.display()))
}

impl Server {
    /// Starts one on an empty store, with `module` in force.
    pub async fn start(module: PathBuf) -> anyhow::Result<Server> {
        let graft = built("GRAFT_BIN", "target/release/graft");
        let dir = scratch()?;
        let mut command = Command::new(&graft);
        command.args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--store"]);
        command.arg(dir.path().join("store"));
        let mut process = Process::start("graft", dir.path(), command)
            .with_context(|| format!("{} is not there; run `cargo xtask build`", graft.display()))?;
        let line = process.first_line().await?;
        let url = line.split_whitespace().last().context("the server printed no URL")?.to_string();
        let mut deploy = Command::new(&graft);
        deploy.args(["deploy", "--volume", "bench", "--url", &url]).arg(&module);
        finish(deploy).await?;
        Ok(Server { url, _process: process, _dir: dir })
    }

    /// One with the reducers of `bench/reducer`.
    pub async fn bench() -> anyhow::Result<Server> {
        Server::start(built("GRAFT_BENCH_MODULES", "target/bench-modules").join("graft.wasm")).await
    }

    /// One with the to-do example's reducers.
    pub async fn todo() -> anyhow::Result<Server> {
        Server::start(built("GRAFT_REDUCERS", "target/reducers").join("todo.wasm")).await
    }

    /// A new client, live.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let mut config = ClientConfig::new(self.url.clone(), "bench");
        config.connect_timeout = Some(Duration::from_secs(10));
        Ok(Client::connect(config).await?)
    }
}
