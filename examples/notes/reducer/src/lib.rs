//! The reducers of the notes example: short texts that everybody may edit, the last writer wins.
//!
//! ```text
//! notes(id, body, author, created_at, updated_at)      times in ms since 1970
//! ```
//!
//! "Last" is the order in which the server applies the edits, not the clocks of the writers:
//! `updated_at` is the writer's own clock, for people to read.

#![forbid(unsafe_code)]

use reducers::prelude::*;

#[cfg(test)]
mod tests;

reducers::module! {
    migrations: [create_notes, index_by_time],
    reducers: [create_note, edit_note, delete_note],
}

/// The longest body, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

#[migration(1)]
fn create_notes(ctx: &mut Ctx) -> Result<(), Error> {
    ctx.execute(
        "CREATE TABLE notes(
            id TEXT PRIMARY KEY NOT NULL,
            body TEXT NOT NULL,
            author TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL
        )",
        params![],
    )?;
    Ok(())
}

#[migration(2)]
fn index_by_time(ctx: &mut Ctx) -> Result<(), Error> {
    ctx.execute("CREATE INDEX notes_by_time ON notes(updated_at)", params![])?;
    Ok(())
}

/// Creates a note. Without an id it gets a random one.
#[reducer]
fn create_note(ctx: &mut Ctx, id: Option<String>, body: String) -> Result<(), Error> {
    check_body(&body)?;
    let id = match id {
        Some(id) if id.is_empty() => bail!("a note's id cannot be empty"),
        Some(id) => id,
        None => ctx.random_id(),
    };
    let (author, now) = (ctx.user().to_owned(), ctx.now());
    let added = ctx.execute(
        "INSERT INTO notes(id, body, author, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?4)
         ON CONFLICT DO NOTHING",
        params![id, body, author, now],
    )?;
    ensure!(added == 1, "there is a note {id} already");
    Ok(())
}

/// Replaces a note's text. The last edit to be applied wins.
#[reducer]
fn edit_note(ctx: &mut Ctx, id: String, body: String) -> Result<(), Error> {
    check_body(&body)?;
    let now = ctx.now();
    let changed =
        ctx.execute("UPDATE notes SET body = ?, updated_at = ? WHERE id = ?", params![body, now, id])?;
    ensure!(changed == 1, "there is no note {id}");
    Ok(())
}

/// Deletes a note. It is no error if it is gone already.
#[reducer]
fn delete_note(ctx: &mut Ctx, id: String) -> Result<(), Error> {
    ctx.execute("DELETE FROM notes WHERE id = ?", params![id])?;
    Ok(())
}

fn check_body(body: &str) -> Result<(), Error> {
    ensure!(
        body.len() <= BODY_BYTES_MAX,
        "a note has at most {BODY_BYTES_MAX} bytes, this one has {}",
        body.len()
    );
    Ok(())
}
