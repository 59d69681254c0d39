//! The loadable extension in the hosts it is for: Debian's `sqlite3` shell and Debian's Python.
//!
//! What is checked against `docs/sqlite.md`: the table of tables, their arguments and columns.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value as Json, json};
use tests::places;
use tests::process::graft;

const DOC: &str = include_str!("../../docs/sqlite.md");

/// A folder with a store in it, and the shell to look at it with.
struct Shop {
    folder: tempfile::TempDir,
    sqlite3: PathBuf,
}

struct Said {
    out: String,
    err: String,
}

impl Shop {
    fn open() -> Option<Shop> {
        Some(Shop { folder: tempfile::tempdir().unwrap(), sqlite3: places::sqlite3()? })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn store(&self) -> String {
        format!("file://{}", self.path("store"))
    }

    /// `.open` of volume `name`, with more parameters.
    fn uri(&self, name: &str, more: &str) -> String {
        format!(".open 'file:{name}?vfs=graft&remote={}{more}'\n", self.store())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.sqlite3);
        command.arg("-batch").current_dir(self.folder.path());
        command.env_remove("GRAFT_REMOTE").env_remove("GRAFT_DATA");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn load(&self) -> String {
        format!(".load {}\n", places::sqlite_extension().display())
    }

    /// Runs a script in a shell of its own, each statement on a line: after an error the shell passes over
    /// the rest of the line.
    fn run(&self, script: &str) -> Said {
        run(self.command(), &format!("{}{}", self.load(), script.replace("; ", ";\n")))
    }

    /// Runs a script that must have nothing to complain of; the rows of JSON that it prints.
    #[track_caller]
    fn json(&self, script: &str) -> Vec<Json> {
        let said = self.run(&format!(".mode json\n{script}"));
        assert_eq!(said.err, "", "{script}\n{}", said.out);
        rows(&said.out)
    }
}

/// Each result's rows. The shell prints a list over several lines.
#[track_caller]
fn rows(out: &str) -> Vec<Json> {
    let parsed = serde_json::Deserializer::from_str(out).into_iter::<Json>();
    parsed.map(|value| value.unwrap_or_else(|error| panic!("{error}: {out}"))).collect()
}

fn run(mut command: Command, script: &str) -> Said {
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.code().is_some(), "it crashed: {:?}\n{script}", output.status);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { out: text(output.stdout), err: text(output.stderr) }
}

/// A shell that stays, and holds what it opened. Ended by a kill.
struct Holder(std::process::Child);

impl Holder {
    /// Runs `script` in a shell and waits until that is done.
    fn start(shop: &Shop, script: &str) -> Holder {
        use std::io::{BufRead as _, BufReader};
        let mut child = shop.command().spawn().unwrap();
        let script = format!("{}{script}\nselect 'ready';\n", shop.load());
        child.stdin.as_mut().unwrap().write_all(script.as_bytes()).unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "it ended before it was ready");
        }
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn the_documented_tables_are_there_with_the_documented_columns() {
    let Some(shop) = Shop::open() else { return };
    let mut documented = 0;
    let codes =
        |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    for line in DOC.lines().filter(|line| line.starts_with("| `graft_")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let [table, arguments, columns] = cells[..] else { panic!("{line}") };
        let table = codes(table).remove(0);
        let mut expected = codes(columns);
        expected.extend(codes(arguments));
        expected.push("schema".into());
        let sql = format!("select name from pragma_table_xinfo('{table}');");
        let found = shop.json(&sql);
        let found: Vec<&str> =
            found[0].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert_eq!(found, expected, "{table}");
        documented += 1;
    }
    let sql = "select name from pragma_module_list where name like 'graft%';";
    assert_eq!(shop.json(sql)[0].as_array().unwrap().len(), documented, "a table is not in docs/sqlite.md");
}

