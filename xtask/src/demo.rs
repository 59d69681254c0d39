//! `cargo xtask demo`: a server on a local directory and two people in one terminal.
//!
//! Alice and Bob each hold a live query (`graft subscribe`) and call reducers (`graft mutate`); every
//! line says who did or saw what. After the script the server stays up for the reader's own
//! commands, in another terminal, and for the example's page in a browser, until Ctrl-C.
//!
//! Invariants: the script waits for what it announces and fails, naming it, if it does not come;
//! whatever happens, the processes started here are stopped. They get a process group of their own,
//! so that Ctrl-C reaches us alone and the server is asked to stop exactly once.
//!
//! [`list`] keeps what a person sees; [`process`] starts and stops programs.

mod list;
mod process;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::run::quoted;
use crate::{artifacts, setup, web};
use list::List;
use process::Process;

/// Where the demo listens if it can.
const ADDRESS: &str = "127.0.0.1:4600";
const VOLUME: &str = "todo";
const QUERY: &str = "SELECT id, title, done FROM tasks WHERE list = ?1 ORDER BY position, id";
const PARAMS: &str = r#"["home"]"#;
/// Longer than any answer takes on a loaded machine; only a broken one reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A line that a person's subscription printed, or that it ended.
enum Event {
    Line { who: &'static str, line: String },
    Ended { who: &'static str },
}

/// What a mutation is to end as.
enum Expect {
    /// Durable, and both people see a change.
    Seen,
    /// Durable, and nobody's rows change.
    Unseen,
    /// Refused by the reducer.
    Rejected,
}

/// Builds what is not given ([`programs`]), serves, plays the script and, without `--once`, waits for Ctrl-C.
pub fn run(root: &Path, args: &[String]) -> anyhow::Result<()> {
    let once = match args {
        [] => false,
        [flag] if flag == "--once" => true,
        _ => bail!("`cargo xtask demo` takes nothing but --once"),
    };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, stop.clone()).context("signals cannot be handled")?;
    }
    let Programs { graft, modules, page } = programs(root)?;
    let place = Place::choose(root, once)?;
    let mut demo = Demo::start(graft, page.as_deref(), &place, stop)?;
    let played = demo.play(&modules.join("todo.wasm"));
    let ended = match played {
        Ok(()) if once => Ok(()),
        Ok(()) => demo.stay_up(),
        Err(error) => Err(error),
    };
    let stopped = demo.stop();
    if once {
        std::fs::remove_dir_all(&place.dir)
            .with_context(|| format!("{} cannot be removed", place.dir.display()))?;
    }
    ended.and(stopped)
}

/// What the demo runs.
struct Programs {
    graft: PathBuf,
    /// The folder of the reducer modules.
    modules: PathBuf,
    /// The folder of the built page; none without Node.
    page: Option<PathBuf>,
}

/// Builds what the demo runs, unless `GRAFT_BIN` and `GRAFT_REDUCERS` name built ones; then `GRAFT_WEB`
/// may name a page.
fn programs(root: &Path) -> anyhow::Result<Programs> {
    let given = |name| std::env::var_os(name).map(PathBuf::from);
    if let (Some(graft), Some(modules)) = (given("GRAFT_BIN"), given("GRAFT_REDUCERS")) {
        return Ok(Programs { graft, modules, page: given("GRAFT_WEB") });
    }
    let tools = setup::setup(root)?;
    let graft = artifacts::graft(&tools, true)?;
    Ok(Programs { graft, modules: artifacts::reducers(&tools)?, page: web::page(root)? })
}

/// Where this demo keeps its store and listens.
struct Place {
    dir: PathBuf,
    listen: &'static str,
}

impl Place {
    /// The usual place, emptied; beside another demo, or for one run, a place of its own.
    fn choose(root: &Path, once: bool) -> anyhow::Result<Place> {
        let usual_is_free = !once && TcpListener::bind(ADDRESS).is_ok();
        let (name, listen) = if usual_is_free {
            ("demo".to_string(), ADDRESS)
        } else {
            (format!("demo-{}", std::process::id()), "127.0.0.1:0")
        };
        if !once && !usual_is_free {
            println!("demo: {ADDRESS} is in use; taking a free port");
        }
        let dir = root.join("target").join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("{} cannot be emptied", dir.display()))?;
        }
        std::fs::create_dir_all(dir.join("store"))
            .with_context(|| format!("{} cannot be made", dir.display()))?;
        Ok(Place { dir, listen })
    }

    fn store(&self) -> String {
        format!("file://{}", self.dir.join("store").display())
    }
}

