use super::*;

const LIMITS: RowLimits = RowLimits { rows_max: 100, bytes_max: 10_000 };

fn guarded() -> Guarded {
    let connection = Connection::open_in_memory().unwrap();
    connection
        .execute_batch("create table t(id integer primary key, v); insert into t values(1, 'a');")
        .unwrap();
    Guarded::new(connection).unwrap()
}

#[test]
fn each_mode_allows_what_its_table_says() {
    let guarded = guarded();
    let allowed = |mode, sql: &str| {
        guarded.within(mode, 1 << 20, |g| g.execute(sql, &[]).is_ok() || g.query(sql, &[], LIMITS).is_ok())
    };
    let cases: [(&str, [bool; 3]); 18] = [
        // SQL, in Migration, Reducer, Query
        ("select * from t", [true, true, true]),
        (
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < 9) select max(i) from n",
            [true, true, true],
        ),
        ("update t set v = 'b'", [true, true, false]),
        ("create table u1(x)", [true, false, false]),
        ("create temp table tt(x)", [false, false, false]),
        ("drop table if exists u1", [true, false, false]),
        ("begin", [false, false, false]),
        ("savepoint s", [false, false, false]),
        ("rollback", [false, false, false]),
        ("pragma user_version = 5", [false, false, false]),
        ("select * from pragma_table_info('t')", [false, false, false]),
        ("attach ':memory:' as other", [false, false, false]),
        ("vacuum", [false, false, false]),
        ("select load_extension('x')", [false, false, false]),
        ("select changes(), total_changes()", [false, false, false]),
        ("select sqlite_version()", [false, false, false]),
        ("select 1; select 2", [false, false, false]),
        ("select 1\0", [false, false, false]),
    ];
    for (sql, [migration, reducer, query]) in cases {
        assert_eq!(allowed(Mode::Query, sql), query, "query: {sql}");
        assert_eq!(allowed(Mode::Reducer, sql), reducer, "reducer: {sql}");
        assert_eq!(allowed(Mode::Migration, sql), migration, "migration: {sql}");
    }
}

#[test]
fn what_a_migration_prepared_a_reducer_cannot_use() {
    let guarded = guarded();
    let sql = "create table if not exists u(x)";
    guarded.within(Mode::Migration, 1 << 20, |g| g.execute(sql, &[])).unwrap();
    guarded.within(Mode::Reducer, 1 << 20, |g| g.execute(sql, &[])).unwrap_err();
}

#[test]
fn random_is_the_mutations_on_every_run() {
    let guarded = guarded();
    let sql = "select random(), hex(randomblob(10)), abs(random()) % 10";
    let run = |seed| {
        let _scope = scope::Scope::enter(0, seed);
        guarded.within(Mode::Reducer, 1 << 20, |g| g.query(sql, &[], LIMITS)).unwrap()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
    assert!(guarded.within(Mode::Reducer, 1 << 20, |g| g.query(sql, &[], LIMITS)).is_err());
    let _scope = scope::Scope::enter(0, 1);
    assert!(guarded.within(Mode::Query, 1 << 20, |g| g.query("select random()", &[], LIMITS)).is_err());
}

#[test]
fn a_statement_that_never_ends_is_interrupted_and_the_next_one_runs() {
    let guarded = guarded();
    let endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n";
    let error = guarded.within(Mode::Query, 100_000, |g| g.query(endless, &[], LIMITS)).unwrap_err();
    assert_eq!(error.code, rusqlite::ffi::SQLITE_INTERRUPT);
    guarded.within(Mode::Query, 100_000, |g| g.query("select 1", &[], LIMITS)).unwrap();
}

/// `changes()` keeps the count of an earlier statement when a table is made.
#[test]
fn a_statement_that_changes_no_row_answers_0() {
    let guarded = guarded();
    assert_eq!(guarded.within(Mode::Reducer, 1 << 20, |g| g.execute("update t set v = 1", &[])), Ok(1));
    assert_eq!(guarded.within(Mode::Migration, 1 << 20, |g| g.execute("create table n(x)", &[])), Ok(0));
}

#[test]
fn answers_are_bounded_and_parameters_counted() {
    let guarded = guarded();
    let many =
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 101) select i from n";
    let ask = |sql: &str, params: serde_json::Value| {
        let params: Params = serde_json::from_value(params).unwrap();
        guarded.within(Mode::Query, 1 << 30, |g| g.ask(sql, &params, LIMITS)).map_err(|e| e.message)
    };
    let none = serde_json::json!([]);
    assert!(ask(many, none.clone()).unwrap_err().contains("more than 100 rows"));
    assert!(ask("select zeroblob(20000)", none.clone()).unwrap_err().contains("bytes"));
    assert!(ask("select ?1", none.clone()).unwrap_err().contains("1 parameters"));
    assert!(ask("update t set v = 1", none.clone()).is_err());
    assert!(ask("", none).unwrap_err().contains("no statement"));
    let rows = ask("select :a + @b", serde_json::json!({"a": 1, "b": 2})).unwrap();
    assert_eq!(rows.rows, [[Value::Integer(3)]]);
    assert!(ask("select :a", serde_json::json!({"a": 1, "%s": 2})).unwrap_err().contains("`%s`"));
}
