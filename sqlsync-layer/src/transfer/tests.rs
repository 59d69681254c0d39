use std::collections::BTreeMap;
use std::sync::Arc;

use futures::executor::block_on;
use graft::fetch::RemoteFetch;
use graft::remote::{Faults, Faulty, MemoryRemote, SharedRemote};
use graft::time::At;
use graft::volume::{Options, Volume};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rusqlite::Connection;

use super::backup::Backup;
use super::export::export;
use super::*;
use crate::vfs::Database;

fn ids(seed: u64) -> impl FnMut() -> [u8; 16] + Send {
    let mut rng = StdRng::seed_from_u64(seed);
    move || rng.random()
}

fn name() -> VolumeName {
    "copy".parse().unwrap()
}

/// Every row of every table, and the schema.
fn dump(connection: &Connection) -> BTreeMap<String, Vec<String>> {
    let check: String = connection.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let mut tables: Vec<String> = {
        let mut statement =
            connection.prepare("select name from sqlite_schema where type = 'table' order by name").unwrap();
        let names = statement.query_map([], |row| row.get(0)).unwrap();
        names.map(Result::unwrap).collect()
    };
    tables.push("sqlite_schema".into());
    let rows = |table: &String| {
        let mut statement = connection.prepare(&format!("select * from \"{table}\" order by 1, 2")).unwrap();
        let columns = if table == "sqlite_schema" { 3 } else { statement.column_count() };
        let rows = statement.query_map([], |row| {
            Ok((0..columns).map(|at| format!("{:?}", row.get_ref(at).unwrap())).collect::<Vec<_>>().join("|"))
        });
        rows.unwrap().map(Result::unwrap).collect()
    };
    tables.iter().map(|table| (table.clone(), rows(table))).collect()
}

fn fill(connection: &Connection, rows: usize) {
    connection
        .execute_batch(&format!(
            "create table t(id integer primary key, v); create index i on t(v); create table \"%s\"(a, b);
             with recursive n(i) as (select 1 union all select i + 1 from n where i < {rows})
             insert into t select i, hex(randomblob(60)) from n;
             insert into \"%s\" values(zeroblob(40000), 1), ('x', 2); delete from t where id % 7 = 0;"
        ))
        .unwrap();
}

fn exported(remote: &SharedRemote, at: Option<At>) -> BTreeMap<String, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.db");
    // What an unlucky crash left: SQLite would play it into the new file.
    std::fs::write(folder.path().join("out.db-journal"), b"stale").unwrap();
    std::fs::write(folder.path().join("out.db-wal"), b"stale").unwrap();
    let id = block_on(catalog::resolve(&**remote, &name())).unwrap();
    let volume = match at {
        Some(at) => block_on(Volume::open_at(&**remote, id, at, 8 << 20)).unwrap().volume,
        None => block_on(Volume::open(&**remote, id, Options::default())).unwrap().volume,
    };
    block_on(export(&**remote, &volume, &volume.tip(), &file, &mut |_| {})).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing but the file");
    let header = std::fs::read(&file).unwrap();
    assert_eq!(header[24..28], header[92..96], "counters");
    dump(&Connection::open(&file).unwrap())
}