#[test]
fn a_volume_is_made_written_pushed_and_read_elsewhere() {
    let Some(shop) = Shop::open() else { return };
    let here = shop.uri("todo", &format!("&data={}", shop.path("data")));
    let made = shop.json(&format!(
        "{here}create table t(id integer primary key, v); insert into t values(1, '%s%n'), (2, 'two');
         select ahead, lsn from graft_status; select * from graft_push; select ahead, lsn from graft_status;
         pragma graft_status; pragma journal_mode = wal; pragma integrity_check;"
    ));
    assert_eq!(made[0], json!([{ "ahead": 2, "lsn": 0 }]));
    assert_eq!(made[1], json!([{ "lsn": 1, "pushed": 2 }]));
    assert_eq!(made[2], json!([{ "ahead": 0, "lsn": 1 }]));
    let text = made[3][0].as_object().unwrap().values().next().unwrap().as_str().unwrap();
    let status: Json = serde_json::from_str(text).unwrap();
    assert_eq!((&status["name"], &status["lsn"]), (&json!("todo"), &json!(1)));
    // SQLite names the column of such an answer by the answer.
    assert_eq!(made[4], json!([{ "delete": "delete" }]));
    assert_eq!(made[5], json!([{ "integrity_check": "ok" }]));

    // A read replica with no directory, in another process.
    let there = shop.uri("todo", "");
    let read = shop.json(&format!("{there}select * from t; select read_only, data from graft_info;"));
    assert_eq!(read[0], json!([{ "id": 1, "v": "%s%n" }, { "id": 2, "v": "two" }]));
    assert_eq!(read[1], json!([{ "read_only": 1, "data": null }]));
    let refused = shop.run(&format!("{there}insert into t values(3, 'x');"));
    assert!(refused.err.contains("readonly database"), "{}", refused.err);
    let names = std::fs::read_dir(shop.folder.path()).unwrap().count();
    assert_eq!(names, 2, "nothing but the store and the first one's directory");
    // `graft` reads the same.
    let asked =
        graft(["sql", "select count(*) as n from t", "--volume", "todo", "--store", &shop.store(), "--json"]);
    assert_eq!(asked.json()["rows"], json!([[2]]));

    // The settings in a file, and in the environment.
    let toml = format!("# here\nremote = \"{}\"\ndata = \"data\" # beside it\n", shop.store());
    std::fs::write(shop.path("graft.toml"), toml).unwrap();
    let read = shop
        .json(".open 'file:todo?vfs=graft'\nselect count(*) as n from t; select read_only from graft_info;");
    assert_eq!(read, [json!([{ "n": 2 }]), json!([{ "read_only": 0 }])]);
    std::fs::remove_file(shop.path("graft.toml")).unwrap();
    let mut command = shop.command();
    command.env("GRAFT_REMOTE", shop.store());
    let said = run(command, &format!("{}.open 'file:todo?vfs=graft'\nselect count(*) from t;", shop.load()));
    assert_eq!((said.out.trim(), said.err.as_str()), ("2", ""));
}

#[test]
fn two_replicas_pull_push_and_tell_what_stands_in_the_way() {
    let Some(shop) = Shop::open() else { return };
    let one = shop.uri("v", &format!("&data={}", shop.path("one")));
    let two = shop.uri("v", &format!("&data={}", shop.path("two")));
    // Written before its first pull.
    shop.json(&format!("{one}create table t(v); insert into t values(1); select * from graft_push;"));
    shop.json(&format!("{two}insert into t values(2); select * from graft_push;"));
    let found = shop.json(&format!("{one}select sum(v) as s from t; select lsn, behind from graft_fetch;"));
    assert_eq!(
        found,
        [json!([{ "s": 3 }]), json!([{ "lsn": 2, "behind": 0 }])],
        "opening moves to the newest"
    );
    // One holds a local commit when two pushes.
    shop.json(&format!("{one}insert into t values(10);"));
    shop.json(&format!("{two}select * from graft_pull; insert into t values(20); select * from graft_push;"));
    let said = shop.run(&format!("{one}select behind from graft_fetch; select * from graft_push; select * from graft_pull; insert into t values(11); select sum(v) from t;"));
    assert!(said.err.contains("another writer made lsn 3 first"), "{}", said.err);
    assert!(said.err.contains("stand in the way"), "{}", said.err);
    assert_eq!(said.out.trim(), "1\n24", "what is local is still there");
    // The way that it names, on a copy of the directory: nothing is lost.
    let way = format!(
        "--on-conflict branch --volume 'v' --store '{}/' --data '{}'",
        shop.store(),
        shop.path("one")
    );
    assert!(said.err.contains(&way), "{}", said.err);
    let copy = shop.path("copy");
    places::copy_folder(Path::new(&shop.path("one")), Path::new(&copy));
    let sql = ["sql", "SELECT 1", "--write", "--on-conflict", "branch", "--branch-name", "mine"];
    graft(sql.into_iter().chain(["--volume", "v", "--store", &shop.store(), "--data", &copy])).expect(0);
    let branch = shop.uri("mine", "");
    assert_eq!(shop.json(&format!("{branch}select sum(v) as s from t;")), [json!([{ "s": 24 }])]);
    let moved = shop
        .json(&format!("{one}select discarded, lsn from graft_pull('discard'); select sum(v) as s from t;"));
    assert_eq!(moved, [json!([{ "discarded": 2, "lsn": 3 }]), json!([{ "s": 23 }])]);
    // In the middle of a transaction: refused, and the transaction goes on.
    let said = shop.run(&format!(
        "{one}begin; insert into t values(5); select * from graft_pull; select pushed from graft_push; commit;
         insert into t values(6); select sum(v) from t; select pushed from graft_push;"
    ));
    assert!(said.err.contains("a transaction is writing"), "{}", said.err);
    assert_eq!(said.out.trim(), "0\n34\n2");
}

