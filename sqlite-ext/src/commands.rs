//! What the extension can be asked: each command is a table, and a pragma of the same name.
//!
//! `SELECT * FROM graft_status` answers columns; `PRAGMA graft_status` answers the same as one JSON text.
//! Column names are promises: scripts rely on them, and `docs/sqlite.md` lists them.

use std::path::Path;

use graft::checkpoint::Policy;
use graft::fetch::Fetcher;
use graft::publish::PublishError;
use graft::time::At;
use graft::volume::{PushError, Pushed, Volume, push};
use graft::{CommitId, Lsn, PageSet, VolumeId, VolumeName, catalog, fork, history, hydrate};
use sqlsync_layer::payload::Payload;
use sqlsync_layer::transfer::export::export;
use sqlsync_layer::transfer::{checkpoint_if_due, import};

use crate::config::Config;
use crate::host::Host;
use crate::session::{self, CACHE_BYTES, Open, now_ms, random, runtime};

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Null,
    Integer(i64),
    Text(String),
}

impl From<u64> for Value {
    fn from(value: u64) -> Value {
        Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
    }
}
impl From<u32> for Value {
    fn from(value: u32) -> Value {
        Value::Integer(value.into())
    }
}
impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Integer(value.into())
    }
}
impl From<String> for Value {
    fn from(value: String) -> Value {
        Value::Text(value)
    }
}
impl From<Lsn> for Value {
    fn from(value: Lsn) -> Value {
        value.0.into()
    }
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, Into::into)
    }
}

type Rows = Result<Vec<Vec<Value>>, String>;

/// One thing to ask.
pub struct Command {
    pub name: &'static str,
    pub columns: &'static [&'static str],
    pub arguments: &'static [&'static str],
    /// Whether it answers one row, always.
    single: bool,
    pub run: fn(Option<&Open>, &[Option<String>]) -> Rows,
}

/// Every command.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "graft_version",
        columns: &["version", "sqlite"],
        arguments: &[],
        single: true,
        run: version,
    },
    Command { name: "graft_errors", columns: &["message"], arguments: &[], single: false, run: errors },
    Command {
        name: "graft_volumes",
        columns: &["name", "id"],
        arguments: &["remote"],
        single: false,
        run: volumes,
    },
    Command {
        name: "graft_info",
        columns: &["name", "id", "remote", "data", "page_size", "pages", "lsn", "read_only", "offline"],
        arguments: &[],
        single: true,
        run: info,
    },
    Command {
        name: "graft_status",
        columns: &["name", "lsn", "ahead", "pending", "pages", "writing"],
        arguments: &[],
        single: true,
        run: status,
    },
    Command {
        name: "graft_log",
        columns: &["lsn", "id", "time_ms", "pages", "pages_written", "segments"],
        arguments: &["limit_rows"],
        single: false,
        run: log,
    },
    Command {
        name: "graft_fetch",
        columns: &["lsn", "remote_lsn", "behind", "pages_changed"],
        arguments: &[],
        single: true,
        run: look,
    },
    Command {
        name: "graft_pull",
        columns: &["lsn_before", "lsn", "pages_changed", "discarded"],
        arguments: &["mode"],
        single: true,
        run: pull,
    },
    Command { name: "graft_push", columns: &["lsn", "pushed"], arguments: &[], single: true, run: push_all },
    Command {
        name: "graft_hydrate",
        columns: &["pages_fetched", "pages"],
        arguments: &[],
        single: true,
        run: hydrate_here,
    },
    Command {
        name: "graft_fork",
        columns: &["name", "id", "parent", "lsn"],
        arguments: &["fork", "at"],
        single: true,
        run: fork_here,
    },
    Command {
        name: "graft_verify",
        columns: &[
            "lsn",
            "commits_checked",
            "checkpoints_checked",
            "pages_checked",
            "orphans",
            "key",
            "problem",
        ],
        arguments: &[],
        single: false,
        run: verify,
    },
    Command {
        name: "graft_import",
        columns: &["name", "id", "lsn", "page_size", "pages"],
        arguments: &["file", "volume", "remote"],
        single: true,
        run: import_file,
    },
    Command {
        name: "graft_export",
        columns: &["file", "lsn", "page_size", "pages"],
        arguments: &["to_file", "at"],
        single: true,
        run: export_file,
    },
];