/// A running demo.
struct Demo {
    graft: PathBuf,
    url: String,
    /// Whether the server serves the page.
    page: bool,
    /// For the logs of the programs started here.
    dir: PathBuf,
    store: String,
    server: Process,
    people: Vec<(&'static str, Process, List)>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    stop: Arc<AtomicBool>,
}

impl Demo {
    /// Starts the server and waits until it names its URL.
    fn start(
        graft: PathBuf,
        page: Option<&Path>,
        place: &Place,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<Demo> {
        let store = place.store();
        let web = page.map(|page| page.to_string_lossy());
        let mut args = vec!["serve", "--store", &store, "--listen", place.listen];
        args.extend(web.iter().flat_map(|web| ["--web", web]));
        let typed: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
        println!("\n$ graft {}", typed.join(" "));
        let log = place.dir.join("server.log");
        let mut server = Process::start(&graft, &args, &log)?;
        let (sender, events) = channel();
        let (urls, first_url) = channel();
        server.read_lines(move |line| {
            if let Some(url) = line.and_then(|l| find_url(&l)) {
                // Nobody listens after the first one.
                let _unheard = urls.send(url);
            }
        })?;
        let url = match first_url.recv_timeout(PATIENCE) {
            Ok(url) => url,
            Err(_) => {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("graft serve did not say where it listens; it said:\n{log}")
            }
        };
        println!("{url}");
        let dir = place.dir.clone();
        let page = page.is_some();
        Ok(Demo { graft, url, page, dir, store, server, people: Vec::new(), events, sender, stop })
    }

    /// The script.
    fn play(&mut self, module: &Path) -> anyhow::Result<()> {
        let module = module.to_string_lossy();
        println!("\n$ graft deploy target/reducers/todo.wasm --volume {VOLUME} --url {}", self.url);
        let (code, said) = self.graft(&["deploy", &module, "--volume", VOLUME, "--url", &self.url])?;
        println!("{}", said.trim_end());
        if code != Some(0) {
            bail!("graft deploy failed");
        }
        self.subscribe("alice")?;
        self.subscribe("bob")?;
        self.mutate("alice", "create_list", r#"{"id":"home","name":"Home"}"#, Expect::Unseen)?;
        self.mutate("alice", "add_task", r#"{"id":"milk","list":"home","title":"Buy milk"}"#, Expect::Seen)?;
        self.mutate(
            "bob",
            "add_task",
            r#"{"id":"fern","list":"home","title":"Water the fern"}"#,
            Expect::Seen,
        )?;
        self.mutate("bob", "set_done", r#"{"id":"milk","done":true}"#, Expect::Seen)?;
        self.mutate("alice", "rename_task", r#"{"id":"fern","title":"Water all plants"}"#, Expect::Seen)?;
        self.mutate("bob", "add_task", r#"{"id":"none","list":"home","title":""}"#, Expect::Rejected)?;
        self.mutate("alice", "delete_task", r#"{"id":"milk"}"#, Expect::Seen)?;
        let [(_, _, first), (_, _, second)] = self.people.as_slice() else {
            bail!("two people were to watch")
        };
        if first.to_string() != second.to_string() {
            bail!("alice sees `{first}` but bob sees `{second}`");
        }
        println!("\nBoth see the same: {first}");
        Ok(())
    }

    /// Opens a live query and waits for its first rows.
    fn subscribe(&mut self, who: &'static str) -> anyhow::Result<()> {
        say(who, &format!("$ graft subscribe {} --volume {VOLUME} --params '{PARAMS}'", quoted(QUERY)));
        let log = self.dir.join(format!("{who}.log"));
        let args = ["subscribe", QUERY, "--volume", VOLUME, "--params", PARAMS, "--url", &self.url, "--json"];
        let mut process = Process::start(&self.graft, &args, &log)?;
        let sender = self.sender.clone();
        process.read_lines(move |line| {
            // After the demo has ended nobody listens, and that is no fault.
            let _unheard = sender.send(match line {
                Some(line) => Event::Line { who, line },
                None => Event::Ended { who },
            });
        })?;
        self.people.push((who, process, List::default()));
        self.wait_for(&[who]).with_context(|| format!("{who}'s live query sent no first rows"))
    }

    /// Calls a reducer as `who` and waits for what is expected of it.
    fn mutate(&mut self, who: &'static str, reducer: &str, args: &str, expect: Expect) -> anyhow::Result<()> {
        println!();
        say(who, &format!("$ graft mutate {reducer} '{args}' --volume {VOLUME}"));
        let wait = ["--volume", VOLUME, "--url", &self.url, "--wait", "durable"];
        let (code, said) = self.graft(&[&["mutate", reducer, args], &wait[..]].concat())?;
        for line in said.lines() {
            say(who, line);
        }
        match (expect, code) {
            (Expect::Seen, Some(0)) => {
                let everybody: Vec<&str> = self.people.iter().map(|(who, _, _)| *who).collect();
                self.wait_for(&everybody).with_context(|| format!("not everybody saw {reducer}"))
            }
            (Expect::Unseen, Some(0)) | (Expect::Rejected, Some(2)) => Ok(()),
            (Expect::Rejected, _) => bail!("{reducer} was to be rejected (exit code 2)"),
            (Expect::Seen | Expect::Unseen, _) => bail!("{reducer} failed"),
        }
    }

    /// Waits until each of `people` got a message, then shows what they see, in that order.
    fn wait_for(&mut self, people: &[&'static str]) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut missing = people.to_vec();
        while !missing.is_empty() {
            if self.stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            let left = end.saturating_duration_since(Instant::now()).min(Duration::from_millis(200));
            match self.events.recv_timeout(left) {
                Ok(event) => {
                    let who = self.take(event)?;
                    missing.retain(|missing| *missing != who);
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                Err(_) => bail!("{} waited in vain for {} s", missing.join(" and "), PATIENCE.as_secs()),
            }
        }
        for who in people {
            self.show(who);
        }
        Ok(())
    }

    /// Puts a message into its receiver's list.
    fn take(&mut self, event: Event) -> anyhow::Result<&'static str> {
        match event {
            Event::Line { who, line } => {
                let person = self.people.iter_mut().find(|(name, _, _)| *name == who);
                let (_, _, list) = person.context("a message for nobody")?;
                list.apply(&line).with_context(|| format!("{who} cannot read `{line}`"))?;
                Ok(who)
            }
            Event::Ended { who } => bail!("{who}'s `graft subscribe` ended"),
        }
    }

    fn show(&self, who: &str) {
        for (name, _, list) in &self.people {
            if *name == who {
                say(name, &format!("sees {list}"));
            }
        }
    }

    /// Tells the reader what to type and shows what comes of it, until Ctrl-C.
    fn stay_up(&mut self) -> anyhow::Result<()> {
        let graft = self.graft.display();
        let (url, store) = (&self.url, quoted(&self.store));
        if self.page {
            println!("\nOpen the page in two windows of a browser: {url}/#/list/home");
        }
        println!(
            "\nThe server stays up at {url}. In another terminal, try:\n\n  \
             {graft} subscribe \"SELECT * FROM tasks\" --volume {VOLUME} --url {url}\n  \
             {graft} mutate add_task '{{\"id\":\"t1\",\"list\":\"home\",\"title\":\"Say hello\"}}' --volume {VOLUME} --url {url}\n  \
             {graft} query \"SELECT count(*) FROM tasks\" --volume {VOLUME} --url {url}\n  \
             {graft} volume log {VOLUME} --store {store}\n\n\
             Alice and Bob keep watching. Ctrl-C stops everything.\n"
        );
        while !self.stop.load(Ordering::Relaxed) {
            match self.events.recv_timeout(Duration::from_millis(200)) {
                Ok(event) => {
                    let who = self.take(event)?;
                    self.show(who);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("nobody watches any more"),
            }
            if let Some(status) = self.server.ended()? {
                bail!("graft serve ended by itself ({status})");
            }
        }
        Ok(())
    }

    /// Runs `graft` to its end: exit code, and what it printed.
    fn graft(&self, args: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let output = std::process::Command::new(&self.graft)
            .args(args)
            .stdin(std::process::Stdio::null())
            .output()
            .with_context(|| format!("{} cannot be started", self.graft.display()))?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Ends the subscriptions, then asks the server to stop and waits until it has.
    fn stop(self) -> anyhow::Result<()> {
        drop(self.people);
        println!("\ndemo: stopping the server");
        self.server.stop_gracefully(PATIENCE).context("graft serve did not stop well")
    }
}

fn say(who: &str, what: &str) {
    println!("{who:<5} │ {what}");
}

/// The first `http://` URL in `line`.
fn find_url(line: &str) -> Option<String> {
    let start = line.find("http://")?;
    let end = line[start..].find(|c: char| c.is_whitespace() || "\"'`,".contains(c));
    Some(end.map_or(&line[start..], |end| &line[start..start + end]).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_in_lines() {
        assert_eq!(find_url("listening on http://127.0.0.1:4600").as_deref(), Some("http://127.0.0.1:4600"));
        assert_eq!(find_url(r#"{"url":"http://[::1]:9"}"#).as_deref(), Some("http://[::1]:9"));
        assert_eq!(find_url("starting"), None);
    }
}