#[test]
fn the_past_another_volume_and_files() {
    let Some(shop) = Shop::open() else { return };
    let data = format!("&data={}", shop.path("data"));
    let v = shop.uri("v", &data);
    shop.json(&format!("{v}create table t(v); insert into t values(1); select * from graft_push; insert into t values(2); create table later(x); select * from graft_push;"));
    let w = shop.uri("w", &data);
    shop.json(&format!("{w}create table u(v); insert into u values('w'); select * from graft_push;"));
    let seen = shop.run(&format!(
        "{v}select count(*) from t; pragma graft_open_at = 1; select count(*) from t; select count(*) from later;
         insert into t values(9); pragma graft_open_at; select count(*) from later; select count(*) from t;
         pragma graft_switch = w; select v from u; pragma graft_switch = v; select count(*) from t;
         begin; select count(*) from t; pragma graft_open_at = 1; commit; pragma graft_open_at = 7; pragma graft_switch = 'no%s';"
    ));
    assert_eq!(seen.out.trim(), "2\nv at lsn 1\n1\nv\n0\n2\nw\nw\nv\n2\n2");
    for word in [
        "no such table: later",
        "readonly database",
        "a transaction is open",
        "lsn 7",
        "`no%s` cannot name a volume",
    ] {
        assert!(seen.err.contains(word), "{word}: {}", seen.err);
    }
    let past = shop.json(&format!("{}select count(*) as n from t;", shop.uri("v", "&at=1")));
    assert_eq!(past, [json!([{ "n": 1 }])]);
    // Out to a file and back in under another name.
    let file = shop.path("out %s.db");
    let moved = shop.json(&format!(
        "{v}select lsn, pages from graft_export('{file}', 1); select name, lsn from graft_import('{file}', 'copy');
         select name from graft_volumes order by name; select lsn from graft_log order by lsn desc limit 1;
         select pages - pages_fetched >= 0 as ok from graft_hydrate;"
    ));
    assert_eq!(moved[1], json!([{ "name": "copy", "lsn": 1 }]));
    assert_eq!(moved[2], json!([{ "name": "copy" }, { "name": "v" }, { "name": "w" }]));
    assert_eq!((&moved[3], &moved[4]), (&json!([{ "lsn": 2 }]), &json!([{ "ok": 1 }])));
    let said = run(shop.command(), &format!(".open '{file}'\nselect * from t; pragma integrity_check;"));
    assert_eq!((said.out.trim(), said.err.as_str()), ("1\nok", ""));
    let said = shop
        .run(&format!(".open '{file}'\nselect * from graft_import('{file}', 'again', '{}');", shop.store()));
    assert!(said.err.contains("has it open"), "{}", said.err);
}

