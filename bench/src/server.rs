//! The server under test: `graft serve` as its own process, stopped when dropped.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use sqlsync_layer::client::{Client, ClientConfig};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A running coordinator with the todo module deployed to volume `todo`, on a store of its own.
pub struct Server {
    url: String,
    _process: Child,
    /// Removed with the server.
    _store: tempfile::TempDir,
}

fn built(variable: &str, usual: &str) -> PathBuf {
    let usual = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(usual);
    std::env::var_os(variable).map_or_else(usual, PathBuf::from)
}

impl Server {
    /// Starts one on an empty store under the current target directory, so that the disk is the one
    /// that the project builds on and not a file system in memory.
    pub async fn start() -> anyhow::Result<Server> {
        let graft = built("GRAFT_BIN", "target/release/graft");
        let module = built("GRAFT_REDUCERS", "target/reducers").join("todo.wasm");
        let store = tempfile::tempdir_in(built("GRAFT_BENCH_DIR", "target"))?;
        let mut process = Command::new(&graft)
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--store"])
            .arg(store.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} does not start; run `cargo xtask build`", graft.display()))?;
        let stdout = process.stdout.take().context("the server has no stdout")?;
        let line = BufReader::new(stdout).lines().next_line().await?.context("the server ended at once")?;
        let url = line.split_whitespace().last().context("the server printed no URL")?.to_string();
        let deployed = Command::new(&graft)
            .args(["deploy", "--volume", "todo", "--url", &url])
            .arg(&module)
            .stdout(Stdio::null())
            .status()
            .await?;
        anyhow::ensure!(deployed.success(), "deploying {} failed", module.display());
        let server = Server { url, _process: process, _store: store };
        let client = server.client().await?;
        client.mutate("create_list", json!({"id": "l", "name": "list"})).await?.durable().await?;
        Ok(server)
    }

    /// A new client, live.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let mut config = ClientConfig::new(self.url.clone(), "todo");
        config.connect_timeout = Some(Duration::from_secs(10));
        Ok(Client::connect(config).await?)
    }
}
