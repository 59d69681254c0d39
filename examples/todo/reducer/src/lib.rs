//! The reducers of the todo example: lists, and tasks in them that can be ordered by hand.
//!
//! ```text
//! lists(id, name)
//! tasks(id, list, title, done 0|1, position)
//! ```
//!
//! Ids are the caller's, so that it can show a row before the server has confirmed it. A task's
//! position is a real number, so that it can be moved between two others by writing one row: take
//! their middle. Positions need not be unique; order by (position, id).
//!
//! A task that somebody else deleted meanwhile cannot be renamed, moved or ticked off: that is refused,
//! and the caller learns it. Deleting it again is fine: both wanted it gone, and it is.

#![forbid(unsafe_code)]

use reducers::prelude::*;

#[cfg(test)]
mod tests;

reducers::module! {
    migrations: [create_tables],
    reducers: [create_list, add_task, set_done, rename_task, move_task, delete_task],
}

#[migration(1)]
fn create_tables(ctx: &mut Ctx) -> Result<(), Error> {
    ctx.execute(
        "CREATE TABLE lists(id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL) WITHOUT ROWID",
        params![],
    )?;
    ctx.execute(
        "CREATE TABLE tasks(
            id TEXT PRIMARY KEY NOT NULL,
            list TEXT NOT NULL,
            title TEXT NOT NULL,
            done INTEGER NOT NULL DEFAULT 0 CHECK (done IN (0, 1)),
            position REAL NOT NULL
        ) WITHOUT ROWID",
        params![],
    )?;
    ctx.execute("CREATE INDEX tasks_by_position ON tasks(list, position)", params![])?;
    Ok(())
}

/// Creates an empty list. Its name must not be blank; its id must be new.
#[reducer]
fn create_list(ctx: &mut Ctx, id: String, name: String) -> Result<(), Error> {
    ensure!(!id.is_empty(), "a list needs an id");
    ensure!(!name.trim().is_empty(), "a list needs a name");
    let added =
        ctx.execute("INSERT INTO lists(id, name) VALUES (?, ?) ON CONFLICT DO NOTHING", params![id, name])?;
    ensure!(added == 1, "there is a list {id} already");
    Ok(())
}

/// Adds a task below the last one of its list.
/// Its title must not be blank, its id must be new, and the list must exist.
#[reducer]
fn add_task(ctx: &mut Ctx, id: String, list: String, title: String) -> Result<(), Error> {
    ensure!(!id.is_empty(), "a task needs an id");
    check_title(&title)?;
    let known: bool = ctx.query_one("SELECT EXISTS (SELECT 1 FROM lists WHERE id = ?)", params![list])?;
    ensure!(known, "there is no list {list}");
    let last: Option<f64> = ctx.query_one("SELECT max(position) FROM tasks WHERE list = ?", params![list])?;
    let position = last.map_or(1.0, |last| last.floor() + 1.0);
    let added = ctx.execute(
        "INSERT INTO tasks(id, list, title, done, position) VALUES (?, ?, ?, 0, ?) ON CONFLICT DO NOTHING",
        params![id, list, title, position],
    )?;
    ensure!(added == 1, "there is a task {id} already");
    Ok(())
}

/// Ticks a task off, or makes it open again.
#[reducer]
fn set_done(ctx: &mut Ctx, id: String, done: bool) -> Result<(), Error> {
    let changed = ctx.execute("UPDATE tasks SET done = ? WHERE id = ?", params![done, id])?;
    check_found(changed, &id)
}

/// Gives a task another title, which must not be blank.
#[reducer]
fn rename_task(ctx: &mut Ctx, id: String, title: String) -> Result<(), Error> {
    check_title(&title)?;
    let changed = ctx.execute("UPDATE tasks SET title = ? WHERE id = ?", params![title, id])?;
    check_found(changed, &id)
}

/// Moves a task within its list, to a position between those of its new neighbours.
#[reducer]
fn move_task(ctx: &mut Ctx, id: String, position: f64) -> Result<(), Error> {
    ensure!(position.is_finite(), "a position is a finite number");
    let changed = ctx.execute("UPDATE tasks SET position = ? WHERE id = ?", params![position, id])?;
    check_found(changed, &id)
}

/// Deletes a task. It is no error if it is gone already.
#[reducer]
fn delete_task(ctx: &mut Ctx, id: String) -> Result<(), Error> {
    ctx.execute("DELETE FROM tasks WHERE id = ?", params![id])?;
    Ok(())
}

fn check_title(title: &str) -> Result<(), Error> {
    ensure!(!title.trim().is_empty(), "a task needs a title");
    Ok(())
}

fn check_found(changed: u64, id: &str) -> Result<(), Error> {
    ensure!(changed == 1, "there is no task {id}");
    Ok(())
}