#[test]
fn a_fork_goes_its_own_way_and_verify_finds_a_changed_byte() {
    let Some(shop) = Shop::open() else { return };
    let data = format!("&data={}", shop.path("data"));
    let (v, child) = (shop.uri("v", &data), shop.uri("child", &data));
    shop.json(&format!(
        "{v}create table t(v); insert into t values(1); select * from graft_push; insert into t values(2); select * from graft_push;"
    ));
    let made = shop.json(&format!(
        "{v}select name, parent, lsn from graft_fork('child'); select lsn from graft_fork('old', 1);"
    ));
    assert_eq!(made, [json!([{ "name": "child", "parent": "v", "lsn": 2 }]), json!([{ "lsn": 1 }])]);
    let there = shop.json(&format!(
        "{child}insert into t values(3); select * from graft_push; select sum(v) as s from t;"
    ));
    assert_eq!(there[1], json!([{ "s": 6 }]));
    let sum = |uri: &str| shop.json(&format!("{uri}select sum(v) as s from t;"))[0][0]["s"].clone();
    assert_eq!((sum(&v), sum(&shop.uri("old", ""))), (json!(3), json!(1)));
    let found =
        |uri: &str| shop.json(&format!("{uri}select * from graft_verify;"))[0].as_array().unwrap().clone();
    let sound = json!([{ "lsn": 2, "commits_checked": 2, "checkpoints_checked": 0, "pages_checked": 3, "orphans": 0, "key": null, "problem": null }]);
    assert_eq!(json!(found(&shop.uri("v", ""))), sound);

    // The last byte of the newest commit lies in its pages.
    let id = shop.json(&format!("{v}select id from graft_info;"))[0][0]["id"].as_str().unwrap().to_owned();
    let folder = shop.folder.path().join("store/volumes").join(id);
    let mut log: Vec<PathBuf> =
        std::fs::read_dir(folder.join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    log.sort();
    let [newest, first] = &log[..] else { panic!("{log:?}") };
    let with_byte_changed = |path: &Path, at: fn(usize) -> usize, then: &dyn Fn()| {
        let whole = std::fs::read(path).unwrap();
        let mut bytes = whole.clone();
        let at = at(bytes.len());
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
        then();
        std::fs::write(path, whole).unwrap();
    };
    let named = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let rows = found(&shop.uri("v", ""));
        assert!(!rows.is_empty());
        for row in &rows {
            let key = row["key"].as_str().unwrap_or_else(|| panic!("nothing was found: {rows:?}"));
            assert!(key.ends_with(&name) && row["problem"].is_string(), "{rows:?}");
        }
    };
    with_byte_changed(newest, |bytes| bytes - 1, &|| named(newest));
    // A byte of the head of the first: a replica that has it opens, and the chain is broken in the store.
    with_byte_changed(first, |_| 60, &|| {
        let data = format!("&data={}", shop.path("data"));
        let rows = found(&shop.uri("v", &data));
        let name = first.file_name().unwrap().to_str().unwrap();
        assert!(rows[0]["key"].as_str().is_some_and(|key| key.ends_with(name)), "{rows:?}");
    });
    assert_eq!(json!(found(&shop.uri("v", ""))), sound, "as it was");
    // The same of a pragma, as one text; and an object that is none of ours.
    std::fs::write(folder.join("forks").join("0"), "no pin").unwrap();
    let said = shop.run(&format!("{v}pragma graft_verify;"));
    let rows: Json =
        serde_json::from_str(said.out.trim()).unwrap_or_else(|error| panic!("{error}: {}", said.out));
    assert!(rows[0]["key"].as_str().unwrap().ends_with("/forks/0"), "{rows}");
}

