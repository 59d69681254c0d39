//! The reducers as an author tests them: natively, without wasm or a server.

use reducers::Failure;
use reducers::params;
use reducers::testkit::{TestDb, args};

use crate::MODULE;

/// A list `l` with tasks `a`, `b` and `c`.
fn db() -> TestDb {
    let mut db = TestDb::new(&MODULE);
    db.call("create_list", args! { id: "l", name: "Home" }).unwrap();
    for (id, title) in [("a", "Apples"), ("b", "Bread"), ("c", "Cheese")] {
        db.call("add_task", args! { id: id, list: "l", title: title }).unwrap();
    }
    db
}

/// Titles in their order, ticked ones with an x.
fn shown(db: &TestDb) -> Vec<String> {
    db.query(
        "SELECT iif(done, 'x ', '') || title FROM tasks WHERE list = 'l' ORDER BY position, id",
        params![],
    )
}

fn refusal(outcome: Result<(), Failure>) -> String {
    match outcome {
        Err(Failure::Refused { message }) => message,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

#[test]
fn tasks_are_added_below_the_last() {
    let mut db = db();
    assert_eq!(shown(&db), ["Apples", "Bread", "Cheese"]);
    assert_eq!(db.query::<f64>("SELECT position FROM tasks ORDER BY id", params![]), [1.0, 2.0, 3.0]);
    // Also where the last one was moved there by hand; other lists do not count.
    db.call("move_task", args! { id: "a", position: 7.5 }).unwrap();
    db.call("create_list", args! { id: "m", name: "Work" }).unwrap();
    db.call("add_task", args! { id: "w", list: "m", title: "Write" }).unwrap();
    db.call("add_task", args! { id: "d", list: "l", title: "Dates" }).unwrap();
    assert_eq!(shown(&db), ["Bread", "Cheese", "Apples", "Dates"]);
    assert_eq!(
        db.query::<f64>("SELECT position FROM tasks WHERE id IN ('d', 'w') ORDER BY id", params![]),
        [8.0, 1.0]
    );
}

#[test]
fn tasks_change() {
    let mut db = db();
    db.call("set_done", args! { id: "a", done: true }).unwrap();
    db.call("rename_task", args! { id: "b", title: "Brown bread" }).unwrap();
    db.call("move_task", args! { id: "c", position: 1.5 }).unwrap();
    assert_eq!(shown(&db), ["x Apples", "Cheese", "Brown bread"]);
    db.call("set_done", args! { id: "a", done: false }).unwrap();
    db.call("delete_task", args! { id: "b" }).unwrap();
    assert_eq!(shown(&db), ["Apples", "Cheese"]);
}

#[test]
fn blank_names_and_titles_are_refused() {
    let mut db = db();
    let before = db.dump();
    for blank in ["", " ", "\t\n", "\u{a0}"] {
        assert_eq!(refusal(db.call("create_list", args! { id: "n", name: blank })), "a list needs a name");
        assert_eq!(
            refusal(db.call("add_task", args! { id: "n", list: "l", title: blank })),
            "a task needs a title"
        );
        assert_eq!(refusal(db.call("rename_task", args! { id: "a", title: blank })), "a task needs a title");
    }
    assert_eq!(refusal(db.call("create_list", args! { id: "", name: "x" })), "a list needs an id");
    assert_eq!(refusal(db.call("add_task", args! { id: "", list: "l", title: "x" })), "a task needs an id");
    assert_eq!(db.dump(), before);
}

#[test]
fn ids_are_used_once() {
    let mut db = db();
    assert_eq!(refusal(db.call("create_list", args! { id: "l", name: "x" })), "there is a list l already");
    assert_eq!(
        refusal(db.call("add_task", args! { id: "a", list: "l", title: "x" })),
        "there is a task a already"
    );
}

#[test]
fn a_task_needs_a_list_that_exists() {
    let mut db = db();
    assert_eq!(
        refusal(db.call("add_task", args! { id: "n", list: "%s", title: "x" })),
        "there is no list %s"
    );
}

/// What somebody else deleted cannot be changed, but it can be deleted again.
#[test]
fn absent_tasks_are_refused_except_to_delete() {
    let mut db = db();
    db.call("delete_task", args! { id: "a" }).unwrap();
    let before = db.dump();
    assert_eq!(refusal(db.call("set_done", args! { id: "a", done: true })), "there is no task a");
    assert_eq!(refusal(db.call("rename_task", args! { id: "a", title: "x" })), "there is no task a");
    assert_eq!(refusal(db.call("move_task", args! { id: "a", position: 1 })), "there is no task a");
    db.call("delete_task", args! { id: "a" }).unwrap();
    assert_eq!(db.dump(), before);
}

#[test]
fn positions_are_finite() {
    let mut db = db();
    let outcome = db.call("move_task", args! { id: "a", position: f64::INFINITY });
    assert_eq!(refusal(outcome), "a position is a finite number");
}