/// The pragma `name`, as JSON; `None` where there is none. Arguments are separated by commas.
pub fn pragma(open: &Open, name: &str, argument: Option<&str>) -> Option<Result<String, String>> {
    let command = COMMANDS.iter().find(|command| command.name == name)?;
    let mut given = argument.map(|text| text.split(',')).into_iter().flatten();
    let arguments: Vec<Option<String>> =
        command.arguments.iter().map(|_| given.next().map(|text| text.trim().to_owned())).collect();
    if given.next().is_some() {
        let takes = command.arguments.len();
        return Some(Err(format!("PRAGMA {name} takes {takes} arguments, separated by commas")));
    }
    let object = |row: &Vec<Value>| {
        let fields = command.columns.iter().zip(row).map(|(name, value)| {
            let value = match value {
                Value::Null => serde_json::Value::Null,
                Value::Integer(value) => (*value).into(),
                Value::Text(text) => text.as_str().into(),
            };
            ((*name).to_owned(), value)
        });
        serde_json::Value::Object(fields.collect())
    };
    Some((command.run)(Some(open), &arguments).map(|rows| match rows.first() {
        Some(row) if command.single => object(row).to_string(),
        _ => serde_json::Value::Array(rows.iter().map(object).collect()).to_string(),
    }))
}

fn volume(open: Option<&Open>) -> Result<&Open, String> {
    open.ok_or_else(|| {
        "this database is no volume: open file:NAME?vfs=graft, or name its schema as the last argument".into()
    })
}

fn required<'a>(arguments: &'a [Option<String>], at: usize, what: &str) -> Result<&'a str, String> {
    arguments.get(at).and_then(|text| text.as_deref()).ok_or_else(|| format!("give {what}"))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[allow(unsafe_code, reason = "SQLite's version text")]
fn version(_: Option<&Open>, _: &[Option<String>]) -> Rows {
    let sqlite = Host::get().map(|host| {
        // SAFETY: a static text of SQLite's.
        unsafe { std::ffi::CStr::from_ptr((host.libversion)()) }.to_string_lossy().into_owned()
    });
    Ok(vec![vec![env!("CARGO_PKG_VERSION").to_owned().into(), sqlite.into()]])
}

fn errors(open: Option<&Open>, _: &[Option<String>]) -> Rows {
    let connection = open.and_then(|open| open.control.take_failure()).map(|failure| failure.message);
    Ok(connection.into_iter().chain(session::last_error()).map(|message| vec![message.into()]).collect())
}

fn volumes(open: Option<&Open>, arguments: &[Option<String>]) -> Rows {
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let remote = match (&arguments[0], open) {
        (None, Some(open)) => open.session.remote.clone(),
        (Some(url), _) => graft::remote::open(url).map_err(text)?,
        (None, None) => graft::remote::open(&Config::find(&[])?.store()?).map_err(text)?,
    };
    runtime.block_on(async {
        let mut rows = Vec::new();
        for name in catalog::list(&*remote).await.map_err(text)? {
            let id = catalog::resolve(&*remote, &name).await.map_err(text)?;
            rows.push(vec![name.to_string().into(), id.to_string().into()]);
        }
        Ok(rows)
    })
}

fn info(open: Option<&Open>, _: &[Option<String>]) -> Rows {
    let session = &volume(open)?.session;
    let status = session.volume.status();
    Ok(vec![vec![
        session.name.to_string().into(),
        session.volume.id().to_string().into(),
        session.url().into(),
        session.data.as_ref().map(|dir| dir.display().to_string()).into(),
        session.volume.page_size().get().into(),
        status.pages.into(),
        status.lsn.into(),
        session.data.is_none().into(),
        session.offline.clone().into(),
    ]])
}

fn status(open: Option<&Open>, _: &[Option<String>]) -> Rows {
    let open = volume(open)?;
    let status = open.session.volume.status();
    Ok(vec![vec![
        open.session.name.to_string().into(),
        status.lsn.into(),
        (status.ahead as u64).into(),
        status.pending.into(),
        status.pages.into(),
        open.database.is_writing().into(),
    ]])
}

fn log(open: Option<&Open>, arguments: &[Option<String>]) -> Rows {
    const ROWS: usize = 100;
    let session = &volume(open)?.session;
    let limit = match &arguments[0] {
        Some(text) => text.parse().map_err(|_| format!("`{text}` is no number of rows"))?,
        None => ROWS,
    };
    let heads =
        runtime()?.block_on(history::log(&*session.remote, session.volume.id(), limit)).map_err(text)?;
    let row = |head: &graft::format::commit::Head| {
        vec![
            head.lsn.into(),
            head.id.to_string().into(),
            Value::Integer(head.time_ms),
            head.pages.into(),
            head.set.len().into(),
            (head.segments.len() as u64).into(),
        ]
    };
    Ok(heads.iter().map(row).collect())
}

