//! What sinks other storage engines, tried on this one through SQLite: a replica that is written before it
//! has ever pulled, one that pushes pages it never fetched, pages that changed places, and `%s` where names
//! are given. The rest of the list is tested where the code is; `docs/operations.md` says what is where.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use graft::fetch::{Ahead, Fetcher, RemoteFetch};
use graft::format::meta::Meta;
use graft::publish::PublishError;
use graft::remote::{Counting, MemoryRemote, SharedRemote};
use graft::store::FjallStore;
use graft::volume::{Change, Options, PushError, Pushed, Volume, push};
use graft::{ChainHash, CommitId, Lsn, PageIdx, PageSize, VolumeId, VolumeName, catalog, verify};
use rusqlite::Connection;
use serde_json::json;
use sqlsync_layer::payload::Payload;
use sqlsync_layer::vfs::Database;
use tests::places;
use tests::process::graft;

const VOLUME: VolumeId = VolumeId([5; 16]);

fn created(page_size: PageSize) -> SharedRemote {
    let remote: SharedRemote = Arc::new(MemoryRemote::new());
    let name: VolumeName = "v".parse().unwrap();
    block_on(catalog::create(&*remote, &name, VOLUME, Meta { page_size, parent: None })).unwrap();
    remote
}

fn connect(remote: &SharedRemote, volume: Volume) -> (Arc<Volume>, Connection) {
    let volume = Arc::new(volume);
    let database = Database::new(volume.clone(), Arc::new(RemoteFetch::new(remote.clone())));
    (volume, database.connect().unwrap().0)
}

fn open(remote: &SharedRemote) -> (Arc<Volume>, Connection) {
    connect(remote, block_on(Volume::open(&**remote, VOLUME, Options::default())).unwrap().volume)
}

fn push_as(remote: &SharedRemote, volume: &Volume, id: u8) -> Result<Pushed, PushError> {
    block_on(push(&**remote, volume, Payload::of_locals, || CommitId([id; 16]), 1))
}

fn pull(remote: &SharedRemote, volume: &Volume) {
    let pulled = block_on(volume.pull(&**remote)).unwrap();
    volume.absorb(pulled).unwrap();
}

fn number(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Upstream panicked when a replica that had been written before its first pull fetched and pushed, and
/// its background task died of the same in silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_written_before_its_first_pull_pushes_or_is_told() {
    tokio::task::spawn_blocking(|| {
        for page_size in [512, 4096, 65536].map(|size| PageSize::new(size).unwrap()) {
            for others_first in [false, true] {
                let remote = created(page_size);
                // Made without a look at the store, on disk or not.
                let folder = tempfile::tempdir().unwrap();
                let store = Arc::new(FjallStore::open(folder.path()).unwrap());
                let options = Options { store: Some(store), ..Options::default() };
                let offline = Volume::load(VOLUME, page_size, options).unwrap().volume;
                let (ours, connection) = connect(&remote, offline);
                connection.execute_batch("create table t(v); insert into t values(1), (2)").unwrap();
                if others_first {
                    let (theirs, connection) = open(&remote);
                    connection.execute_batch("create table other(v); insert into other values(5)").unwrap();
                    assert!(matches!(push_as(&remote, &theirs, 1), Ok(Pushed::Durable(Lsn(1)))));
                }
                // A pull moves nothing under local commits.
                pull(&remote, &ours);
                assert_eq!((ours.status().lsn, ours.status().ahead), (Lsn::ZERO, 2));
                assert_eq!(number(&connection, "select sum(v) from t"), 3);
                let pushed = push_as(&remote, &ours, 2);
                if others_first {
                    let rejected =
                        matches!(&pushed, Err(PushError::Publish(PublishError::Rejected { lsn: Lsn(1) })));
                    assert!(rejected, "{pushed:?}");
                    assert_eq!(number(&connection, "select sum(v) from t"), 3, "it is all still there");
                    ours.reset().unwrap();
                    pull(&remote, &ours);
                    assert_eq!(number(&connection, "select sum(v) from other"), 5);
                } else {
                    assert!(matches!(pushed, Ok(Pushed::Durable(Lsn(1)))), "{pushed:?}");
                }
                connection.execute_batch("create table more(v); insert into more values(7)").unwrap();
                assert!(matches!(push_as(&remote, &ours, 3), Ok(Pushed::Durable(Lsn(2)))));
                let (_, connection) = open(&remote);
                assert_eq!(number(&connection, "select sum(v) from more"), 7);
                assert!(block_on(verify::verify(&*remote, VOLUME, &|_| {})).unwrap().is_sound());
            }
        }
    })
    .await
    .unwrap();
}