#[test]
fn errors_are_told_and_text_is_never_a_format() {
    let Some(shop) = Shop::open() else { return };
    let v = shop.uri("v", &format!("&data={}", shop.path("data")));
    let said = shop.run(&format!(
        "{v}create table t(v); pragma graft_export = '/nowhere/%s%n%p.db'; select * from graft_export('/nowhere/%s%n%p.db');
         pragma graft_pull = '%s%n'; select * from graft_log('%s%n'); pragma graft_open_at = '%s%n'; pragma graft_nonsense = '%s';
         pragma locking_mode = exclusive; pragma synchronous = off; pragma page_size = 512; select 'alive';"
    ));
    assert_eq!(said.out.trim(), "alive");
    for word in [
        "/nowhere/%s%n%p.db",
        "`%s%n`",
        "locking_mode=EXCLUSIVE is refused",
        "synchronous=off is refused",
        "page_size=512 is refused",
    ] {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
    // What cannot be opened, and where the reason is found.
    for (uri, word) in [
        (shop.uri("nope", ""), "no volume `nope`"),
        (shop.uri("nope", "&at=x"), "`x`: give an LSN"),
        (shop.uri("a/b", ""), "cannot name a volume"),
        (".open 'file:v?vfs=graft'\n".into(), "no store is given"),
        (".open 'file:v?vfs=graft&remote=gopher://x'\n".into(), "gopher://x"),
        (
            format!(
                ".open 'file:new?vfs=graft&mode=rw&remote={}&data={}'\n",
                shop.store(),
                shop.path("data")
            ),
            "no volume `new`",
        ),
        (
            format!(
                ".open 'file:new?vfs=graft&page_size=7&remote={}&data={}'\n",
                shop.store(),
                shop.path("data")
            ),
            "power of two",
        ),
    ] {
        let said = shop.run(&format!("{uri}.open :memory:\nselect message from graft_errors;"));
        assert!(said.err.contains(word) && said.out.contains(word), "{word}: {} {}", said.err, said.out);
        assert!(said.err.contains("unable to open database"), "{}", said.err);
    }
    // Beside a database that is no volume.
    let said = shop.run("select * from graft_status; select sqlite from graft_version;");
    assert!(
        said.err.contains("this database is no volume") && said.out.starts_with('3'),
        "{} {}",
        said.err,
        said.out
    );
}

#[test]
fn one_process_has_a_directory_and_the_next_is_told_who() {
    let Some(shop) = Shop::open() else { return };
    let data = shop.path("data");
    let v = shop.uri("v", &format!("&data={data}"));
    let mut holder = Holder::start(&shop, &format!("{v}create table t(v); insert into t values(1);"));
    let id = holder.0.id().to_string();
    let said = shop.run(&v);
    assert!(said.err.contains(&data) && said.err.contains(&id), "the holder is {id}: {}", said.err);
    // A replica without the directory is nobody's rival.
    assert_eq!(
        shop.json(&format!("{}select lsn from graft_info;", shop.uri("v", ""))),
        [json!([{ "lsn": 0 }])]
    );
    // Killed, it leaves what it committed, and no lock.
    holder.0.stdin.as_mut().unwrap().write_all(b"begin; insert into t values(2);\n").unwrap();
    drop(holder);
    let found = shop.json(&format!(
        "{v}select count(*) as n from t; select ahead from graft_status; select pushed from graft_push;"
    ));
    assert_eq!(found, [json!([{ "n": 1 }]), json!([{ "ahead": 2 }]), json!([{ "pushed": 2 }])]);
    // The store is gone: the directory still opens, and says why it stands still.
    std::fs::rename(shop.path("store"), shop.path("elsewhere")).unwrap();
    let found = shop
        .json(&format!("{v}select count(*) as n from t; select offline is not null as off from graft_info;"));
    assert_eq!(found, [json!([{ "n": 1 }]), json!([{ "off": 1 }])]);
}

#[test]
fn volumes_are_attached_and_a_transaction_writes_one_of_them() {
    let Some(shop) = Shop::open() else { return };
    let data = format!("&data={}", shop.path("data"));
    let (v, store) = (shop.uri("v", &data), shop.store());
    shop.json(&format!("{v}create table t(v); insert into t values('v'); select * from graft_push;"));
    let attach = format!("attach 'file:w?vfs=graft&remote={store}{data}' as w;");
    let said = shop.run(&format!(
        "{v}{attach} create table w.u(v); insert into w.u select v || '!' from t; select t.v || u.v from t, w.u;
         begin; insert into t values(2); insert into w.u values(2); commit; rollback;
         select message like '%one at a time%' from graft_errors; select count(*) from t; select count(*) from w.u; insert into t values(3); insert into w.u values(3);
         select name, ahead from graft_status; select name, ahead from graft_status where schema = 'w';"
    ));
    assert_eq!(said.out.trim(), "vv!\n1\n1\n1\nv|1\nw|3");
    assert!(!said.err.is_empty(), "the transaction that wrote both was not refused");
}

/// Python has threads, and loads the extension through a connection of its own.
#[test]
fn python_reads_and_writes_on_many_connections() {
    let Some(shop) = Shop::open() else { return };
    let Some(python3) = places::python3() else { return };
    let script = format!(
        r#"
import ctypes, json, sqlite3, threading
so, uri = {so:?}, {uri:?}
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(so)
loader.load_extension(so)
# Its own SQLite is not to be seen.
assert not hasattr(ctypes.CDLL(so), "sqlite3_libversion")

def connect(): return sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False)
db = connect()
db.execute("create table t(id integer primary key, who, n)")
failures = []
def write(who):
    try:
        c = connect()
        for n in range(25):
            c.execute("begin immediate")
            c.execute("insert into t(who, n) values(?, ?)", (who, n))
            c.execute("commit")
    except Exception as error: failures.append(repr(error))
def read():
    try:
        c, before = connect(), 0
        for _ in range(100):
            found = c.execute("select count(*) from t").fetchone()[0]
            assert found >= before
            before = found
    except Exception as error: failures.append(repr(error))
threads = [threading.Thread(target=write, args=(who,)) for who in range(4)] + [threading.Thread(target=read) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
cursor = db.execute("select * from graft_push")
columns = [column[0] for column in cursor.description]
pushed = cursor.fetchone()
try:
    db.execute("select * from graft_open_at")
except sqlite3.OperationalError as error: missing = str(error)
print(json.dumps([failures, db.execute("select count(*), count(distinct who) from t").fetchone(), columns, pushed, missing]))
"#,
        so = places::sqlite_extension().display().to_string(),
        uri = format!("file:v?vfs=graft&remote={}&data={}", shop.store(), shop.path("data")),
    );
    let mut command = Command::new(python3);
    command.arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let said = run(command, &script);
    assert_eq!(said.err, "");
    let [failures, counts, columns, pushed, missing]: [Json; 5] = serde_json::from_str(&said.out).unwrap();
    assert_eq!((failures, counts), (json!([]), json!([100, 4])));
    assert_eq!((columns, pushed), (json!(["lsn", "pushed"]), json!([1, 101])));
    assert!(missing.as_str().unwrap().contains("no such table"));
    assert!(Path::new(&shop.path("data")).is_dir());
}

/// Two addresses of one store, one directory: the second replica would write over the first one's commits.
/// A forked child has none of its parent's threads: what it opens needs its own, and what it inherited must
/// neither hang nor write into files that are the parent's.
#[test]
fn a_forked_child_opens_its_own_and_leaves_its_parents_alone() {
    let Some(shop) = Shop::open() else { return };
    let Some(python3) = places::python3() else { return };
    let script = format!(
        r#"
import json, os, signal, sqlite3, sys
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension({so:?})
def connect(more): return sqlite3.connect({uri:?} + more, uri=True, isolation_level=None)
def told(work):
    try: return work()
    except sqlite3.Error as error: return str(error)
def all(db, sql): return told(lambda: db.execute(sql).fetchall())
def fork(work):
    pid = os.fork()
    if pid: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.alarm(60)
    with open({found:?}, "w") as out: json.dump(work(), out)
    # It closes all that it has.
    sys.exit(0)
def found():
    with open({found:?}) as file: return json.load(file)
db = connect("&data=" + {data:?})
db.execute("create table t(x)")
db.execute("select * from graft_push").fetchall()
reader = connect("")
# A transaction that is spilled to a file, which a child has too.
db.execute("begin")
db.execute("with recursive c(i) as (select 1 union all select i + 1 from c where i < 90000) insert into t select zeroblob(1000) || i from c")
def early():
    said = [all(db, "rollback"), all(db, "select count(*) from t"), all(db, "select * from graft_push"), all(db, "pragma graft_status")]
    said += [all(reader, "select * from t"), told(lambda: connect("&data=" + {data:?})), all(connect(""), "select count(*) from t")]
    return said
exits = [fork(early)]
first = found()
db.execute("commit")
after = all(db, "select count(*) from t") + all(db, "pragma integrity_check")
db.close()
def late():
    mine = connect("&data=" + {data:?})
    return [all(mine, "insert into t values('child')"), all(mine, "select * from graft_push"), all(reader, "select * from t")]
exits += [fork(late)]
second = found()
db = connect("&data=" + {data:?})
after += all(db, "select count(*) from t") + all(db, "pragma integrity_check")
print(json.dumps([exits, first, second, after]))
"#,
        so = places::sqlite_extension().display().to_string(),
        uri = format!("file:v?vfs=graft&remote={}", shop.store()),
        data = shop.path("data"),
        found = shop.path("found.json"),
    );
    let mut command = Command::new(python3);
    command.arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let said = run(command, &script);
    let [exits, first, second, after]: [Json; 4] =
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}{}", said.out, said.err));
    assert_eq!(exits, json!([0, 0]), "{}", said.err);
    let inherited =
        "this connection was opened before fork(), by the process that forked; open one in this process";
    let io = "disk I/O error";
    let opened = "unable to open database file";
    assert_eq!(
        first.as_array().unwrap()[1..],
        [json!(io), json!(io), json!(inherited), json!(io), json!(opened), json!([[0]])]
    );
    assert!(said.err.contains("is in use by process"), "{}", said.err);
    assert_eq!(second, json!([[], [[2, 2]], io]));
    assert_eq!(after, json!([[90000], ["ok"], [90001], ["ok"]]));
}