/// Learns what the store has, and moves nothing.
fn look(open: Option<&Open>, _: &[Option<String>]) -> Rows {
    let session = &volume(open)?.session;
    let pulled = runtime()?.block_on(session.volume.pull(&*session.remote)).map_err(text)?;
    let lsn = session.volume.status().lsn;
    let mut changed = PageSet::new();
    pulled.heads.iter().for_each(|head| changed.union_with(&head.set.to_set()));
    let newest = pulled.heads.last().map(|head| head.lsn).or(pulled.jump.as_ref().map(|start| start.lsn));
    let remote_lsn = newest.unwrap_or(lsn);
    // Far behind, the commits in between are passed over, and which pages they changed is not known.
    let changed = pulled.jump.is_none().then(|| changed.len());
    Ok(vec![vec![lsn.into(), remote_lsn.into(), remote_lsn.0.saturating_sub(lsn.0).into(), changed.into()]])
}

fn pull(open: Option<&Open>, arguments: &[Option<String>]) -> Rows {
    let open = volume(open)?;
    let (session, volume) = (&open.session, &open.session.volume);
    if let Some(lsn) = session.at {
        return Err(format!(
            "this view stands still at lsn {lsn}; PRAGMA graft_open_at moves on to the newest"
        ));
    }
    if open.database.is_writing() {
        return Err("a transaction is writing to this volume; end it, then pull".into());
    }
    let discard = match arguments[0].as_deref() {
        None => false,
        Some("discard") => true,
        Some(other) => return Err(format!("`{other}`: give 'discard' to drop local commits, or nothing")),
    };
    let before = volume.status();
    let pulled = runtime()?.block_on(volume.pull(&*session.remote)).map_err(text)?;
    let mut discarded = 0;
    let newer = pulled.heads.last().map(|head| head.lsn).or(pulled.jump.as_ref().map(|start| start.lsn));
    if before.ahead > 0
        && let Some(newest) = newer
    {
        if !discard {
            return Err(format!(
                "{} local commits stand in the way of lsn {newest}; {}",
                before.ahead,
                session.ways_out()
            ));
        }
        discarded = volume.reset().map_err(text)?.len() as u64;
    }
    let changed = volume.absorb(pulled).map_err(text)?;
    Ok(vec![vec![before.lsn.into(), volume.status().lsn.into(), changed.len().into(), discarded.into()]])
}

fn push_all(open: Option<&Open>, _: &[Option<String>]) -> Rows {
    const TRIES_MAX: usize = 4;
    let session = &volume(open)?.session;
    let ahead = session.volume.status().ahead as u64;
    let mut fresh = [0; 16];
    random(&mut fresh)?;
    // One id for each commit: with the number of the try.
    let mut made = 0u8;
    let mut id = || {
        made = made.wrapping_add(1);
        fresh[0] ^= made;
        CommitId(fresh)
    };
    let runtime = runtime()?;
    let mut tries = 0;
    loop {
        let pushed =
            runtime.block_on(push(&*session.remote, &session.volume, Payload::of_locals, &mut id, now_ms()));
        match pushed {
            Ok(Pushed::Durable(lsn)) => {
                let policy = Policy::default();
                if session.volume.checkpoint_due(&policy) {
                    runtime.block_on(checkpoint_if_due(&*session.remote, session.volume.id(), &policy));
                }
                return Ok(vec![vec![lsn.into(), ahead.into()]]);
            }
            Ok(Pushed::Nothing) => return Ok(vec![vec![session.volume.status().lsn.into(), 0u64.into()]]),
            Err(PushError::Publish(PublishError::Unknown { .. } | PublishError::Upload { .. }))
                if tries < TRIES_MAX =>
            {
                tries += 1;
            }
            Err(PushError::Publish(PublishError::Rejected { lsn })) => {
                return Err(format!(
                    "another writer made lsn {lsn} first, so the {ahead} local commits cannot be pushed; {}",
                    session.ways_out()
                ));
            }
            Err(error) => return Err(format!("{error}; what was not pushed is kept, push again")),
        }
    }
}

fn hydrate_here(open: Option<&Open>, _: &[Option<String>]) -> Rows {
    let session = &volume(open)?.session;
    let (volume, tip) = (&session.volume, session.volume.tip());
    if session.data.is_none() {
        return Err(
            "without a data directory there is nowhere to keep the pages; open it with data=DIR".into()
        );
    }
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let fetcher = Fetcher::new(session.remote.clone());
    let done = runtime.block_on(hydrate::hydrate(&fetcher, volume, &tip, &mut |_| {})).map_err(text)?;
    Ok(vec![vec![done.fetched.into(), tip.pages().into()]])
}

