//! The reducers of the todo example: lists, tasks in them that can be ordered by hand, and what people
//! do to each other with them: comments, capacities, claims.
//!
//! ```text
//! lists(id, name)
//! tasks(id, list, title, done 0|1, position)
//! capacities(list, capacity)                            at most so many tasks in that list
//! comments(id, task, number, author_id, author, text)   number: 1, 2, 3… within its task
//! claims(task, claimant, name)                          at most one for each task
//! deleted_tasks(id)                                     so that a refusal can say why there is no task
//! ```
//!
//! Ids are the caller's, so that it can show a row before the server has confirmed it. A task's
//! position is a real number, so that it can be moved between two others by writing one row: take
//! their middle. Positions need not be unique; order by (position, id).
//!
//! **Who is who**: `author_id` and `claimant` are [`Ctx::user`], which a caller cannot choose freely;
//! `author` and `name` are what that person wants to be called, and only shown.
//!
//! **Conflicts** are decided by whoever comes first in the volume's order, and the other is refused with
//! a reason that a person can read:
//!
//! | both | the second hears |
//! | --- | --- |
//! | one deletes a task, one changes or claims it or comments on it | `the task was deleted` |
//! | one comments on a task, one who has not seen that deletes it | `the task has a comment that you have not seen` |
//! | two add the last task that a list has room for | `the list is full: 3 of 3` |
//! | one adds a task, one lowers the capacity below that | `the list has 3 tasks already` |
//! | two claim a task | `Ada has claimed it` |
//!
//! Deleting what is gone, and releasing what is free, is fine: both wanted it so.
//!
//! Invariants: a list with a capacity never holds more tasks; a task has at most one claim; comments and
//! claims are of tasks that exist, and go with them; a comment goes only by `delete_comment`, or with its
//! task by somebody who knew of it or asked for the task to go whatever it has.

#![forbid(unsafe_code)]

use reducers::prelude::*;

#[cfg(test)]
mod tests;

reducers::module! {
    migrations: [create_tables, create_comments_capacities_claims],
    reducers: [
        create_list, add_task, set_done, rename_task, move_task, delete_task,
        delete_list, set_capacity, add_comment, delete_comment, claim_task, release_task,
    ],
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

#[migration(2)]
fn create_comments_capacities_claims(ctx: &mut Ctx) -> Result<(), Error> {
    for table in [
        "CREATE TABLE capacities(
            list TEXT PRIMARY KEY NOT NULL,
            capacity INTEGER NOT NULL CHECK (capacity >= 1)
        ) WITHOUT ROWID",
        "CREATE TABLE comments(
            id TEXT PRIMARY KEY NOT NULL,
            task TEXT NOT NULL,
            number INTEGER NOT NULL,
            author_id TEXT NOT NULL,
            author TEXT NOT NULL,
            text TEXT NOT NULL
        ) WITHOUT ROWID",
        "CREATE UNIQUE INDEX comments_by_task ON comments(task, number)",
        "CREATE TABLE claims(
            task TEXT PRIMARY KEY NOT NULL,
            claimant TEXT NOT NULL,
            name TEXT NOT NULL
        ) WITHOUT ROWID",
        "CREATE TABLE deleted_tasks(id TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID",
    ] {
        ctx.execute(table, params![])?;
    }
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
/// Its title must not be blank, its id must be new, and the list must exist and have room.
#[reducer]
fn add_task(ctx: &mut Ctx, id: String, list: String, title: String) -> Result<(), Error> {
    ensure!(!id.is_empty(), "a task needs an id");
    check_title(&title)?;
    let capacity = capacity(ctx, &list)?;
    let last: Option<f64> = ctx.query_one("SELECT max(position) FROM tasks WHERE list = ?", params![list])?;
    let position = last.map_or(1.0, |last| last.floor() + 1.0);
    let added = ctx.execute(
        "INSERT INTO tasks(id, list, title, done, position) VALUES (?, ?, ?, 0, ?) ON CONFLICT DO NOTHING",
        params![id, list, title, position],
    )?;
    ensure!(added == 1, "there is a task {id} already");
    if let Some(capacity) = capacity {
        let tasks = count_tasks(ctx, &list)?;
        ensure!(tasks <= capacity, "the list is full: {} of {capacity}", tasks - 1);
    }
    Ok(())
}