#[test]
fn one_directory_has_a_volume_open_by_one_address() {
    let Some(shop) = Shop::open() else { return };
    let data = shop.path("data");
    shop.json(&format!(
        "{}create table t(v); pragma graft_push;",
        shop.uri("shop", &format!("&data={data}"))
    ));
    std::os::unix::fs::symlink(shop.path("store"), shop.path("link")).unwrap();
    let there = |name: &str| format!("file:shop?vfs=graft&remote=file://{}&data={data}", shop.path(name));
    let said = shop.run(&format!(
        ".open '{}'\ninsert into t values (1);\nattach '{}' as other;\ninsert into t values (2);\nselect \
         count(*) || ' rows' from t;\nselect message from graft_errors;\n",
        there("store"),
        there("link"),
    ));
    assert!(said.err.contains("open by another address") && said.err.contains("file://"), "{}", said.err);
    assert!(said.out.contains("2 rows"), "{} {}", said.out, said.err);
    // After the first is closed, the second opens, and finds what the first committed.
    let said = shop.run(&format!(
        ".open '{}'\ninsert into t values (3);\n.open '{}'\nselect count(*) || ' rows' from t;\n",
        there("store"),
        there("link"),
    ));
    assert!(said.err.is_empty() && said.out.contains("3 rows"), "{} {}", said.out, said.err);
}

