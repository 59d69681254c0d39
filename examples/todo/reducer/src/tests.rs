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
fn deleted_tasks_are_refused_except_to_delete() {
    let mut db = db();
    db.call("delete_task", args! { id: "a" }).unwrap();
    db.call("delete_task", args! { id: "never" }).unwrap();
    let before = db.dump();
    for (id, reason) in [("a", "the task was deleted"), ("never", "there is no task never")] {
        for (reducer, args) in [
            ("set_done", args! { id: id, done: true }),
            ("rename_task", args! { id: id, title: "x" }),
            ("move_task", args! { id: id, position: 1 }),
            ("claim_task", args! { id: id, name: "Ada" }),
            ("add_comment", args! { id: "k", task: id, author: "Ada", text: "x" }),
        ] {
            assert_eq!(refusal(db.call(reducer, args)), reason, "{reducer}");
        }
        db.call("delete_task", args! { id: id }).unwrap();
        db.call("release_task", args! { id: id }).unwrap();
    }
    db.call("delete_comment", args! { id: "k" }).unwrap();
    assert_eq!(db.dump(), before);
    // An id may be used again, and then the task is there.
    db.call("add_task", args! { id: "a", list: "l", title: "Apples, again" }).unwrap();
    db.call("set_done", args! { id: "a", done: true }).unwrap();
}

#[test]
fn positions_are_finite() {
    let mut db = db();
    let outcome = db.call("move_task", args! { id: "a", position: f64::INFINITY });
    assert_eq!(refusal(outcome), "a position is a finite number");
}

fn comments(db: &TestDb) -> Vec<(String, i64, String, String, String)> {
    db.query("SELECT task, number, author_id, author, text FROM comments ORDER BY task, number", params![])
}

#[test]
fn comments_are_numbered_and_go_with_their_task() {
    let mut db = db();
    for (id, task, text) in [("1", "a", "Red ones?"), ("2", "b", "Rye"), ("3", "a", "Green")] {
        db.call("add_comment", args! { id: id, task: task, author: "Ada", text: text }).unwrap();
    }
    let row = |task: &str, number, text: &str| {
        (task.to_owned(), number, "tester".to_owned(), "Ada".to_owned(), text.to_owned())
    };
    assert_eq!(comments(&db), [row("a", 1, "Red ones?"), row("a", 2, "Green"), row("b", 1, "Rye")]);
    let again = db.call("add_comment", args! { id: "1", task: "b", author: "Ada", text: "x" });
    assert_eq!(refusal(again), "there is a comment 1 already");
    for (id, author, text, reason) in [
        ("", "Ada", "x", "a comment needs an id"),
        ("4", " ", "x", "a comment needs an author"),
        ("4", "Ada", "\n", "a comment needs a text"),
    ] {
        let outcome = db.call("add_comment", args! { id: id, task: "a", author: author, text: text });
        assert_eq!(refusal(outcome), reason);
    }
    db.call("delete_comment", args! { id: "1" }).unwrap();
    db.call("add_comment", args! { id: "5", task: "a", author: "Ada", text: "Both" }).unwrap();
    assert_eq!(comments(&db), [row("a", 2, "Green"), row("a", 3, "Both"), row("b", 1, "Rye")]);
    db.call("delete_task", args! { id: "a" }).unwrap();
    assert_eq!(comments(&db), [row("b", 1, "Rye")]);
}

/// Who deletes a task that somebody has commented on meanwhile is told, and nothing is deleted.
#[test]
fn a_comment_nobody_saw_keeps_its_task() {
    let mut db = db();
    for (id, seen, reason) in [
        ("1", 0, "the task has a comment that you have not seen"),
        ("2", 0, "the task has 2 comments that you have not seen"),
        ("3", i64::MIN, "the task has 9223372036854775807 comments that you have not seen"),
    ] {
        db.call("add_comment", args! { id: id, task: "a", author: "Ada", text: "wait" }).unwrap();
        let before = db.dump();
        assert_eq!(refusal(db.call("delete_task", args! { id: "a", comments_seen: seen })), reason);
        assert_eq!(db.dump(), before);
    }
    // One that was deleted meanwhile is no reason.
    db.call("delete_comment", args! { id: "1" }).unwrap();
    db.call("delete_task", args! { id: "a", comments_seen: 3 }).unwrap();
    assert_eq!((shown(&db), comments(&db)), (vec!["Bread".to_owned(), "Cheese".to_owned()], vec![]));
}

