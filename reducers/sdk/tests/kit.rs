//! The SDK and its test kit, on a module that tries everything.
#![forbid(unsafe_code)]

use reducers::prelude::*;
use reducers::testkit::{TestDb, args};
use reducers::{Failure, Native, Value};

mod shapes {
    //! Reducers may live in modules of their own.
    use reducers::prelude::*;

    /// Takes one of each.
    ///
    /// This paragraph is not part of the description.
    #[reducer]
    #[allow(clippy::too_many_arguments)]
    pub fn every_type(
        ctx: &mut Ctx,
        text: String,
        big: i64,
        small: i32,
        natural: u32,
        real: f64,
        flag: bool,
        bytes: Vec<u8>,
        json: Json,
        maybe: Option<String>,
        r#type: Option<i64>,
    ) -> Result<(), Error> {
        ctx.execute(
            "INSERT INTO seen VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![text, big, small, natural, real, flag, bytes, json, maybe, r#type],
        )?;
        Ok(())
    }
}

reducers::module! {
    reducers: [shapes::every_type, run_sql, run_two, draw, sql_draws, panics, log_twice, read_back],
    migrations: [create, add_children],
}

#[migration(1)]
fn create(ctx: &mut Ctx) -> Result<(), Error> {
    ctx.execute(
        "CREATE TABLE seen(text, big, small, natural, real, flag, bytes, json, maybe, type)",
        params![],
    )?;
    ctx.execute("CREATE TABLE kv(k TEXT PRIMARY KEY, v)", params![])?;
    Ok(())
}

#[migration(2)]
fn add_children(ctx: &mut Ctx) -> Result<(), Error> {
    ctx.execute("CREATE TABLE child(parent REFERENCES kv(k) DEFERRABLE INITIALLY DEFERRED)", params![])?;
    Ok(())
}

#[reducer]
fn run_sql(ctx: &mut Ctx, sql: String) -> Result<(), Error> {
    ctx.execute(&sql, params![])?;
    Ok(())
}

/// Goes on after the first statement failed.
#[reducer]
fn run_two(ctx: &mut Ctx, first: String, second: String) -> Result<(), Error> {
    let error = ctx.execute(&first, params![]).err().ok_or("the first should fail")?;
    log!(ctx, "{:?} {error}", error.sql_code());
    ctx.execute(&second, params![])?;
    Ok(())
}

#[reducer]
fn draw(ctx: &mut Ctx) -> Result<(), Error> {
    let (number, below, unit, id) = (ctx.random(), ctx.random_below(10), ctx.random_unit(), ctx.random_id());
    ensure!(below < 10 && (0.0..1.0).contains(&unit), "out of range");
    let text = ctx.now_text();
    ctx.execute("INSERT INTO kv VALUES (?, ?)", params![id, number as i64])?;
    ctx.execute("INSERT INTO kv VALUES ('now', ?)", params![text])?;
    Ok(())
}

#[reducer]
fn sql_draws(ctx: &mut Ctx, key: String) -> Result<(), Error> {
    let sql = "INSERT INTO kv VALUES (?, random() || hex(randomblob(9)) || datetime('now') || datetime()
        || strftime('%s', 'NOW', '+1 day') || CURRENT_TIMESTAMP || date('2001-02-03', '+1 day'))";
    ctx.execute(sql, params![key])?;
    Ok(())
}

#[reducer]
fn panics(ctx: &mut Ctx, with: String) -> Result<(), Error> {
    ctx.execute("INSERT INTO kv VALUES ('left', 1)", params![])?;
    panic!("the author's mistake: {with}");
}

#[reducer]
fn log_twice(ctx: &mut Ctx) -> Result<(), Error> {
    log!(ctx, "one {}", 1);
    ctx.log("two %s");
    Ok(())
}

#[derive(FromRow, Debug, PartialEq)]
struct Pair {
    v: Option<i64>,
    k: String,
}

