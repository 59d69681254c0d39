//! `graft dev`: build, deploy, write types, and again at every save.
//!
//! ```text
//! look ─changed→ build ─ok→ deploy ─ok→ write types ─┐
//!  ↑ every 300 ms    └─failed: said, and waited for the next save
//!  └──────────────────────────────────────────────────┘
//! ```
//!
//! Files are looked at by time and length, so nothing needs to be installed and every file system
//! will do. What was saved while a build ran is built next: the look that counts is the one before it.
//!
//! Invariant: an error of the app's (it does not compile, its migration fails) never ends the loop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use coordinator::{Config, Coordinator, Running};
use graft::VolumeName;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

use crate::args::Dev;
use crate::serve::Signals;
use crate::{Outcome, codegen, http, output};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Files looked at, at most: more are not an app's sources.
const FILES_MAX: usize = 10_000;

const TARGET: &str = "wasm32-unknown-unknown";

pub async fn run(args: Dev) -> anyhow::Result<Outcome> {
    let mut stop = Signals::new()?;
    let app = App::find(&args)?;
    let (url, embedded) = match &args.url {
        Some(url) => (url.clone(), None),
        None => {
            let running = serve(&args).await?;
            (running.url(), Some(running))
        }
    };
    output::line(&format!("volume {} at {url}", app.volume))?;
    let ended = tokio::select! {
        ended = app.follow(&url) => ended,
        () = stop.next() => Ok(()),
    };
    if let Some(running) = embedded
        && !running.shutdown().await
    {
        say!("warning: stopped before everything accepted was durable");
    }
    ended.map(|()| Outcome::Done)
}

async fn serve(args: &Dev) -> anyhow::Result<Running> {
    let store = std::path::absolute(args.dir.join(".graft"))?;
    let store = store.to_str().context("the app's path is not UTF-8; serve elsewhere, and give --url")?;
    let store = graft::remote::open(store)?;
    Ok(Coordinator::start(Config::new(store, args.listen)).await?)
}

/// Where modules come from.
enum Source {
    /// A crate's folder.
    Crate(PathBuf),
    /// A module that somebody else builds.
    Module(PathBuf),
}

/// What is built, and what from it.
struct App {
    source: Source,
    volume: VolumeName,
    types: Option<PathBuf>,
    connect_timeout: u64,
}

impl App {
    fn find(args: &Dev) -> anyhow::Result<App> {
        let dir = args.dir.canonicalize().with_context(|| {
            format!("there is no folder `{}`; `graft new NAME` makes an app", args.dir.display())
        })?;
        let source = match &args.wasm {
            Some(module) => Source::Module(module.clone()),
            None => {
                let crates = [dir.join("reducer"), dir.clone()];
                let found = crates.into_iter().find(|folder| folder.join("Cargo.toml").is_file());
                Source::Crate(found.with_context(|| {
                    format!(
                        "`{}` has no reducer/Cargo.toml; `graft new NAME` makes an app, --wasm MODULE.wasm takes a module",
                        args.dir.display()
                    )
                })?)
            }
        };
        let volume = match &args.volume {
            Some(name) => name.parse()?,
            None => {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                name.parse().with_context(|| format!("the folder's name, `{name}`; give --volume NAME"))?
            }
        };
        let web = dir.join("web");
        let types = args.types.clone().or_else(|| web.is_dir().then(|| web.join("src/mutations.ts")));
        Ok(App { source, volume, types, connect_timeout: args.connect_timeout })
    }

    /// Goes on until stdout is closed.
    async fn follow(&self, url: &str) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut built: Option<Look> = None;
        let mut deployed: Option<Vec<u8>> = None;
        loop {
            ticks.tick().await;
            let look = self.look();
            if built.as_ref() == Some(&look) {
                continue;
            }
            built = Some(look);
            match self.round(url, &mut deployed).await {
                Ok(()) => {}
                Err(error) if output::is_broken_pipe(&error) => return Err(error),
                Err(error) => {
                    say!("error: {}", output::reason(&error));
                    say!("waiting for the next save");
                }
            }
        }
    }

    async fn round(&self, url: &str, deployed: &mut Option<Vec<u8>>) -> anyhow::Result<()> {
        let module = match &self.source {
            Source::Crate(folder) => build(folder).await?,
            Source::Module(module) => module.clone(),
        };
        let bytes = codegen::read_module(&module)?;
        if deployed.as_ref() == Some(&bytes) {
            return Ok(output::line("the same module: nothing to deploy")?);
        }
        let done = http::deploy_module(url, &self.volume, bytes.clone(), self.connect_timeout)
            .await
            .with_context(|| format!("cannot deploy to volume `{}`", self.volume))?;
        // Types first: who reads that it is deployed finds them.
        if let Some(types) = &self.types {
            let reducers = codegen::describe(bytes.clone()).await?;
            let name = self.volume.as_str();
            let text = codegen::typescript(&reducers, name, &codegen::interface_name(name), true);
            if codegen::write_if_changed(types, &text)? {
                output::line(&format!("wrote {}", types.display()))?;
            }
        }
        *deployed = Some(bytes);
        Ok(output::line(&http::deployed_text(&self.volume, &done))?)
    }

    /// What would be built now.
    fn look(&self) -> Look {
        let mut look = Look::new();
        match &self.source {
            Source::Module(module) => note(module, &mut look),
            Source::Crate(folder) => walk(folder, &mut look),
        }
        look
    }
}