#[test]
fn what_is_imported_comes_out_equal_at_every_page_size_in_every_journal_mode() {
    for (page_size, mode) in
        [(512, "wal"), (4096, "wal"), (65536, "wal"), (1024, "delete"), (4096, "truncate")]
    {
        for as_size in [None, PageSize::new(2048)] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("%s in.db");
            let writer = Connection::open(&file).unwrap();
            writer
                .execute_batch(&format!("pragma page_size = {page_size}; pragma journal_mode = {mode}"))
                .unwrap();
            fill(&writer, 3000);
            if mode == "wal" {
                // Part of it in the file, part in the WAL, with the writer still there.
                writer.execute_batch("pragma wal_checkpoint; insert into t values(100000, 'hot')").unwrap();
            }
            let before = std::fs::read(&file).unwrap();
            let remote: SharedRemote = Arc::new(MemoryRemote::new());
            let mut reports = Vec::new();
            let imported = block_on(import(&*remote, &file, &name(), as_size, &mut ids(1), 5, &mut |at| {
                reports.push(at);
            }))
            .unwrap();
            assert_eq!(imported.page_size, as_size.unwrap_or(PageSize::new(page_size).unwrap()));
            assert_eq!(imported.lsn, Lsn(1));
            let last = reports.last().unwrap();
            assert_eq!((last.pages_done, last.pages), (imported.pages, imported.pages));
            assert_eq!(exported(&remote, None), dump(&writer), "{page_size} {mode}");
            assert_eq!(std::fs::read(&file).unwrap(), before, "the source was changed");
            // And through the VFS, written to.
            let volume =
                block_on(Volume::open(&*remote, imported.volume, Options::default())).unwrap().volume;
            let database = Database::new(Arc::new(volume), Arc::new(RemoteFetch::new(remote.clone())));
            let (connection, _) = database.connect().unwrap();
            assert_eq!(dump(&connection), dump(&writer));
            connection.execute_batch("insert into t values(200000, 'more'); vacuum").unwrap();
            writer.execute_batch("insert into t values(200000, 'more')").unwrap();
            assert_eq!(dump(&connection), dump(&writer));
            // The name is taken now.
            let again = block_on(import(&*remote, &file, &name(), None, &mut ids(2), 6, &mut |_| {}));
            assert!(matches!(again, Err(TransferError::Catalog(CatalogError::Exists { .. }))));
        }
    }
}

#[test]
fn an_empty_file_makes_an_empty_volume() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let remote: SharedRemote = Arc::new(MemoryRemote::new());
    let imported =
        block_on(import(&*remote, file.path(), &name(), None, &mut ids(1), 5, &mut |_| {})).unwrap();
    assert_eq!((imported.lsn, imported.pages), (Lsn::ZERO, 0));
    assert_eq!(exported_len(&remote), 0);
}

fn exported_len(remote: &SharedRemote) -> u64 {
    let id = block_on(catalog::resolve(&**remote, &name())).unwrap();
    let volume = block_on(Volume::open(&**remote, id, Options::default())).unwrap().volume;
    u64::from(volume.tip().pages())
}

#[test]
fn a_file_that_is_no_database_is_refused_before_anything_is_stored() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![b'%'; 5000]).unwrap();
    let remote = graft::remote::Counting::new(Arc::new(MemoryRemote::new()));
    let error =
        block_on(import(&*remote, file.path(), &name(), None, &mut ids(1), 5, &mut |_| {})).unwrap_err();
    assert!(error.to_string().contains("not a database"), "{error}");
    assert_eq!(remote.snapshot().creates, 0);
    let missing = std::path::Path::new("/nowhere/at all.db");
    let error = block_on(import(&*remote, missing, &name(), None, &mut ids(1), 5, &mut |_| {})).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at all.db"), "{error}");
}

/// A store that fails at any request: the name leads to nothing or to the whole.
#[test]
fn an_import_that_fails_anywhere_leaves_no_volume_and_can_be_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in.db");
    let writer = Connection::open(&file).unwrap();
    fill(&writer, 2000);
    let mut failed = 0;
    for seed in 0..60 {
        let inner: SharedRemote = Arc::new(MemoryRemote::new());
        let faults = Faults { fail_before: 0.2, fail_after: 0.1, ..Faults::default() };
        let faulty = Faulty::with_faults(inner.clone(), seed, faults);
        if block_on(import(&*faulty, &file, &name(), None, &mut ids(seed), 5, &mut |_| {})).is_err() {
            failed += 1;
            if block_on(catalog::list(&*inner)).unwrap().is_empty() {
                block_on(import(&*inner, &file, &name(), None, &mut ids(seed + 1000), 6, &mut |_| {}))
                    .unwrap();
            }
        }
        assert_eq!(exported(&inner, None), dump(&writer), "seed {seed}");
    }
    assert!(failed > 5, "{failed}");
}

