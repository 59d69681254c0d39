//! `graft sql`: SQLite on a volume, straight from the store.

use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use graft::checkpoint::Policy as CheckpointPolicy;
use graft::fetch::{Fetch, RemoteFetch};
use graft::publish::PublishError;
use graft::remote::SharedRemote;
use graft::store::{FjallStore, SharedStore};
use graft::volume::{Options, PushError, Pushed, Volume, push};
use graft::{CommitId, Lsn, ModuleHash, VolumeId, VolumeName, catalog};
use rand::Rng as _;
use reducers_abi::{Runtime, Value};
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::types::ValueRef;
use rusqlite::{Batch, Connection};
use serde::Serialize;
use serde_json::Value as Json;
use sqlsync_layer::actor::{ModuleError, Modules};
use sqlsync_layer::document::replica::publishing;
use sqlsync_layer::document::{
    BRANCH_NAMES, BranchError, Config, Event, Progress, RebaseError, Replica, branch_name,
};
use sqlsync_layer::payload::Payload;
use sqlsync_layer::protocol::ClientId;
use sqlsync_layer::rebase::Policy;
use sqlsync_layer::upkeep::Followed;
use sqlsync_layer::value::to_json;
use sqlsync_layer::vfs::{Database, Warmth, warm};

use crate::args::{OnConflict, Sql};
use crate::moment::Held;
use crate::{Outcome, output};

/// Times that a write is run again when another writer commits first.
const TRIES_MAX: usize = 10;

/// What the statements answered.
#[derive(Debug, Default)]
struct Answer {
    /// Of the last statement that has columns.
    columns: Vec<String>,
    rows: Vec<Vec<Json>>,
    /// Rows changed by all of them.
    changes: u64,
}

#[derive(Serialize)]
struct SqlLine<'a> {
    columns: &'a [String],
    rows: &'a [Vec<Json>],
    changes: u64,
    /// The commit that was read, or made.
    lsn: Lsn,
    /// Volumes that were made of kept changes.
    #[serde(skip_serializing_if = "<[MadeBranch]>::is_empty")]
    branches: &'a [MadeBranch],
    /// Of a state of the past: whether garbage collection kept it while it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<&'a str>,
}

/// A volume that was made of kept changes.
#[derive(Debug, Serialize)]
struct MadeBranch {
    volume: String,
    id: String,
    lsn: Lsn,
}