/// Ticks a task off, or makes it open again.
#[reducer]
fn set_done(ctx: &mut Ctx, id: String, done: bool) -> Result<(), Error> {
    let changed = ctx.execute("UPDATE tasks SET done = ? WHERE id = ?", params![done, id])?;
    check_changed(ctx, changed, &id)
}

/// Gives a task another title, which must not be blank.
#[reducer]
fn rename_task(ctx: &mut Ctx, id: String, title: String) -> Result<(), Error> {
    check_title(&title)?;
    let changed = ctx.execute("UPDATE tasks SET title = ? WHERE id = ?", params![title, id])?;
    check_changed(ctx, changed, &id)
}

/// Moves a task within its list, to a position between those of its new neighbours.
#[reducer]
fn move_task(ctx: &mut Ctx, id: String, position: f64) -> Result<(), Error> {
    ensure!(position.is_finite(), "a position is a finite number");
    let changed = ctx.execute("UPDATE tasks SET position = ? WHERE id = ?", params![position, id])?;
    check_changed(ctx, changed, &id)
}

/// Deletes a task with its comments and its claim. It is no error if it is gone already.
/// With `comments_seen`, how many comments the caller knows of, it is refused where there are more.
#[reducer]
fn delete_task(ctx: &mut Ctx, id: String, comments_seen: Option<i64>) -> Result<(), Error> {
    if let Some(seen) = comments_seen {
        let comments: i64 = ctx.query_one("SELECT count(*) FROM comments WHERE task = ?", params![id])?;
        match comments.saturating_sub(seen) {
            ..=0 => {}
            1 => bail!("the task has a comment that you have not seen"),
            more => bail!("the task has {more} comments that you have not seen"),
        }
    }
    if ctx.execute("DELETE FROM tasks WHERE id = ?", params![id])? == 1 {
        ctx.execute("DELETE FROM comments WHERE task = ?", params![id])?;
        ctx.execute("DELETE FROM claims WHERE task = ?", params![id])?;
        ctx.execute("INSERT INTO deleted_tasks(id) VALUES (?) ON CONFLICT DO NOTHING", params![id])?;
    }
    Ok(())
}

/// Deletes a list, which must be empty. It is no error if it is gone already.
#[reducer]
fn delete_list(ctx: &mut Ctx, id: String) -> Result<(), Error> {
    let tasks = count_tasks(ctx, &id)?;
    ensure!(tasks == 0, "the list has {}", counted(tasks));
    ctx.execute("DELETE FROM lists WHERE id = ?", params![id])?;
    ctx.execute("DELETE FROM capacities WHERE list = ?", params![id])?;
    Ok(())
}

/// Says how many tasks a list has room for, ticked ones included: at least 1, and at least as many as it
/// has. Null, or none given: without end.
#[reducer]
fn set_capacity(ctx: &mut Ctx, list: String, capacity: Option<u32>) -> Result<(), Error> {
    check_list(ctx, &list)?;
    let Some(capacity) = capacity.map(i64::from) else {
        ctx.execute("DELETE FROM capacities WHERE list = ?", params![list])?;
        return Ok(());
    };
    ensure!(capacity >= 1, "a list has room for at least 1 task");
    let tasks = count_tasks(ctx, &list)?;
    ensure!(tasks <= capacity, "the list has {} already", counted(tasks));
    ctx.execute(
        "INSERT INTO capacities(list, capacity) VALUES (?, ?)
         ON CONFLICT (list) DO UPDATE SET capacity = excluded.capacity",
        params![list, capacity],
    )?;
    Ok(())
}