/// SQLite gave an empty volume pages of its own size, and the first write was an I/O error.
#[test]
fn a_new_volume_has_pages_of_the_size_that_its_uri_says() {
    let Some(shop) = Shop::open() else { return };
    for size in [512, 4096, 65536] {
        let name = format!("v{size}");
        let uri = shop.uri(&name, &format!("&data={}&page_size={size}", shop.path("data")));
        let made = shop.json(&format!(
            "{uri}create table t(v); insert into t values(1); pragma page_size; select pushed from graft_push; select page_size from graft_info;"
        ));
        let size = json!([{ "page_size": size }]);
        assert_eq!(made, [size.clone(), json!([{ "pushed": 2 }]), size.clone()]);
        // A size that it does not have is no concern of who only opens it.
        let read = shop.json(&format!("{}select v from t; pragma page_size;", shop.uri(&name, "")));
        assert_eq!(read, [json!([{ "v": 1 }]), size]);
    }
    // Attached, it is told what to do.
    let empty = shop.uri("empty", &format!("&data={}&page_size=512", shop.path("data")));
    shop.json(&format!("{empty}select 1;"));
    let file = format!("'file:empty?vfs=graft&remote={}&data={}'", shop.store(), shop.path("data"));
    let first = shop.uri("v4096", &format!("&data={}", shop.path("data")));
    let said = shop.json(&format!(
        "{first}attach {file} as e; pragma e.page_size = 512; create table e.t(v); select name from e.sqlite_schema;"
    ));
    assert_eq!(said, [json!([{ "name": "t" }])]);
}

