//! speedtest1, SQLite's own benchmark, from Debian's source package.
//!
//! It is compiled as a loadable extension (`peers/speedtest1-extension.c`), so that it runs on the very SQLite that
//! the bench and every VFS here use. Each run is a process of its own in an empty folder.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use rusqlite::Connection;
use tokio::process::Command;

use super::report::{Figure, Group, Row, Unit};
use super::systems::Place;
use crate::Order;
use crate::peers::{Install, Peer, Peers, engines, skipped};
use crate::process::finish;
use crate::server::scratch;

/// Its own measure of how much is done; 100 is its default.
const SIZE: &str = "100";
const ROUNDS: usize = 3;

/// A test's number and words, and its seconds; the last is the total.
type Times = Vec<(String, f64)>;

/// Runs the extension `path` in this process with `arguments`; its table goes to stdout.
#[allow(unsafe_code, reason = "a foreign library, and its arguments in the environment")]
pub fn run_in_process(path: &Path, arguments: &str) -> anyhow::Result<()> {
    // SAFETY: called before this process has another thread that reads the environment.
    unsafe { std::env::set_var("BENCH_SPEEDTEST1", arguments) };
    let db = Connection::open_in_memory()?;
    // SAFETY: compiled by us from SQLite's source, for this interface.
    unsafe {
        db.load_extension_enable()?;
        db.load_extension(path, None::<&str>)?;
    }
    Ok(())
}

/// Measures.
pub async fn run(_order: &Order, peers: &mut Peers) -> anyhow::Result<Group> {
    let mut group = Group {
        title: format!("speedtest1 --size {SIZE}, through the VFS and the local store, nothing pushed"),
        systems: Vec::new(),
        rows: Vec::new(),
        notes: Vec::new(),
    };
    let library = match library(peers.install()).await {
        Ok(library) => library,
        Err(error) => {
            skipped("speedtest1", &error);
            group.notes.push(format!("Left out: {error:#}"));
            return Ok(group);
        }
    };
    let upstream = peers.engine(Peer::UpstreamGraft).await;
    // Name, system, a peer's program. Ours and SQLite's with equal durability stand beside each other.
    let mut runs = vec![
        ("graft, fsync".to_string(), "graft-sync", None),
        ("SQLite WAL, fsync".into(), "sqlite-full", None),
        ("graft, no fsync".into(), "graft-buffered", None),
        ("SQLite WAL, no fsync".into(), "sqlite-normal", None),
    ];
    if let Some(path) = upstream {
        runs.push((format!("upstream Graft {}, no fsync", engines::UPSTREAM), "", Some(path)));
    }
    let mut found: Vec<Vec<Times>> = runs.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for ((name, system, program), found) in runs.iter().zip(&mut found) {
            match one(&library, system, program.clone()).await {
                Ok(times) => found.push(times),
                Err(error) if system.starts_with("graft") => return Err(error.context(name.clone())),
                Err(error) => {
                    skipped(name, &error);
                    group.notes.push(format!("Left out: {name}: {error:#}"));
                }
            }
        }
    }
    // The round with the median total speaks for its system.
    let typical: Vec<Option<Times>> = found
        .into_iter()
        .map(|mut rounds| {
            rounds.sort_by(|a, b| total(a).total_cmp(&total(b)));
            rounds.get(rounds.len() / 2).cloned()
        })
        .collect();
    group.systems = runs.iter().map(|(name, _, _)| name.clone()).collect();
    let figures = typical.iter().map(|times| times.as_ref().map(|times| Figure::of(total(times) * 1e3)));
    group.rows.push(Row {
        name: "all tests".into(),
        unit: Unit::Ms,
        target: "≤ 1.2× SQLite's",
        figures: figures.collect(),
    });
    for (ours, theirs) in [(0, 1), (2, 3)] {
        if let (Some(ours), Some(theirs)) = (&typical[ours], &typical[theirs]) {
            group.notes.push(costliest(ours, theirs));
        }
    }
    group.notes.push(format!("× is that system's figure in multiples of graft with an fsync. speedtest1 from Debian's sources of sqlite3, on the SQLite of the bench; the round with the median total of {ROUNDS}."));
    group.notes.push("Fsync: ours waits for its journal at each commit; SQLite with synchronous=FULL. No fsync: SQLite with synchronous=OFF.".into());
    Ok(group)
}

fn total(times: &Times) -> f64 {
    times.last().map_or(f64::NAN, |(_, seconds)| *seconds)
}