/// Files with their times and lengths. One that cannot be read has none: that is a state, too.
type Look = BTreeMap<PathBuf, Option<(SystemTime, u64)>>;

fn note(file: &Path, look: &mut Look) {
    let seen = std::fs::metadata(file).and_then(|found| Ok((found.modified()?, found.len())));
    look.insert(file.to_owned(), seen.ok());
}

/// Everything in `folder` but what tools put there.
fn walk(folder: &Path, look: &mut Look) {
    let Ok(entries) = std::fs::read_dir(folder) else { return note(folder, look) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let tools = name == "target" || name == "node_modules" || name == "Cargo.lock" || name == "web";
        if tools || name.to_string_lossy().starts_with('.') || look.len() >= FILES_MAX {
            continue;
        }
        // Links are not followed: they may lead in circles.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), look),
            Ok(_) | Err(_) => note(&entry.path(), look),
        }
    }
}

/// Builds a crate for wasm; the module it made.
async fn build(folder: &Path) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(&cargo)
        .args(["build", "--release", "--target", TARGET, "--message-format=json-render-diagnostics"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| {
            format!("cannot run `{}`; install Rust from https://rustup.rs", cargo.to_string_lossy())
        })?;
    let (mut messages, mut said) = (String::new(), String::new());
    let (Some(mut stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("cargo was started without pipes");
    };
    let mut lines = BufReader::new(stderr).lines();
    let hear = async {
        while let Some(line) = lines.next_line().await? {
            say!("{line}");
            said.push_str(&line);
            said.push('\n');
        }
        Ok::<(), std::io::Error>(())
    };
    let (read, heard) = tokio::join!(stdout.read_to_string(&mut messages), hear);
    let status = child.wait().await.context("cargo was lost")?;
    read.and(heard).context("cargo's output cannot be read")?;
    if !status.success() {
        bail!(why_not(&said));
    }
    module_of(&messages, folder).with_context(|| {
        format!(
            "`{}` was built, but made no module; its Cargo.toml needs `[lib]` with `crate-type = [\"cdylib\", \"rlib\"]`",
            folder.display()
        )
    })
}

/// What to do about a build that failed.
fn why_not(said: &str) -> String {
    let missing = said.contains("target may not be installed")
        || (said.contains("can't find crate for") && said.contains(TARGET));
    if missing {
        format!("Rust cannot build for {TARGET} here; `rustup target add {TARGET}` installs what it needs")
    } else {
        "the reducers do not build".into()
    }
}

/// The module of the package in `folder`, from cargo's messages.
fn module_of(messages: &str, folder: &Path) -> Option<PathBuf> {
    let manifest = folder.join("Cargo.toml");
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    artifacts
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter(|message| message["manifest_path"].as_str().is_some_and(|path| Path::new(path) == manifest))
        .filter_map(|message| {
            let files = message["filenames"].as_array()?;
            files
                .iter()
                .filter_map(|file| file.as_str())
                .find(|file| file.ends_with(".wasm"))
                .map(PathBuf::from)
        })
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_target_is_said_with_what_to_do() {
        let rustc = "error[E0463]: can't find crate for `core`\n  |\n  = note: the `wasm32-unknown-unknown` target may not be installed\n";
        assert!(why_not(rustc).contains("rustup target add wasm32-unknown-unknown"));
        assert_eq!(why_not("error[E0425]: cannot find value `x`"), "the reducers do not build");
    }

    #[test]
    fn the_module_is_that_of_the_crate_itself() {
        let artifact = |manifest: &str, file: &str| {
            serde_json::json!({ "reason": "compiler-artifact", "manifest_path": manifest, "filenames": [file] })
                .to_string()
        };
        let messages = [
            artifact("/other/Cargo.toml", "/t/other.wasm"),
            artifact("/app/reducer/Cargo.toml", "/t/libapp.rlib"),
            artifact("/app/reducer/Cargo.toml", "/t/app.wasm"),
            "not json".into(),
            r#"{"reason":"build-finished","success":true}"#.into(),
        ]
        .join("\n");
        assert_eq!(module_of(&messages, Path::new("/app/reducer")), Some("/t/app.wasm".into()));
        assert_eq!(module_of(&messages, Path::new("/else")), None);
        assert_eq!(module_of("", Path::new("/app/reducer")), None);
    }

    #[test]
    fn a_look_tells_saves_and_passes_over_what_tools_write() {
        let dir = tempfile::tempdir().unwrap();
        let look = || {
            let mut look = Look::new();
            walk(dir.path(), &mut look);
            look
        };
        let write = |file: &str, text: &str| {
            let file = dir.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        write("src/lib.rs", "a");
        let first = look();
        assert_eq!(first.len(), 1);
        for file in ["target/x", ".git/x", "web/node_modules/x", "Cargo.lock", ".graft/x"] {
            write(file, "x");
        }
        assert_eq!(look(), first);
        write("src/lib.rs", "longer");
        let second = look();
        assert_ne!(second, first);
        write("src/more.rs", "");
        assert_ne!(look(), second);
        std::fs::remove_file(dir.path().join("src/more.rs")).unwrap();
        assert_eq!(look(), second);
    }
}
