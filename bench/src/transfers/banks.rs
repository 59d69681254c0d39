//! Each system's accounts: opening them, one transfer on one connection, all balances.

use anyhow::bail;
use rusqlite::Connection;
use serde_json::json;
use sqlsync_layer::client::Client;

use super::Transfer;
use crate::peers::spacetimedb::{self, SpacetimeDb};
use crate::server::{Server, scratch};

/// Accounts opened by one call.
const OPEN_MAX: usize = 5_000;

/// One connection that transfers.
pub trait Bank {
    /// Ends when the transfer is acknowledged, as the system understands it.
    async fn transfer(&self, transfer: Transfer) -> anyhow::Result<()>;
}

impl Bank for Client {
    async fn transfer(&self, Transfer { from, to, amount }: Transfer) -> anyhow::Result<()> {
        let mutation = self.mutate("transfer", json!({"from": from, "to": to, "amount": amount})).await?;
        Ok(mutation.durable().await.map(drop)?)
    }
}

/// Where each call of `open_accounts` begins, and how many it opens.
fn chunks(accounts: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..accounts).step_by(OPEN_MAX).map(move |first| (first, OPEN_MAX.min(accounts - first)))
}

/// Opens the accounts `0..accounts`.
pub async fn open_ours(server: &Server, accounts: usize, balance: i64) -> anyhow::Result<()> {
    let client = server.client().await?;
    for (first, count) in chunks(accounts) {
        let args = json!({"first": first, "count": count, "balance": balance});
        client.mutate("open_accounts", args).await?.durable().await?;
    }
    Ok(())
}

/// All accounts, asked for in parts, since an answer's rows are bounded.
pub async fn balances_of_ours(server: &Server, accounts: usize) -> anyhow::Result<Vec<(usize, i64)>> {
    let client = server.client().await?;
    let mut balances = Vec::new();
    for (first, count) in chunks(accounts.max(1)) {
        // The last part also finds accounts that should not be there.
        let end =
            if first + count == accounts { String::new() } else { format!(" AND id < {}", first + count) };
        let sql = format!("SELECT id, balance FROM accounts WHERE id >= {first}{end}");
        for row in client.query(&sql, Default::default()).await?.rows() {
            let numbers: Vec<i64> = row.iter().filter_map(|value| value.as_i64()).collect();
            let [id, balance] = numbers[..] else { bail!("a row of accounts is {row:?}") };
            balances.push((usize::try_from(id)?, balance));
        }
    }
    Ok(balances)
}

impl Bank for spacetimedb::Client {
    async fn transfer(&self, Transfer { from, to, amount }: Transfer) -> anyhow::Result<()> {
        self.call("transfer", spacetimedb::args::transfer(from as u32, to as u32, amount)).await
    }
}

/// Opens the accounts `0..accounts`.
pub async fn open_spacetimedb(server: &SpacetimeDb, accounts: usize, balance: i64) -> anyhow::Result<()> {
    let client = server.client().await?;
    for (first, count) in chunks(accounts) {
        client
            .call("open_accounts", spacetimedb::args::open_accounts(first as u32, count as u32, balance))
            .await?;
    }
    Ok(())
}

/// A connection with the transfer prepared.
pub struct PostgresBank {
    client: tokio_postgres::Client,
    transfer: tokio_postgres::Statement,
}

impl PostgresBank {
    /// Prepares it.
    pub async fn new(client: tokio_postgres::Client) -> anyhow::Result<PostgresBank> {
        let transfer = client.prepare("SELECT transfer($1, $2, $3)").await?;
        Ok(PostgresBank { client, transfer })
    }
}

impl Bank for PostgresBank {
    async fn transfer(&self, Transfer { from, to, amount }: Transfer) -> anyhow::Result<()> {
        let (from, to) = (i32::try_from(from)?, i32::try_from(to)?);
        // A transaction of its own: committed when it answers.
        self.client.execute(&self.transfer, &[&from, &to, &amount]).await?;
        Ok(())
    }
}

/// SQL that opens the accounts `0..accounts`.
pub fn open_in_postgres(accounts: usize, balance: i64) -> String {
    format!("INSERT INTO account SELECT id, {balance} FROM generate_series(0, {accounts} - 1) AS id")
}

/// All accounts.
pub async fn balances_of_postgres(client: &tokio_postgres::Client) -> anyhow::Result<Vec<(usize, i64)>> {
    let rows = client.query("SELECT id, balance FROM account", &[]).await?;
    rows.iter().map(|row| Ok((usize::try_from(row.try_get::<_, i32>(0)?)?, row.try_get(1)?))).collect()
}

/// Plain SQLite in this process.
pub struct SqliteBank {
    db: Connection,
    _dir: tempfile::TempDir,
}

impl SqliteBank {
    /// A new database with the accounts `0..accounts`.
    pub fn open(accounts: usize, balance: i64) -> anyhow::Result<SqliteBank> {
        let dir = scratch()?;
        let db = Connection::open(dir.path().join("peer.db"))?;
        db.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
             INSERT INTO accounts WITH RECURSIVE ids(id) AS
                 (VALUES (0) UNION ALL SELECT id + 1 FROM ids WHERE id + 1 < {accounts})
                 SELECT id, {balance} FROM ids;"
        ))?;
        Ok(SqliteBank { db, _dir: dir })
    }

    /// All accounts.
    pub fn balances(&self) -> anyhow::Result<Vec<(usize, i64)>> {
        let mut statement = self.db.prepare("SELECT id, balance FROM accounts")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))?;
        rows.map(|row| row.map_err(Into::into).and_then(|(id, balance)| Ok((usize::try_from(id)?, balance))))
            .collect()
    }
}

impl Bank for SqliteBank {
    async fn transfer(&self, Transfer { from, to, amount }: Transfer) -> anyhow::Result<()> {
        let (from, to) = (i64::try_from(from)?, i64::try_from(to)?);
        let transaction = self.db.unchecked_transaction()?;
        {
            let mut read = transaction.prepare_cached("SELECT balance FROM accounts WHERE id = ?")?;
            let payer: i64 = read.query_row([from], |row| row.get(0))?;
            let payee: i64 = read.query_row([to], |row| row.get(0))?;
            if payer < amount {
                bail!("account {from} has only {payer}");
            }
            let mut write = transaction.prepare_cached("UPDATE accounts SET balance = ? WHERE id = ?")?;
            write.execute([payer - amount, from])?;
            write.execute([payee + amount, to])?;
        }
        Ok(transaction.commit()?)
    }
}