/// Where ours loses most time.
fn costliest(ours: &Times, theirs: &Times) -> String {
    let pairs = ours.iter().zip(theirs).filter(|((a, _), (b, _))| a == b);
    let mut lost: Vec<_> =
        pairs.map(|((name, ours), (_, theirs))| (ours - theirs, name, *ours, *theirs)).collect();
    lost.pop();
    lost.sort_by(|a, b| b.0.total_cmp(&a.0));
    let text = lost.iter().take(4).map(|(_, name, ours, theirs)| format!("{name} {ours:.3} s ({theirs:.3})"));
    format!(
        "Where ours loses most to SQLite ({:.3} s to {:.3} s in all): {}.",
        total(ours),
        total(theirs),
        text.collect::<Vec<_>>().join("; ")
    )
}

async fn one(library: &Path, system: &str, program: Option<PathBuf>) -> anyhow::Result<Times> {
    let dir = scratch()?;
    let place = Place { dir: dir.path().into(), extension: None, note: String::new(), rows: 0 };
    let mut command = match program {
        Some(peer) => Command::new(peer),
        None => Command::new(std::env::current_exe()?),
    };
    command.arg("speedtest1");
    if !system.is_empty() {
        command.arg(system);
    }
    command.arg(serde_json::to_string(&place)?).arg(library).arg(SIZE);
    command.current_dir(dir.path()).stdin(Stdio::null());
    parse(&finish(command).await?)
}

/// The table that it prints.
fn parse(text: &str) -> anyhow::Result<Times> {
    let line = |line: &str| {
        let (name, seconds) = line.rsplit_once(' ')?;
        let seconds = seconds.strip_suffix('s')?.parse().ok()?;
        Some((name.trim().trim_end_matches('.').trim().to_string(), seconds))
    };
    let times: Times = text.lines().filter_map(line).collect();
    if times.last().is_none_or(|(name, _)| name != "TOTAL") {
        bail!("speedtest1 printed no total: {text}");
    }
    Ok(times)
}

/// The extension, fetched and compiled if it is not here.
async fn library(install: Install) -> anyhow::Result<PathBuf> {
    let dir = engines::home()?.join("speedtest1");
    let library = dir.join("libspeedtest1.so");
    if library.exists() {
        return Ok(library);
    }
    if !install.packages {
        bail!("{} is not there, and --no-install was given", library.display());
    }
    println!("fetching SQLite's sources from Debian, for speedtest1");
    let sources = Path::new("/etc/apt/sources.list.d/debian.sources");
    let text = std::fs::read_to_string(sources)
        .with_context(|| format!("{} is not there: this is no Debian", sources.display()))?;
    for part in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(dir.join(part))?;
    }
    // This machine's own list, which has the programs, and the same with their sources.
    let list = dir.join("all.sources");
    std::fs::write(&list, text.replace("Types: deb\n", "Types: deb deb-src\n"))?;
    let apt = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        for (option, path) in [
            ("Dir::Etc::SourceList", &list),
            ("Dir::State::lists", &dir.join("lists")),
            ("Dir::Cache", &dir.join("cache")),
        ] {
            command.arg("-o").arg(format!("{option}={}", path.display()));
        }
        // Without the user `_apt` it need not be able to write here.
        command.args(["-qq", "-o", "Dir::Etc::SourceParts=/dev/null", "-o", "APT::Sandbox::User=root"]);
        command.args(args).current_dir(&dir);
        command
    };
    finish(apt("apt-get", &["update"])).await?;
    finish(apt("apt-get", &["source", "--download-only", "sqlite3"])).await?;
    finish(apt("apt-get", &["download", "libsqlite3-dev"])).await?;
    let mut unpack = Command::new("sh");
    unpack.current_dir(&dir).args([
        "-ec",
        "
        tar -xf sqlite3_*.orig.tar.xz --strip-components=2 --wildcards '*/test/speedtest1.c'
        for package in libsqlite3-dev_*.deb; do dpkg-deb -x \"$package\" headers; done",
    ]);
    finish(unpack).await?;
    let mut compile = Command::new("cc");
    compile.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library);
    compile.arg("-I").arg(&dir).arg("-I").arg(dir.join("headers/usr/include"));
    compile.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/speedtest1-extension.c"));
    finish(compile).await?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_table_is_read() {
        let text = "-- Speedtest1 for SQLite 3.54.1\n 100 - 50000 INSERTs into table with no index......    0.123s\n       TOTAL........    4.500s\n";
        let times = parse(text).unwrap();
        assert_eq!(
            times,
            [("100 - 50000 INSERTs into table with no index".to_string(), 0.123), ("TOTAL".into(), 4.5)]
        );
        assert!(parse("it crashed").is_err());
        let theirs = vec![(times[0].0.clone(), 0.023), ("TOTAL".into(), 4.0)];
        assert!(costliest(&times, &theirs).contains("no index 0.123 s (0.023)"));
    }
}