/// Upstream panicked at a push from a checkout that was not hydrated.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lacks_most_pages_pushes_what_it_changed() {
    tokio::task::spawn_blocking(|| {
        let remote = created(PageSize::DEFAULT);
        let (writer, connection) = open(&remote);
        connection
            .execute_batch(
                "create table t(id integer primary key, v);
                 with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
                 insert into t select i, randomblob(200) from n;",
            )
            .unwrap();
        push_as(&remote, &writer, 1).unwrap();
        let counting = Counting::new(remote.clone());
        let partial: SharedRemote = counting.clone();
        let volume = block_on(Volume::open(&*partial, VOLUME, Options::default())).unwrap().volume;
        let ours = Arc::new(volume);
        // Nothing ahead, so that it lacks what it did not touch.
        let fetcher = Fetcher::new(partial.clone()).with_ahead(Ahead::Nothing);
        let database = Database::new(ours.clone(), Arc::new(RemoteFetch::with(fetcher)));
        let (connection, _) = database.connect().unwrap();
        counting.reset();
        connection.execute("update t set v = 'ours' where id = 15000", []).unwrap();
        assert!(matches!(push_as(&partial, &ours, 2), Ok(Pushed::Durable(Lsn(2)))));
        let cost = counting.reset();
        let whole = u64::from(ours.tip().pages()) * 4096;
        assert!(cost.bytes_down < whole / 4, "{cost:?} of {whole} bytes");
        pull(&remote, &writer);
        let (_, reader) = open(&remote);
        assert_eq!(number(&reader, "select count(*) from t"), 20_000);
        assert_eq!(number(&reader, "select id from t where v = 'ours'"), 15_000);
        let check: String = reader.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
    })
    .await
    .unwrap();
}

/// Upstream's audit checksum left page numbers out: two pages that had changed places looked right.
#[test]
fn two_pages_that_changed_places_are_another_state() {
    let hash = |first: u8, second: u8| -> ChainHash {
        let remote = created(PageSize::DEFAULT);
        let volume = block_on(Volume::open(&*remote, VOLUME, Options::default())).unwrap().volume;
        let page = |index: u32, byte: u8| (PageIdx::new(index).unwrap(), Bytes::from(vec![byte; 4096]));
        let changes = [page(1, first), page(2, second)].into();
        volume.commit(&volume.tip(), Change { changes, pages: 2, payload: Bytes::new() }).unwrap();
        push_as(&remote, &volume, 1).unwrap();
        volume.base().hash()
    };
    assert_eq!(hash(1, 2), hash(1, 2));
    assert_ne!(hash(1, 2), hash(2, 1));
}

/// Upstream gave names to a C function as its format, and crashed. Whatever a person names is text here:
/// directories, files, tables. (A volume's own name cannot have a `%`, and the message that says so has.)
#[test]
fn percent_signs_in_names_are_text() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("%s%n %p%%d");
    std::fs::create_dir(&odd).unwrap();
    let path = |name: &str| odd.join(name).to_str().unwrap().to_owned();
    let (file, out, data) = (path("in%s.db"), path("out%n.db"), path("data%s%n"));
    // A path, because in a URL `%` begins an escape.
    let store = path("store%s");
    let source = Connection::open(&file).unwrap();
    source.execute_batch("create table \"%s%n\"(\"%p\"); insert into \"%s%n\" values('%d%s')").unwrap();
    drop(source);
    let run = |args: &[&str]| graft(args.iter().copied().chain(["--store", store.as_str()])).expect(0);
    run(&["import", &file, "--volume", "v"]);
    let insert = "insert into \"%s%n\" values('%n%n')";
    run(&["sql", insert, "--write", "--volume", "v", "--data", &data]);
    let rows =
        run(&["sql", "select \"%p\" from \"%s%n\"", "--volume", "v", "--data", &data, "--json"]).json();
    assert_eq!(rows["rows"], json!([["%d%s"], ["%n%n"]]));
    run(&["export", "v", &out]);
    run(&["volume", "verify", "v"]);
    let said = graft(["volume", "info", "%s%n", "--store", &store]).error();
    assert!(said.contains("`%s%n`"), "{said}");

    // The extension: where upstream crashed.
    let Some(sqlite3) = places::sqlite3() else { return };
    let escaped = |path: &str| path.replace('%', "%25").replace(' ', "%20");
    let uri = format!("file:v?vfs=graft&remote={}&data={}", escaped(&store), escaped(&data));
    let script = format!(
        ".load {}\n.open '{uri}'\nselect count(*) from \"%s%n\";\nselect data from graft_info;\n\
         pragma graft_status;\npragma graft_info;\npragma graft_export = '{}';\nselect 'alive';\n",
        places::sqlite_extension().display(),
        path("again%s.db"),
    );
    let output = shell(&sqlite3, &script);
    for word in ["2\n", &data, "alive", "again%s.db"] {
        assert!(output.contains(word), "`{word}` is not in {output}");
    }
    for file in [out, path("again%s.db")] {
        assert_eq!(number(&Connection::open(file).unwrap(), "select count(*) from \"%s%n\""), 2);
    }
}

/// What SQLite's shell says to a script that it survives.
fn shell(sqlite3: &Path, script: &str) -> String {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut command = Command::new(sqlite3);
    command.arg("-batch").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    tests::process::clean(&mut command);
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && complained.is_empty(), "{}: {said}\n{complained}", output.status);
    said
}
