//! Node 22 and npm's packages for it, as `bench/peers/package-lock.json` names them.
//!
//! Node itself comes as one of the packages, since the one on PATH may be too old for Zero; where npm has
//! none for this machine, the one on PATH is taken. No package's install script is run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use tokio::process::Command;

use super::Install;
use crate::process::{Process, finish, free_port};

/// What Zero asks for.
const NODE_MAJOR_MIN: u32 = 22;

/// Node and where its programs are.
#[derive(Debug, Clone)]
pub struct Node {
    program: PathBuf,
    dir: PathBuf,
}

impl Node {
    /// `node SCRIPT`, a path in `bench/peers`.
    pub fn script(&self, script: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(self.dir.join(script)).current_dir(&self.dir);
        command.env("NODE_ENV", "production").env("GRAFT_CLIENT", client());
        command
    }

    /// Runs a program of `bench/peers` that takes its order as JSON and answers one line of JSON.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        script: &str,
        order: serde_json::Value,
    ) -> anyhow::Result<T> {
        let mut command = self.script(script);
        command.arg(order.to_string());
        let printed = finish(command).await?;
        let line = printed.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("{script} printed no answer: `{line}`"))
    }
}

/// Our TypeScript client, built.
fn client() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/dist/index.js")
}

/// y-websocket's server, with its documents in memory.
pub async fn y_websocket(node: &Node, dir: &Path) -> anyhow::Result<(Process, String)> {
    let port = free_port()?;
    let mut command = node.script("node_modules/y-websocket/bin/server.cjs");
    command.env("HOST", "127.0.0.1").env("PORT", port.to_string());
    let mut process = Process::start("y-websocket", dir, command)?;
    process.ready(port).await?;
    Ok((process, format!("ws://127.0.0.1:{port}")))
}

/// Finds what is installed, or installs it.
///
/// # Errors
///
/// npm is missing or fails, Node is too old, or our client is not built: the message says what to do.
pub async fn find_or_install(install: Install) -> anyhow::Result<Node> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let wanted = std::fs::read(dir.join("package-lock.json"))?;
    // A copy of what was installed from, written last.
    let stamp = dir.join("node_modules/.installed-from");
    if std::fs::read(&stamp).ok().is_none_or(|installed| installed != wanted) {
        if !install.packages {
            bail!("npm's packages are not in bench/peers/node_modules, and --no-install was given");
        }
        println!("installing npm's packages for the peers (550 MB) in bench/peers/node_modules");
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&dir);
        finish(npm).await.context("install Node with npm, and put it on PATH")?;
        std::fs::write(&stamp, &wanted)?;
    }
    if !client().is_file() {
        bail!("client/dist is not built; run `npm ci && npm run build -w client`");
    }
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    let packaged = dir.join(format!("node_modules/node-linux-{arch}/bin/node"));
    let program = if packaged.is_file() { packaged } else { PathBuf::from("node") };
    let mut version = Command::new(&program);
    version.arg("--version");
    let version = finish(version).await?;
    let major = version.trim().trim_start_matches('v').split('.').next().and_then(|major| major.parse().ok());
    if major.is_none_or(|major: u32| major < NODE_MAJOR_MIN) {
        bail!("{} is {}; Zero needs {NODE_MAJOR_MIN} or later", program.display(), version.trim());
    }
    Ok(Node { program, dir })
}
