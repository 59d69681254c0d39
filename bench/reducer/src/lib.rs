//! The reducers of the benchmarks: accounts with transfers between them, and notes.
//!
//! ```text
//! accounts(id, balance ≥ 0)
//! notes(id, text)
//! ```
//!
//! `bench/peers/spacetimedb` is the same for SpacetimeDB, row by row and check by check. A change to one
//! is a change to both, or the figures no longer compare.

#![forbid(unsafe_code)]

use reducers::prelude::*;

reducers::module! {
    migrations: [create_tables],
    reducers: [open_accounts, transfer, write_note],
}

#[migration(1)]
fn create_tables(ctx: &mut Ctx) -> Result<(), Error> {
    ctx.execute("CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)", params![])?;
    ctx.execute("CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT NOT NULL)", params![])?;
    Ok(())
}

/// Opens the accounts `first..first + count` with `balance` each.
#[reducer]
fn open_accounts(ctx: &mut Ctx, first: i64, count: i64, balance: i64) -> Result<(), Error> {
    for id in first..first + count {
        ctx.execute("INSERT INTO accounts(id, balance) VALUES (?, ?)", params![id, balance])?;
    }
    Ok(())
}

/// Moves `amount` between two accounts. The payer must have it, and both must exist.
#[reducer]
fn transfer(ctx: &mut Ctx, from: i64, to: i64, amount: i64) -> Result<(), Error> {
    ensure!(amount > 0 && from != to, "a transfer moves a positive amount between two accounts");
    let payer = balance(ctx, from)?;
    let payee = balance(ctx, to)?;
    ensure!(payer >= amount, "account {from} has only {payer}");
    set_balance(ctx, from, payer - amount)?;
    set_balance(ctx, to, payee + amount)
}

/// Writes the note `id`, new or not.
#[reducer]
fn write_note(ctx: &mut Ctx, id: i64, text: String) -> Result<(), Error> {
    ctx.execute(
        "INSERT INTO notes(id, text) VALUES (?, ?) ON CONFLICT(id) DO UPDATE SET text = excluded.text",
        params![id, text],
    )?;
    Ok(())
}

fn balance(ctx: &mut Ctx, id: i64) -> Result<i64, Error> {
    let found: Option<i64> = ctx.query_optional("SELECT balance FROM accounts WHERE id = ?", params![id])?;
    found.ok_or_else(|| Error::new(format!("there is no account {id}")))
}

fn set_balance(ctx: &mut Ctx, id: i64, balance: i64) -> Result<(), Error> {
    ctx.execute("UPDATE accounts SET balance = ? WHERE id = ?", params![balance, id])?;
    Ok(())
}