#[test]
fn the_past_is_found_by_its_time() {
    let Some(shop) = Shop::open() else { return };
    let v = shop.uri("v", &format!("&data={}", shop.path("data")));
    shop.json(&format!("{v}create table t(v); insert into t values(1); select * from graft_push; insert into t values(2); select * from graft_push;"));
    let log = shop.json(&format!("{v}select strftime('%Y-%m-%dT%H:%M:%fZ', time_ms / 1000.0, 'unixepoch') as t from graft_log where lsn = 1;"));
    let first = log[0][0]["t"].as_str().unwrap();
    let count = "select count(*) as n from t;";
    let past = shop.json(&format!("{}{count}", shop.uri("v", &format!("&at={first}"))));
    assert_eq!(past, [json!([{ "n": 1 }])], "{first}");
    let file = shop.path("out.db");
    let said = shop.run(&format!(
        "{v}pragma graft_open_at = '{first}'; {count} pragma graft_open_at; {count}
         select lsn from graft_fork('old', '{first}'); select lsn from graft_export('{file}', '{first}');
         pragma graft_open_at = '2020-02-03T04:05:06+01:00'; pragma graft_open_at = 'soon';"
    ));
    assert_eq!(said.out.trim(), "v at lsn 1\n1\nv\n2\n1\n1");
    for word in
        ["volume `v` has no commit as old as 2020-02-03 03:05:06.000 UTC", "`soon`: give an LSN like 42"]
    {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
    let early = shop.run(&shop.uri("v", "&at=2020-01-01"));
    assert!(early.err.contains("no commit as old as 2020-01-01"), "{}", early.err);
}

/// In a connection to a volume a plain name is a volume's. Who means a file is told how to say so.
#[test]
fn files_are_attached_and_vacuumed_into_by_their_own_vfs() {
    let Some(shop) = Shop::open() else { return };
    let here = shop.uri("v", &format!("&data={}", shop.path("data")));
    let said = shop.run(&format!("{here}create table t(v); insert into t values(7); vacuum into 'out.db';"));
    assert!(said.err.contains("file:PATH?vfs=unix"), "{}", said.err);
    let found = shop.json(&format!(
        "{here}vacuum into 'file:out.db?vfs=unix'; attach 'file:out.db?vfs=unix' as o; select v from o.t;"
    ));
    assert_eq!(found, [json!([{ "v": 7 }])]);
}

#[test]
fn the_budget_on_disk_is_taken_from_the_uri() {
    let Some(shop) = Shop::open() else { return };
    let budget = |bytes: &str| shop.uri("v", &format!("&data={}&disk_bytes={bytes}", shop.path("data")));
    let said = shop.run(&format!("{}select 1;", budget("much")));
    assert!(said.err.contains("disk_bytes") && said.err.contains("`much`"), "{}", said.err);
    // It said that all of it was there, whatever there was room for.
    let fill = "create table t(v); with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)\n\
                insert into t select randomblob(900) from n; select pushed from graft_push;";
    shop.json(&format!("{}{fill}", budget("1000000")));
    let here = |bytes| {
        let there = shop.path(&format!("data {bytes}")).replace(' ', "%20");
        shop.uri("v", &format!("&data={there}&disk_bytes={bytes}"))
    };
    let said = shop.run(&format!("{}select * from graft_hydrate;", here("1000000")));
    assert!(said.err.contains("give a larger budget"), "{}\n{}", said.out, said.err);
    let hydrate = "select pages - pages_fetched < 100 as most from graft_hydrate; select pages_fetched from graft_hydrate;";
    let said = shop.json(&format!("{}{hydrate}", here("9000000")));
    assert_eq!(said, [json!([{ "most": 1 }]), json!([{ "pages_fetched": 0 }])]);
}
