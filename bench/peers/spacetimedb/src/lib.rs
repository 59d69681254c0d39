//! SpacetimeDB's side of the benchmarks: the tables and reducers of `bench/reducer`, for its server.
//!
//! Same rows, same checks, same refusals; only the interface differs.

use spacetimedb::{reducer, table, ReducerContext, Table};

#[table(name = account, public)]
pub struct Account {
    #[primary_key]
    id: u32,
    balance: i64,
}

#[table(name = note, public)]
pub struct Note {
    #[primary_key]
    id: u32,
    text: String,
}

/// Opens the accounts `first..first + count` with `balance` each.
#[reducer]
pub fn open_accounts(ctx: &ReducerContext, first: u32, count: u32, balance: i64) -> Result<(), String> {
    for id in first..first + count {
        ctx.db.account().try_insert(Account { id, balance }).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Moves `amount` between two accounts. The payer must have it, and both must exist.
#[reducer]
pub fn transfer(ctx: &ReducerContext, from: u32, to: u32, amount: i64) -> Result<(), String> {
    if amount <= 0 || from == to {
        return Err("a transfer moves a positive amount between two accounts".into());
    }
    let accounts = ctx.db.account().id();
    let payer = accounts.find(from).ok_or_else(|| format!("there is no account {from}"))?;
    let payee = accounts.find(to).ok_or_else(|| format!("there is no account {to}"))?;
    if payer.balance < amount {
        return Err(format!("account {from} has only {}", payer.balance));
    }
    accounts.update(Account { balance: payer.balance - amount, ..payer });
    accounts.update(Account { balance: payee.balance + amount, ..payee });
    Ok(())
}

/// Writes the note `id`, new or not.
#[reducer]
pub fn write_note(ctx: &ReducerContext, id: u32, text: String) {
    match ctx.db.note().id().find(id) {
        Some(note) => drop(ctx.db.note().id().update(Note { text, ..note })),
        None => drop(ctx.db.note().insert(Note { id, text })),
    }
}
