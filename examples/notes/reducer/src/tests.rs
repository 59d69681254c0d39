//! The reducers as an author tests them.

use reducers::params;
use reducers::testkit::{TestDb, args};

use crate::{BODY_BYTES_MAX, MODULE};

#[test]
fn the_last_edit_to_be_applied_wins_whatever_the_clocks_say() {
    let mut db = TestDb::new(&MODULE);
    db.user("ada").now(1_000).call("create_note", args! { id: "n", body: "one" }).unwrap();
    db.user("bob").now(3_000).call("edit_note", args! { id: "n", body: "two" }).unwrap();
    db.user("cyd").now(2_000).call("edit_note", args! { id: "n", body: "three" }).unwrap();
    let notes: Vec<(String, String, i64, i64)> =
        db.query("SELECT body, author, created_at, updated_at FROM notes", params![]);
    assert_eq!(notes, [("three".into(), "ada".into(), 1_000, 2_000)]);
}

#[test]
fn a_note_without_an_id_gets_one() {
    let mut db = TestDb::new(&MODULE);
    db.call("create_note", args! { body: "a" }).unwrap();
    db.call("create_note", args! { body: "b" }).unwrap();
    let ids: Vec<String> = db.query("SELECT id FROM notes", params![]);
    assert_eq!(ids.len(), 2);
    assert!(ids.iter().all(|id| id.len() == 32) && ids[0] != ids[1], "{ids:?}");
}

#[test]
fn what_cannot_be_is_refused() {
    let mut db = TestDb::new(&MODULE);
    db.call("create_note", args! { id: "n", body: "" }).unwrap();
    for (reducer, id, body, message) in [
        ("create_note", "n", String::new(), "there is a note n already"),
        ("create_note", "", String::new(), "a note's id cannot be empty"),
        ("edit_note", "m", String::new(), "there is no note m"),
        (
            "edit_note",
            "n",
            "x".repeat(BODY_BYTES_MAX + 1),
            "a note has at most 65536 bytes, this one has 65537",
        ),
    ] {
        let refused = db.call(reducer, args! { id: id, body: body }).unwrap_err();
        assert_eq!((refused.code(), refused.to_string().as_str()), ("refused", message));
    }
    db.call("edit_note", args! { id: "n", body: "x".repeat(BODY_BYTES_MAX) }).unwrap();
    db.call("delete_note", args! { id: "n" }).unwrap();
    db.call("delete_note", args! { id: "n" }).unwrap();
    assert_eq!(db.query::<i64>("SELECT count(*) FROM notes", params![]), [0]);
}