/// Adds a comment below the others of its task. `author` is what the caller wants to be called.
#[reducer]
fn add_comment(ctx: &mut Ctx, id: String, task: String, author: String, text: String) -> Result<(), Error> {
    ensure!(!id.is_empty(), "a comment needs an id");
    ensure!(!author.trim().is_empty(), "a comment needs an author");
    ensure!(!text.trim().is_empty(), "a comment needs a text");
    check_task(ctx, &task)?;
    let author_id = ctx.user().to_owned();
    let added = ctx.execute(
        "INSERT INTO comments(id, task, number, author_id, author, text)
         SELECT ?1, ?2, coalesce(max(number), 0) + 1, ?3, ?4, ?5 FROM comments WHERE task = ?2
         ON CONFLICT (id) DO NOTHING",
        params![id, task, author_id, author, text],
    )?;
    ensure!(added == 1, "there is a comment {id} already");
    Ok(())
}

/// Deletes a comment. It is no error if it is gone already.
#[reducer]
fn delete_comment(ctx: &mut Ctx, id: String) -> Result<(), Error> {
    ctx.execute("DELETE FROM comments WHERE id = ?", params![id])?;
    Ok(())
}

/// Claims a task for the caller, who wants to be called `name`. It is refused while somebody else has it.
#[reducer]
fn claim_task(ctx: &mut Ctx, id: String, name: String) -> Result<(), Error> {
    ensure!(!name.trim().is_empty(), "a claim needs a name");
    check_task(ctx, &id)?;
    let claimant = ctx.user().to_owned();
    check_claimant(ctx, &id, &claimant)?;
    ctx.execute(
        "INSERT INTO claims(task, claimant, name) VALUES (?, ?, ?)
         ON CONFLICT (task) DO UPDATE SET name = excluded.name",
        params![id, claimant, name],
    )?;
    Ok(())
}

/// Releases a task that the caller has claimed, or `claimant` where given, who may be gone for good. It is
/// no error if it is free already, and refused if by now somebody else has it.
#[reducer]
fn release_task(ctx: &mut Ctx, id: String, claimant: Option<String>) -> Result<(), Error> {
    let claimant = claimant.unwrap_or_else(|| ctx.user().to_owned());
    check_claimant(ctx, &id, &claimant)?;
    ctx.execute("DELETE FROM claims WHERE task = ?", params![id])?;
    Ok(())
}

/// How many tasks a list has room for, if that is bounded. The list must exist.
fn capacity(ctx: &mut Ctx, list: &str) -> Result<Option<i64>, Error> {
    let found = ctx.query_optional::<Option<i64>>(
        "SELECT capacity FROM lists LEFT JOIN capacities ON list = id WHERE id = ?",
        params![list],
    )?;
    found.ok_or_else(|| Error::new(format!("there is no list {list}")))
}

fn check_list(ctx: &mut Ctx, list: &str) -> Result<(), Error> {
    capacity(ctx, list).map(drop)
}

fn count_tasks(ctx: &mut Ctx, list: &str) -> Result<i64, Error> {
    ctx.query_one("SELECT count(*) FROM tasks WHERE list = ?", params![list])
}

fn counted(tasks: i64) -> String {
    if tasks == 1 { "1 task".into() } else { format!("{tasks} tasks") }
}

fn check_title(title: &str) -> Result<(), Error> {
    ensure!(!title.trim().is_empty(), "a task needs a title");
    Ok(())
}

/// Nobody but `claimant` has claimed the task.
fn check_claimant(ctx: &mut Ctx, task: &str, claimant: &str) -> Result<(), Error> {
    let other: Option<String> = ctx.query_optional(
        "SELECT name FROM claims WHERE task = ? AND claimant <> ?",
        params![task, claimant],
    )?;
    match other {
        Some(name) => bail!("{name} has claimed it"),
        None => Ok(()),
    }
}

fn check_task(ctx: &mut Ctx, id: &str) -> Result<(), Error> {
    let known: bool = ctx.query_one("SELECT EXISTS (SELECT 1 FROM tasks WHERE id = ?)", params![id])?;
    check_changed(ctx, u64::from(known), id)
}

/// A statement changed the task, so it was there.
fn check_changed(ctx: &mut Ctx, changed: u64, id: &str) -> Result<(), Error> {
    if changed == 1 {
        return Ok(());
    }
    let deleted: bool =
        ctx.query_one("SELECT EXISTS (SELECT 1 FROM deleted_tasks WHERE id = ?)", params![id])?;
    ensure!(!deleted, "the task was deleted");
    bail!("there is no task {id}")
}