pub async fn run(args: Sql) -> anyhow::Result<Outcome> {
    let name: VolumeName = args.volume.parse()?;
    let remote = graft::remote::open(&args.store.store)?;
    let id = catalog::resolve(&*remote, &name).await?;
    if let Some(moment) = args.at {
        let opened = Volume::open_at(&*remote, id, moment.0, Options::default().cache_bytes).await;
        let opened = opened.map_err(|error| anyhow!(error.told(&name, moment.0)))?;
        // A long query must not lose its state to garbage collection half-way.
        let held = Held::begin(&remote, &opened.volume.tip());
        let (volume, fetch) = (Arc::new(opened.volume), Arc::new(RemoteFetch::new(remote)));
        warm_up(&fetch, &volume).await;
        let database = Database::new(volume, fetch);
        let (lsn, sql) = (database.volume().status().lsn, args.sql.clone());
        let ran = tokio::task::spawn_blocking(move || execute(&database, &sql, false)).await;
        let lease = held.end().await;
        let answer = ran?.with_context(|| format!("volume `{name}` at lsn {lsn}"))?;
        return print(&answer, lsn, &[], Some(&lease), &args);
    }
    let store = match &args.data {
        Some(dir) => Some(Arc::new(FjallStore::open(dir)?) as SharedStore),
        None => None,
    };
    let options = Options { store, disk_bytes: args.disk_bytes, ..Options::default() };
    let branches = match args.on_conflict {
        Some(how) => settle_kept(&name, &remote, id, &options, how, args.branch_name.as_deref()).await?,
        None => Vec::new(),
    };
    let mut followed = Followed::open(&*remote, id, options).await?;
    let volume = followed.volume().clone();
    if volume.status().ahead > 0 && !args.write {
        say!("note: this replica holds local commits that the store does not have");
    }
    let fetch = Arc::new(RemoteFetch::new(remote.clone()));
    warm_up(&fetch, &volume).await;
    let database = Database::new(volume.clone(), fetch);
    if args.discard_kept {
        let dropped = volume.reset()?.len();
        say!("dropped {}", output::count(dropped, "kept change"));
        followed.pull(&*remote).await?;
    } else if args.write && volume.status().ahead > 0 {
        push_kept(&name, &remote, &mut followed).await?;
    }
    let mut tries = 0;
    let (answer, lsn) = loop {
        let (database, sql, write) = (database.clone(), args.sql.clone(), args.write);
        let ran = tokio::task::spawn_blocking(move || execute(&database, &sql, write)).await?;
        if ran.is_err() && args.write {
            // Statements before the one that failed are not to be pushed by a later run.
            volume.reset()?;
        }
        let answer = ran.with_context(|| format!("volume `{name}`"))?;
        if !args.write {
            break (answer, volume.status().lsn);
        }
        tries += 1;
        match publish(&remote, &volume).await {
            Ok(Some(lsn)) => break (answer, lsn),
            Ok(None) => break (answer, volume.status().lsn),
            // Another writer committed first, so nothing of ours happened: run it again on top.
            Err(PushError::Publish(PublishError::Rejected { .. })) if tries < TRIES_MAX => {
                volume.reset()?;
                followed.pull(&*remote).await?;
            }
            Err(error) if args.data.is_none() => {
                return Err(
                    anyhow!(error).context(format!("volume `{name}`: nothing is known to be committed"))
                );
            }
            Err(error) => bail!("volume `{name}`: {error}; the change is kept in the data directory"),
        }
    };
    if args.write {
        // Durable already, so that a failure is no more than a note: the next writer does it.
        if let Err(error) = followed.checkpoint(&*remote, &CheckpointPolicy::default()).await {
            tracing::warn!(%error, "no checkpoint was written");
        }
    }
    print(&answer, lsn, &branches, None, &args)
}

/// Fetches what every query reads in one request. The query fetches what it lacks, if that fails.
async fn warm_up(fetch: &RemoteFetch, volume: &Volume) {
    if let Err(error) = warm(fetch.fetcher(), volume, Warmth::Query).await {
        tracing::debug!(%error, "not warmed");
    }
}

fn print(
    answer: &Answer,
    lsn: Lsn,
    branches: &[MadeBranch],
    lease: Option<&str>,
    args: &Sql,
) -> anyhow::Result<Outcome> {
    if args.json {
        output::json(&SqlLine {
            columns: &answer.columns,
            rows: &answer.rows,
            changes: answer.changes,
            lsn,
            branches,
            lease,
        })?;
        return Ok(Outcome::Done);
    }
    if !answer.columns.is_empty() {
        output::line(&output::table(&answer.columns, &answer.rows))?;
        output::line(&format!("({}, lsn {lsn})", output::count(answer.rows.len(), "row")))?;
    }
    if args.write {
        output::line(&format!("{} changed, lsn {lsn}", output::count(answer.changes as usize, "row")))?;
    }
    Ok(Outcome::Done)
}

/// Pushes what an earlier run could not. Nothing new runs before that is settled.
async fn push_kept(name: &VolumeName, remote: &SharedRemote, followed: &mut Followed) -> anyhow::Result<()> {
    let kept = output::count(followed.volume().status().ahead, "change");
    match publish(remote, followed.volume()).await {
        Ok(_) => Ok(followed.pull(&**remote).await?),
        Err(PushError::Publish(error @ PublishError::Forgotten { .. })) => bail!(
            "volume `{name}`: {kept} kept in the data directory may be committed or not: {error}; make a volume of \
             them with --on-conflict branch, or look with `graft sql` and drop them with --discard-kept"
        ),
        Err(PushError::Publish(PublishError::Rejected { .. })) => bail!(
            "volume `{name}`: {kept} kept in the data directory cannot be pushed any more, because another writer \
             committed meanwhile; merge them with --on-conflict merge, or make a volume of them with --on-conflict branch; or read what you need with `graft sql` and the \
             same --data, then drop them with --discard-kept and run the SQL again"
        ),
        Err(error) => {
            bail!("volume `{name}`: {kept} kept in the data directory could not be pushed yet: {error}")
        }
    }
}