/// Commits, checkpoints of every kind, shrinking, and a backup that comes by now and then, or is started
/// anew: each commit of the volume is the state that the file had then, and stays it.
#[test]
fn every_commit_of_a_backup_is_a_state_that_the_database_had() {
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("live.db");
        let writer = Connection::open(&file).unwrap();
        let page_size = [512, 4096][rng.random_range(0..2)];
        writer
            .execute_batch(&format!(
                "pragma page_size = {page_size}; pragma auto_vacuum = full; pragma journal_mode = wal;
                 pragma synchronous = off; pragma wal_autocheckpoint = {}",
                [0, 3, 1000][rng.random_range(0..3)]
            ))
            .unwrap();
        fill(&writer, 50);
        let remote: SharedRemote = Arc::new(MemoryRemote::new());
        let mut random = ids(seed);
        let mut states: BTreeMap<Lsn, BTreeMap<String, Vec<String>>> = BTreeMap::new();
        let mut backup: Option<Backup> = None;
        let mut partial = 0;
        for step in 0..60 {
            match rng.random_range(0..12) {
                0..5 => {
                    let rows = rng.random_range(1..40);
                    for _ in 0..rows {
                        let sql = "insert or replace into t values(?1, hex(randomblob(?2)))";
                        writer.execute(sql, (rng.random_range(0..300), rng.random_range(1..300))).unwrap();
                    }
                }
                5 => {
                    writer.execute("delete from t where id > ?1", [rng.random_range(0..300)]).unwrap();
                }
                6 => {
                    let kind = ["passive", "full", "restart", "truncate"][rng.random_range(0..4)];
                    let done = writer.execute_batch(&format!("pragma wal_checkpoint({kind})"));
                    done.unwrap();
                }
                7 => writer.execute_batch("begin; update t set v = 'gone'; rollback").unwrap(),
                8 if rng.random_bool(0.3) => backup = None,
                _ => {
                    let mut made = None;
                    if backup.is_none() {
                        let source = Source::open(&file).unwrap();
                        let (started, ship) = block_on(Backup::start(
                            &*remote,
                            source,
                            &name(),
                            &mut random,
                            step,
                            &mut |_| {},
                        ))
                        .unwrap();
                        (backup, made) = (Some(started), ship);
                    }
                    let backup = backup.as_mut().unwrap();
                    if backup.may_have_changed().unwrap() {
                        let shipped =
                            block_on(backup.ship(&*remote, &mut random, step, &mut |_| {})).unwrap();
                        partial += usize::from(shipped.is_some_and(|ship| !ship.whole));
                        made = shipped.or(made);
                    }
                    let now = dump(&writer);
                    match made {
                        Some(ship) => {
                            states.insert(ship.lsn, now);
                        }
                        None => assert_eq!(
                            states.last_key_value().map(|(_, state)| state),
                            Some(&now),
                            "seed {seed}, step {step}"
                        ),
                    }
                }
            }
        }
        for (lsn, state) in &states {
            assert_eq!(&exported(&remote, Some(At::Lsn(*lsn))), state, "seed {seed}, {lsn:?}");
        }
        assert!(seed != 0 || (states.len() > 3 && partial > 0), "{} {partial}", states.len());
    }
}

#[test]
fn a_backup_refuses_what_it_cannot_keep() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plain.db");
    fill(&Connection::open(&file).unwrap(), 10);
    let remote: SharedRemote = Arc::new(MemoryRemote::new());
    let source = Source::open(&file).unwrap();
    let error = block_on(Backup::start(&*remote, source, &name(), &mut ids(1), 1, &mut |_| {})).unwrap_err();
    assert!(error.to_string().contains("journal_mode=WAL"), "{error}");
    // Two backups of one volume: the second to ship loses, and says so.
    let file = folder.path().join("wal.db");
    let writer = Connection::open(&file).unwrap();
    writer.execute_batch("pragma journal_mode = wal").unwrap();
    fill(&writer, 10);
    let start = |seed| {
        let source = Source::open(&file).unwrap();
        block_on(Backup::start(&*remote, source, &name(), &mut ids(seed), 1, &mut |_| {})).unwrap().0
    };
    let (mut one, mut two) = (start(1), start(2));
    writer.execute_batch("insert into t values(1000, 'x')").unwrap();
    assert!(block_on(one.ship(&*remote, &mut ids(3), 2, &mut |_| {})).unwrap().is_some());
    let error = block_on(two.ship(&*remote, &mut ids(4), 2, &mut |_| {})).unwrap_err();
    assert!(error.to_string().contains("another writer"), "{error}");
}
