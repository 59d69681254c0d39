//! A private PostgreSQL cluster: made for one measurement, on a free port of loopback, and removed.
//!
//! Every commit is fsynced (`fsync` and `synchronous_commit` stay on). PostgreSQL refuses to run as root,
//! so there its programs run as the user that Debian's package made.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};

use super::Install;
use crate::process::{Process, finish, free_port};
use crate::server::scratch;

/// The accounts and notes of `bench/reducer`, and its transfer as one statement.
///
/// Rows are locked in the order of their ids, so that two transfers never wait for each other in a circle.
const SCHEMA: &str = "
    CREATE TABLE account(id integer PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE note(id integer PRIMARY KEY, text text NOT NULL);
    CREATE FUNCTION transfer(payer integer, payee integer, amount bigint) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        found integer;
        rich boolean;
    BEGIN
        IF amount <= 0 OR payer = payee THEN
            RAISE 'a transfer moves a positive amount between two accounts';
        END IF;
        SELECT count(*), bool_or(id = payer AND balance >= amount) INTO found, rich FROM
            (SELECT id, balance FROM account WHERE id IN (payer, payee) ORDER BY id FOR UPDATE) AS locked;
        IF found <> 2 OR NOT rich THEN
            RAISE 'an account is missing, or has too little';
        END IF;
        UPDATE account SET balance = balance - amount WHERE id = payer;
        UPDATE account SET balance = balance + amount WHERE id = payee;
    END $$;";

/// Connections to PostgreSQL that a measurement uses at most; its own default allows 100.
pub const CONNECTIONS_MAX: usize = 64;

/// A running cluster with the tables of the benchmarks.
pub struct Cluster {
    port: u16,
    _process: Process,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Makes and starts one.
    pub async fn start() -> anyhow::Result<Cluster> {
        let programs = programs()?;
        let dir = scratch()?;
        let data = dir.path().join("data");
        std::fs::create_dir(&data)?;
        let root = is_root().await?;
        if root {
            let mut chown = Command::new("chown");
            chown.args(["-R", "postgres"]).arg(dir.path());
            finish(chown).await?;
        }
        let mut initdb = as_postgres(root, &programs.join("initdb"));
        initdb.args(["--username=bench", "--auth=trust", "--encoding=UTF8", "--locale=C", "-D"]).arg(&data);
        finish(initdb).await.context("PostgreSQL must be able to reach the folder `target`")?;
        let port = free_port()?;
        let mut command = as_postgres(root, &programs.join("postgres"));
        command.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "wal_level=logical",
            "synchronous_commit=on",
            "max_connections=200",
        ] {
            command.args(["-c", setting]);
        }
        // INT: end at once, but in order, so that no shared memory is left.
        let mut process = Process::start("postgres", dir.path(), command)?.ended_by("INT");
        process.ready(port).await?;
        let cluster = Cluster { port, _process: process, _dir: dir };
        cluster.client().await?.batch_execute(SCHEMA).await?;
        Ok(cluster)
    }

    /// For programs that take one.
    pub fn url(&self) -> String {
        format!("postgres://bench@127.0.0.1:{}/postgres", self.port)
    }

    /// A new connection. Just after its start the cluster may still refuse; then it is tried again.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let mut tries = 0;
        loop {
            match tokio_postgres::connect(&self.url(), NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(async move {
                        if let Err(error) = connection.await {
                            eprintln!("a connection to PostgreSQL broke: {error}");
                        }
                    });
                    return Ok(client);
                }
                Err(error) if tries < 100 && error.code().is_some() => {
                    tries += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn as_postgres(root: bool, program: &Path) -> Command {
    let mut command = if root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/");
    command
}

async fn is_root() -> anyhow::Result<bool> {
    let mut id = Command::new("id");
    id.arg("-u");
    Ok(finish(id).await?.trim() == "0")
}

/// The newest PostgreSQL of Debian's kind, 15 or later, else what PATH has.
fn programs() -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .filter(|(version, programs)| *version >= 15 && programs.join("initdb").is_file())
        .max();
    if let Some((_, programs)) = newest {
        return Ok(programs);
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&paths).find(|dir| dir.join("initdb").is_file());
    on_path.context("PostgreSQL 15 or later is not here; install the package `postgresql`")
}

/// Finds it, or installs Debian's package.
///
/// # Errors
///
/// It is not here and cannot be installed: the message says what to install.
pub async fn find_or_install(install: Install) -> anyhow::Result<()> {
    let Err(missing) = programs() else {
        return Ok(());
    };
    if !install.packages {
        bail!("{missing:#} (--no-install was given)");
    }
    if !is_root().await? {
        bail!("{missing:#} (the bench is not root, so it cannot)");
    }
    println!("installing Debian's package postgresql");
    for args in [&["update", "-qq"][..], &["install", "-qq", "-y", "--no-install-recommends", "postgresql"]] {
        let mut apt = Command::new("apt-get");
        apt.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        finish(apt).await?;
    }
    programs().map(drop)
}