/// Pushes what an earlier run could not, on top of what others committed meanwhile. What cannot be put
/// there becomes a volume of its own; until it is one, it is kept in the data directory, beside the
/// replica, and published by the next run that comes here.
async fn settle_kept(
    name: &VolumeName,
    remote: &SharedRemote,
    id: VolumeId,
    options: &Options,
    how: OnConflict,
    branch_name: Option<&str>,
) -> anyhow::Result<Vec<MadeBranch>> {
    let branch_name: Option<VolumeName> = branch_name.map(str::parse).transpose()?;
    let opened = Volume::open(&**remote, id, options.clone()).await?;
    let policy = match how {
        OnConflict::Merge => Policy::Merge,
        OnConflict::Branch => Policy::Fork,
    };
    let config = Config { policy, ..Config::default() };
    let client = ClientId::new(format!("{:032x}", rand::rng().random::<u128>()));
    let client = client.context("32 hex digits are a client id")?;
    let fetch: Arc<dyn Fetch> = Arc::new(RemoteFetch::new(remote.clone()));
    let kept = options.clone();
    let opening = move || Replica::open(opened, &kept, fetch, Arc::new(NoModules), client, config);
    let mut replica = tokio::task::spawn_blocking(opening).await??;
    let mut settled = replica.status().ahead == 0;
    for _ in 0..TRIES_MAX {
        if settled {
            break;
        }
        let volume = replica.volume().clone();
        let lost = match publish(remote, &volume).await {
            Ok(_) => false,
            Err(PushError::Publish(PublishError::Rejected { .. })) => true,
            // Nobody can say any more. What changed since covers it, if it was committed, so that it is
            // not merged onto itself.
            Err(PushError::Publish(PublishError::Forgotten { .. })) => {
                if let Some(pending) = volume.pending() {
                    volume.forget_pending(&pending)?;
                }
                true
            }
            Err(error) => bail!("volume `{name}`: kept changes could not be pushed yet: {error}"),
        };
        let pulled = volume.pull(&**remote).await?;
        let settling = move || -> Result<Replica, RebaseError> {
            let mut progress = replica.pulled(pulled)?;
            while progress != Progress::Done {
                progress = replica.step(u64::MAX)?;
            }
            Ok(replica)
        };
        replica = tokio::task::spawn_blocking(settling).await??;
        for event in replica.take_events() {
            match event {
                Event::Merged { transplanted } => {
                    say!("merged {}", output::count(transplanted, "kept change"));
                }
                Event::Forked { to, commits, why } => {
                    say!("put {} aside as branch {to}: {why}", output::count(commits, "change"));
                }
                other => say!("{other:?}"),
            }
        }
        settled = !lost && replica.status().ahead == 0;
    }
    if !settled {
        bail!("volume `{name}`: other writers committed first {TRIES_MAX} times; run it again");
    }
    publish_branches(name, remote, &mut replica, branch_name).await
}