#[reducer]
fn read_back(ctx: &mut Ctx) -> Result<(), Error> {
    ctx.execute("INSERT INTO kv VALUES ('a', 1), ('b', NULL)", params![])?;
    let pairs = ctx.query::<Pair>("SELECT k, v FROM kv ORDER BY k", params![])?;
    ensure!(pairs.len() == 2 && pairs[1] == Pair { k: "b".into(), v: None }, "{pairs:?}");
    let tuples: Vec<(String, Option<i64>)> = ctx.query("SELECT k, v FROM kv ORDER BY k", params![])?;
    ensure!(tuples == [("a".into(), Some(1)), ("b".into(), None)], "{tuples:?}");
    let none = ctx.query_optional::<i64>("SELECT v FROM kv WHERE k = ?", params!["c"])?;
    ensure!(none.is_none(), "{none:?}");
    for (sql, message) in [
        ("SELECT v FROM kv WHERE k = 'b'", "column `v`: expected an integer, found null"),
        ("SELECT k FROM kv WHERE k = 'a'", "column `k`: expected an integer, found text"),
        ("SELECT 1, 2", "the query answers 2 columns where 1 are read"),
        ("SELECT 1 WHERE 0", "no row where one was expected: SELECT 1 WHERE 0"),
        ("SELECT 1 UNION SELECT 2", "2 rows where one was expected: SELECT 1 UNION SELECT 2"),
        ("SELECT 'unfinished", "unrecognized token: \"'unfinished\""),
    ] {
        let found = ctx.query_one::<i64>(sql, params![]).err().ok_or_else(|| format!("{sql} passed"))?;
        ensure!(found.message().starts_with(message), "{sql}: {found}");
    }
    let missing = ctx.query::<Pair>("SELECT k FROM kv", params![]).err().ok_or("v is missing")?;
    ensure!(missing.message() == "the result has no column `v`, only k", "{missing}");
    Ok(())
}

fn db() -> TestDb {
    TestDb::new(&MODULE)
}

#[test]
fn the_description_is_what_the_source_says() {
    let described = MODULE.description();
    assert_eq!(described.migrations, [1, 2]);
    let every = described.reducer("every_type").unwrap();
    assert_eq!(every.doc, "Takes one of each.");
    let params: Vec<String> = every
        .params
        .iter()
        .map(|p| format!("{} {:?}{}", p.name, p.ty, if p.optional { "?" } else { "" }))
        .collect();
    assert_eq!(
        params.join(", "),
        "text Text, big Integer, small Integer, natural Integer, real Real, flag Boolean, bytes Blob, json Json, \
         maybe Text?, type Integer?"
    );
}

#[test]
fn every_type_arrives() {
    let mut db = db();
    let bytes: &[u8] = &[0, 255];
    db.call(
        "every_type",
        args! {
            text: "é\0%s", big: i64::MIN, small: -5, natural: u32::MAX, real: 2, flag: true, bytes: bytes,
            json: "[1]", type: 7i64,
        },
    )
    .unwrap();
    let row = db.rows("SELECT * FROM seen", params![]).rows.remove(0);
    assert_eq!(
        row,
        [
            Value::Text("é\0%s".into()),
            Value::Integer(i64::MIN),
            Value::Integer(-5),
            Value::Integer(u32::MAX.into()),
            Value::Real(2.0),
            Value::Integer(1),
            Value::Blob(vec![0, 255]),
            Value::Text("[1]".into()),
            Value::Null,
            Value::Integer(7),
        ]
    );
}

#[test]
fn arguments_of_the_wrong_kind_are_refused_by_name() {
    let mut db = db();
    let bytes: &[u8] = &[];
    for (small, natural, flag, message) in [
        (
            1i64 << 31,
            0,
            Value::Integer(0),
            "argument `small`: expected an integer from -2147483648 to 2147483647, found an integer",
        ),
        (
            0,
            -1,
            Value::Integer(0),
            "argument `natural`: expected an integer from 0 to 4294967295, found an integer",
        ),
        (0, 0, Value::Text("yes".into()), "argument `flag`: expected a boolean (0 or 1), found text"),
    ] {
        let args = args! { text: "", big: 0, small: small, natural: natural, real: 0.5, flag: flag, bytes: bytes, json: "" };
        assert_eq!(db.call("every_type", args), Err(Failure::Refused { message: message.into() }));
    }
    let few = reducers_abi::Entry::Reducer { name: "run_sql", args: &[] };
    assert_eq!(db.run(few).unwrap_err().to_string(), "run_sql takes 1 arguments, and 0 were given");
    assert_eq!(db.call("%s", args! {}).unwrap_err().code(), "unknown_reducer");
    assert_eq!(db.run(reducers_abi::Entry::Migration { version: 3 }).unwrap_err().code(), "unknown_reducer");
}

/// What the real authoriser refuses is refused here, and the run may go on after it.
#[test]
fn statements_that_reach_too_far_are_refused() {
    for sql in [
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT x",
        "RELEASE mutation",
        "ROLLBACK TO mutation",
        "ATTACH ':memory:' AS other",
        "DETACH main",
        "PRAGMA user_version = 3",
        "PRAGMA table_info(kv)",
        "CREATE TEMP TABLE t(x)",
        "SELECT load_extension('x')",
        "VACUUM INTO '/tmp/never'",
        "INSERT INTO kv VALUES ('x', 1); DELETE FROM kv",
        "SELECT 1",
        "INSERT INTO kv VALUES ('x', datetime('now', 'localtime'))",
    ] {
        let mut db = db();
        let before = db.dump();
        let outcome = db.call("run_sql", args! { sql: sql });
        assert!(matches!(outcome, Err(Failure::Refused { .. })), "{sql}: {outcome:?}");
        assert_eq!(db.dump(), before, "{sql}");
        db.call("run_two", args! { first: sql, second: "INSERT INTO kv VALUES ('after', 1)" })
            .unwrap_or_else(|failure| panic!("{sql}: {failure}"));
        assert_eq!(db.query::<String>("SELECT k FROM kv", params![]), ["after"], "{sql}");
    }
}