#[test]
fn a_list_with_a_capacity_is_never_fuller() {
    let mut db = db();
    let set = |db: &mut TestDb, list: &str, capacity: Option<i64>| {
        db.call("set_capacity", args! { list: list, capacity: capacity })
    };
    assert_eq!(refusal(set(&mut db, "m", Some(3))), "there is no list m");
    assert_eq!(refusal(set(&mut db, "l", Some(0))), "a list has room for at least 1 task");
    assert_eq!(refusal(set(&mut db, "l", Some(2))), "the list has 3 tasks already");
    set(&mut db, "l", Some(4)).unwrap();
    set(&mut db, "l", Some(3)).unwrap();
    let add = |db: &mut TestDb, id: &str| db.call("add_task", args! { id: id, list: "l", title: "x" });
    let before = db.dump();
    assert_eq!(refusal(add(&mut db, "d")), "the list is full: 3 of 3");
    assert_eq!(db.dump(), before);
    // A ticked task takes its place; a deleted one does not. Other lists do not count.
    db.call("set_done", args! { id: "a", done: true }).unwrap();
    assert_eq!(refusal(add(&mut db, "d")), "the list is full: 3 of 3");
    db.call("delete_task", args! { id: "a" }).unwrap();
    add(&mut db, "d").unwrap();
    db.call("create_list", args! { id: "m", name: "Work" }).unwrap();
    db.call("add_task", args! { id: "w", list: "m", title: "x" }).unwrap();
    set(&mut db, "l", None).unwrap();
    add(&mut db, "e").unwrap();
}

#[test]
fn a_list_is_deleted_when_it_is_empty() {
    let mut db = db();
    db.call("set_capacity", args! { list: "l", capacity: 3 }).unwrap();
    assert_eq!(refusal(db.call("delete_list", args! { id: "l" })), "the list has 3 tasks");
    for id in ["a", "b"] {
        db.call("delete_task", args! { id: id }).unwrap();
    }
    assert_eq!(refusal(db.call("delete_list", args! { id: "l" })), "the list has 1 task");
    db.call("delete_task", args! { id: "c" }).unwrap();
    db.call("delete_list", args! { id: "l" }).unwrap();
    db.call("delete_list", args! { id: "l" }).unwrap();
    let left = "SELECT (SELECT count(*) FROM lists) + (SELECT count(*) FROM capacities)";
    assert_eq!(db.query::<i64>(left, params![]), [0]);
}

#[test]
fn a_task_is_claimed_by_one_at_a_time() {
    let mut db = db();
    let claims = |db: &TestDb| {
        db.query::<(String, String, String)>(
            "SELECT task, claimant, name FROM claims ORDER BY task",
            params![],
        )
    };
    let claim = |db: &mut TestDb, who: &str, name: &str| {
        db.user(who).call("claim_task", args! { id: "a", name: name })
    };
    assert_eq!(refusal(claim(&mut db, "1", " ")), "a claim needs a name");
    claim(&mut db, "1", "Ada").unwrap();
    assert_eq!(refusal(claim(&mut db, "2", "Bob")), "Ada has claimed it");
    // Two people may want the same name; they are two.
    assert_eq!(refusal(claim(&mut db, "2", "Ada")), "Ada has claimed it");
    claim(&mut db, "1", "Ada L.").unwrap();
    assert_eq!(claims(&db), [("a".into(), "1".into(), "Ada L.".into())]);
    // A release that was made before the claim was lost must not free it.
    assert_eq!(refusal(db.user("2").call("release_task", args! { id: "a" })), "Ada L. has claimed it");
    let stale = db.call("release_task", args! { id: "a", claimant: "3" });
    assert_eq!(refusal(stale), "Ada L. has claimed it");
    // One whose owner is gone is freed by name.
    db.call("release_task", args! { id: "a", claimant: "1" }).unwrap();
    db.call("release_task", args! { id: "a" }).unwrap();
    claim(&mut db, "2", "Bob").unwrap();
    assert_eq!(claims(&db), [("a".into(), "2".into(), "Bob".into())]);
    db.call("delete_task", args! { id: "a" }).unwrap();
    assert_eq!(claims(&db), []);
}