/// Makes a volume of every branch in the data directory: the first called `wanted`, if anything is.
async fn publish_branches(
    name: &VolumeName,
    remote: &SharedRemote,
    replica: &mut Replica,
    mut wanted: Option<VolumeName>,
) -> anyhow::Result<Vec<MadeBranch>> {
    let mut made = Vec::new();
    let numbers: Vec<u64> = replica.branches().keys().copied().collect();
    for number in numbers {
        let child = VolumeId(rand::rng().random());
        let asked = match wanted.take() {
            Some(wanted) => wanted,
            None => branch_name(BRANCH_NAMES, name, child)?,
        };
        let (to, volume, lsn) = loop {
            let publication = replica.begin_publication(number, &asked, child, now_ms())?;
            let result = publishing::publish(&**remote, &publication).await;
            replica.publication_ended(&publication, &result)?;
            match result {
                Ok(lsn) => break (publication.name, publication.volume, lsn),
                // An earlier run chose that name.
                Err(BranchError::NameTaken { .. } | BranchError::Overtaken { .. })
                    if publication.name != asked => {}
                Err(error) => {
                    return Err(anyhow!(error).context(format!(
                        "volume `{name}`: branch {number} stays in the data directory, and is published by the next \
                         run with --on-conflict"
                    )));
                }
            }
        };
        say!("branch {number} is volume `{to}` now, at lsn {lsn}");
        made.push(MadeBranch { volume: to.to_string(), id: volume.to_string(), lsn });
    }
    Ok(made)
}

/// Plain SQL needs no reducers.
#[derive(Debug)]
struct NoModules;
impl Modules for NoModules {
    fn load(&self, module: ModuleHash) -> Result<Arc<dyn Runtime>, ModuleError> {
        let message =
            "the data directory holds mutations of a document; open it with the program that made them"
                .into();
        Err(ModuleError::Unavailable { module, message })
    }
}

/// Pushes what is local. `None` where there was nothing.
async fn publish(remote: &SharedRemote, volume: &Volume) -> Result<Option<Lsn>, PushError> {
    let mut unknown = 0;
    loop {
        let pushed =
            push(&**remote, volume, Payload::of_locals, || CommitId(rand::rng().random()), now_ms()).await;
        match pushed {
            Ok(Pushed::Durable(lsn)) => return Ok(Some(lsn)),
            Ok(Pushed::Nothing) => return Ok(None),
            // The same bytes again, so that whichever try lands is the same commit.
            Err(PushError::Publish(PublishError::Unknown { .. } | PublishError::Upload { .. }))
                if unknown < 3 =>
            {
                unknown += 1;
                tokio::time::sleep(std::time::Duration::from_millis(100 << unknown)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Runs every statement. Blocks.
fn execute(database: &Arc<Database>, sql: &str, write: bool) -> anyhow::Result<Answer> {
    let (connection, control) =
        if write { database.connect_recorded()? } else { database.connect_read_only()? };
    let ran = statements(&connection, sql);
    let ended = if write && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK")?;
        Err(anyhow!("the SQL began a transaction and did not end it, so it was rolled back; add COMMIT"))
    } else {
        Ok(())
    };
    match ran {
        Ok(answer) => ended.map(|()| answer),
        Err(error) => Err(match control.take_failure() {
            Some(cause) => anyhow!("{cause}"),
            None if !write && is_read_only(&error) => {
                anyhow!("the SQL changes the volume; allow it with --write")
            }
            None => error.into(),
        }),
    }
}

fn statements(connection: &Connection, sql: &str) -> rusqlite::Result<Answer> {
    let mut answer = Answer::default();
    let mut batch = Batch::new(connection, sql);
    while let Some(mut statement) = batch.next()? {
        if statement.column_count() == 0 {
            let changed = statement.raw_execute()?;
            // SQLite answers the last change's count again for statements that change no rows.
            if !statement.readonly() {
                answer.changes += changed as u64;
            }
            continue;
        }
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let before = connection.total_changes();
        let mut rows = Vec::new();
        let mut found = statement.raw_query();
        while let Some(row) = found.next()? {
            let values: rusqlite::Result<Vec<Json>> =
                (0..columns.len()).map(|i| Ok(json(row.get_ref(i)?))).collect();
            rows.push(values?);
        }
        answer.changes += connection.total_changes() - before;
        (answer.columns, answer.rows) = (columns, rows);
    }
    Ok(answer)
}

fn json(value: ValueRef<'_>) -> Json {
    to_json(&match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(i) => Value::Integer(i),
        ValueRef::Real(r) => Value::Real(r),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    })
}

fn is_read_only(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::ReadOnly)
}

#[allow(clippy::disallowed_methods, reason = "a driver: it gives commits their time")]
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