#[test]
fn a_failed_statement_has_sqlites_code() {
    let mut db = db();
    let insert = "INSERT INTO kv VALUES ('a', 1)";
    db.call("run_sql", args! { sql: insert }).unwrap();
    db.call("run_two", args! { first: insert, second: "DELETE FROM kv" }).unwrap();
    assert_eq!(db.take_log(), ["Some(1555) UNIQUE constraint failed: kv.k"]);
    assert_eq!(db.take_log(), Vec::<String>::new());
}

/// A statement that ends the transaction cannot be undone by the savepoint; nothing runs after it.
#[test]
fn a_statement_that_ends_the_transaction_ends_the_mutation() {
    let mut db = db();
    db.call("run_sql", args! { sql: "INSERT INTO kv VALUES ('a', 1)" }).unwrap();
    let first = "INSERT OR ROLLBACK INTO kv VALUES ('a', 2)";
    let outcome = db.call("run_two", args! { first: first, second: "INSERT INTO kv VALUES ('b', 1)" });
    assert!(outcome.unwrap_err().to_string().contains("ended the transaction"));
    assert_eq!(db.query::<String>("SELECT k FROM kv", params![]), ["a"]);
    db.call("run_sql", args! { sql: "INSERT INTO kv VALUES ('c', 1)" }).unwrap();
}

#[test]
fn deferred_foreign_keys_are_checked_at_the_end() {
    let mut db = db();
    let outcome = db.call("run_sql", args! { sql: "INSERT INTO child VALUES ('nobody')" });
    assert!(outcome.unwrap_err().to_string().contains("FOREIGN KEY"));
    assert_eq!(db.query::<i64>("SELECT count(*) FROM child", params![]), [0]);
}

#[test]
fn a_panic_is_a_trap_and_leaves_nothing() {
    let mut db = db();
    let outcome = db.call("panics", args! { with: "%s" });
    assert_eq!(outcome, Err(Failure::Trap { message: "panicked: the author's mistake: %s".into() }));
    assert_eq!(db.query::<i64>("SELECT count(*) FROM kv", params![]), [0]);
}

/// Clock and numbers come from the mutation, those of SQL too.
#[test]
fn one_mutation_always_draws_the_same() {
    let run = |seed: u64, now: i64| {
        let mut db = db();
        db.seed(seed).now(now).call("draw", args! {}).unwrap();
        db.seed(seed).now(now).call("sql_draws", args! { key: "sql" }).unwrap();
        db.dump()
    };
    let first = run(7, 1_795_318_513_123);
    assert_eq!(first, run(7, 1_795_318_513_123));
    assert_ne!(first, run(8, 1_795_318_513_123));
    assert!(first.contains("2026-11-22T03:35:13.123Z"), "{first}");
    assert!(
        first.contains("2026-11-22 03:35:132026-11-22 03:35:1317954049132026-11-22 03:35:132001-02-04"),
        "{first}"
    );
    assert!(first.contains(&format!("{}", reducers::random::Random::new(7).next_u64() as i64)), "{first}");
}

/// Two mutations in a row draw different numbers unless the test says otherwise.
#[test]
fn seeds_move_on() {
    let mut db = db();
    db.call("sql_draws", args! { key: "a" }).unwrap();
    db.call("sql_draws", args! { key: "b" }).unwrap();
    assert_eq!(db.query::<i64>("SELECT count(DISTINCT v) FROM kv", params![]), [2]);
}

#[test]
fn logs_are_kept() {
    let mut db = db();
    db.call("log_twice", args! {}).unwrap();
    assert_eq!(db.take_log(), ["one 1", "two %s"]);
}

#[test]
fn rows_become_what_is_asked_for() {
    db().call("read_back", args! {}).unwrap();
}

#[test]
fn migrations_run_one_by_one() {
    let mut db = TestDb::empty(std::sync::Arc::new(Native::new(&MODULE)));
    db.migrate(1).execute_batch("INSERT INTO kv VALUES ('old', 1)");
    assert!(!db.dump().contains("child"));
    db.migrate(2);
    assert!(db.dump().contains("child") && db.dump().contains("old"));
}

#[test]
#[should_panic(expected = "run_sql has no parameter `qsl`")]
fn a_mistyped_argument_fails_the_test() {
    let _never = db().call("run_sql", args! { qsl: "" });
}

#[test]
#[should_panic(expected = "run_sql needs the argument `sql`")]
fn a_missing_argument_fails_the_test() {
    let _never = db().call("run_sql", args! {});
}