/// A new volume that begins as this one is durable; its local commits stay here.
fn fork_here(open: Option<&Open>, arguments: &[Option<String>]) -> Rows {
    let session = &volume(open)?.session;
    let name: VolumeName =
        required(arguments, 0, "the new volume's name: graft_fork(NAME)")?.parse().map_err(text)?;
    let at = match (&arguments[1], session.volume.status().lsn) {
        (Some(at), _) => session::parse_at(at)?,
        (None, Lsn::ZERO) => At::Newest,
        (None, lsn) => At::Lsn(lsn),
    };
    let mut id = [0; 16];
    random(&mut id)?;
    let made = fork::create_once(&*session.remote, session.volume.id(), at, VolumeId(id), &name);
    let found = runtime()?.block_on(made).map_err(|error| error.told(&session.name, at))?;
    Ok(vec![vec![
        name.to_string().into(),
        VolumeId(id).to_string().into(),
        session.name.to_string().into(),
        found.lsn.into(),
    ]])
}

/// Reads what the volume's readable states are made of: one row for each thing that is wrong with an
/// object, and where nothing is, one row that says so.
fn verify(open: Option<&Open>, _: &[Option<String>]) -> Rows {
    let session = &volume(open)?.session;
    let report = runtime()?
        .block_on(graft::verify::verify(&*session.remote, session.volume.id(), &|_| {}))
        .map_err(text)?;
    let row = |finding: Option<&graft::verify::Finding>| {
        vec![
            report.lsn.into(),
            report.commits.into(),
            report.checkpoints.into(),
            report.pages.into(),
            (report.orphans.len() as u64).into(),
            finding.map(|finding| finding.key.clone()).into(),
            finding.map(|finding| finding.what.clone()).into(),
        ]
    };
    Ok(match report.findings.as_slice() {
        [] => vec![row(None)],
        findings => findings.iter().map(|finding| row(Some(finding))).collect(),
    })
}

fn import_file(open: Option<&Open>, arguments: &[Option<String>]) -> Rows {
    let file = Path::new(required(arguments, 0, "the file: graft_import(FILE, VOLUME)")?);
    let name: VolumeName =
        required(arguments, 1, "the new volume's name: graft_import(FILE, VOLUME)")?.parse().map_err(text)?;
    refuse_open_file(file)?;
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let remote = match (&arguments[2], open) {
        (None, Some(open)) => open.session.remote.clone(),
        (Some(url), _) => graft::remote::open(url).map_err(text)?,
        (None, None) => graft::remote::open(&Config::find(&[])?.store()?).map_err(text)?,
    };
    let mut seed = [0; 16];
    random(&mut seed)?;
    let mut made = 0u8;
    let mut ids = || {
        made = made.wrapping_add(1);
        seed[0] ^= made;
        seed
    };
    let imported = runtime
        .block_on(import(&*remote, file, &name, None, &mut ids, now_ms(), &mut |_| {}))
        .map_err(text)?;
    Ok(vec![vec![
        name.to_string().into(),
        imported.volume.to_string().into(),
        imported.lsn.into(),
        imported.page_size.get().into(),
        imported.pages.into(),
    ]])
}

fn export_file(open: Option<&Open>, arguments: &[Option<String>]) -> Rows {
    let session = &volume(open)?.session;
    let file = required(arguments, 0, "the file: graft_export(FILE)")?;
    refuse_open_file(Path::new(file))?;
    let past;
    let runtime = runtime()?;
    let volume = match &arguments[1] {
        Some(at) => {
            let at = session::parse_at(at)?;
            let opened = Volume::open_at(&*session.remote, session.volume.id(), at, CACHE_BYTES);
            past = runtime.block_on(opened).map_err(|error| error.told(&session.name, at))?.volume;
            &past
        }
        None => &*session.volume,
    };
    let tip = volume.tip();
    let _entered = runtime.enter();
    // A long export must not lose its state half-way.
    let _held = arguments[1].as_ref().map(|_| session::hold(&session.remote, volume)).transpose()?;
    runtime.block_on(export(&*session.remote, volume, &tip, Path::new(file), &mut |_| {})).map_err(text)?;
    Ok(vec![vec![
        file.to_owned().into(),
        tip.lsn().into(),
        volume.page_size().get().into(),
        tip.pages().into(),
    ]])
}

/// The system drops all locks that this process has on a file when any part of it closes the file. So a
/// file that the host's SQLite may have open is left alone.
#[cfg(target_os = "linux")]
fn refuse_open_file(file: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(wanted) = std::fs::metadata(file) else { return Ok(()) };
    let open = std::fs::read_dir("/proc/self/fd").map_err(text)?;
    for entry in open.flatten() {
        if let Ok(found) = std::fs::metadata(entry.path())
            && (found.dev(), found.ino()) == (wanted.dev(), wanted.ino())
        {
            return Err(format!(
                "{}: this process has it open; close it first, or use the command `graft`",
                file.display()
            ));
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn refuse_open_file(_file: &Path) -> Result<(), String> {
    Ok(())
}
