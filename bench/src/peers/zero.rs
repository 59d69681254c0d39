//! zero-cache with the API server that it asks its user for, over a PostgreSQL cluster of its own.

use anyhow::Context as _;

use super::node::Node;
use super::postgres::Cluster;
use crate::process::{Process, free_port};
use crate::server::scratch;

/// A running zero-cache. Fields are dropped from the first to the last: what asks before what answers.
pub struct Zero {
    /// Where its clients connect.
    pub url: String,
    _cache: Process,
    _api: Process,
    /// Its rows.
    pub postgres: Cluster,
    _dir: tempfile::TempDir,
}

impl Zero {
    /// Starts it on empty tables, once `fill` has had the database.
    pub async fn start(node: &Node, fill: &str) -> anyhow::Result<Zero> {
        let postgres = Cluster::start().await?;
        postgres.client().await?.batch_execute(fill).await?;
        let dir = scratch()?;
        let mut api = node.script("zero/api.mjs");
        api.arg(postgres.url());
        let mut api = Process::start("zero-api", dir.path(), api)?;
        let endpoint = api.first_line().await.context("Zero's API server did not start")?;
        let port = free_port()?;
        let mut cache = node.script("node_modules/@rocicorp/zero/out/zero/src/cli.js");
        cache
            .current_dir(dir.path())
            .env("ZERO_UPSTREAM_DB", postgres.url())
            .env("ZERO_PORT", port.to_string())
            .env("ZERO_CHANGE_STREAMER_PORT", free_port()?.to_string())
            .env("ZERO_REPLICA_FILE", dir.path().join("replica.db"))
            .env("ZERO_MUTATE_URL", format!("{endpoint}/mutate"))
            .env("ZERO_QUERY_URL", format!("{endpoint}/query"))
            .env("ZERO_ADMIN_PASSWORD", "bench")
            .env("ZERO_LOG_LEVEL", "warn")
            .env("ZERO_ENABLE_TELEMETRY", "false")
            .env("DO_NOT_TRACK", "1");
        let mut cache = Process::start("zero-cache", dir.path(), cache)?;
        cache.ready(port).await?;
        Ok(Zero { url: format!("http://127.0.0.1:{port}"), _cache: cache, _api: api, postgres, _dir: dir })
    }
}
