//! What can be typed. Every flag that names a place has an environment variable of the same name.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::moment::Moment;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Where a server is, unless said otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:4600";
/// The embedded store, unless said otherwise.
const DEFAULT_STORE: &str = "./graft-store";

/// Multiplayer SQLite on object storage: serve volumes, deploy reducers, mutate, watch, query.
///
/// Exit codes: 0 done, 1 error, 2 a mutation that was rejected.
#[derive(Debug, Parser)]
#[command(name = "graft", version, propagate_version = true)]
pub struct Args {
    /// What to log to stderr: error, warn, info, debug, or a filter like `coordinator=debug`. [default:
    /// info for serve, warn otherwise]
    #[arg(long, env = "RUST_LOG", global = true, value_name = "FILTER", hide_env_values = true)]
    pub log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve volumes over HTTP and WebSocket. Prints its URL on stdout when it is ready.
    ///
    /// Ctrl-C (or SIGTERM) stops it once everything accepted is durable; a second one stops it at once.
    Serve(Serve),
    /// Put a reducer module in force on a volume, and run its new migrations.
    ///
    /// Creates the volume if it is new. Deploying the same module again changes nothing.
    Deploy(Deploy),
    /// Call a reducer. Prints the outcome; a rejection prints its reason and exits 2.
    Mutate(Mutate),
    /// Watch a query: its rows first, then each change, one line a message, until Ctrl-C.
    Subscribe(Subscribe),
    /// Ask a volume once, through the server (sees what is accepted and not yet durable).
    Query(Query),
    /// Run SQL on a volume straight from the store, without a server.
    Sql(Sql),
    /// Make a volume of a SQLite file, in one pass. The file may be in use.
    Import(crate::import::Import),
    /// Write a volume, now or as it was, to a SQLite file.
    Export(crate::export::Export),
    /// Back a SQLite file in WAL mode up to a volume, while other processes write it.
    Backup(crate::backup::BackupArgs),
    /// The volumes of a store: look at them, fork, restore and remove them, keep them in order, put files
    /// into them.
    Volume(Volume),
    /// Write typed clients from a module's own description.
    Codegen(Codegen),
    /// Make a new app: a reducer crate, and a web page with Vite and TypeScript.
    New(New),
    /// Build an app's reducers, deploy them and write their types, now and at every save, until Ctrl-C.
    Dev(Dev),
}

/// Which server, which volume.
#[derive(Debug, Clone, ClapArgs)]
pub struct Target {
    /// The volume's name.
    #[arg(long, env = "GRAFT_VOLUME", value_name = "NAME")]
    pub volume: String,
    /// The server's URL.
    #[arg(long, env = "GRAFT_URL", value_name = "URL", default_value = DEFAULT_URL)]
    pub url: String,
    /// Seconds to try to connect before giving up.
    #[arg(long, env = "GRAFT_CONNECT_TIMEOUT", value_name = "SECONDS", default_value_t = 10)]
    pub connect_timeout: u64,
}

/// Which object store.
#[derive(Debug, Clone, ClapArgs)]
pub struct Store {
    /// The object store: a directory, file:///DIR, s3://BUCKET/PREFIX, http://HOST:PORT or memory:.
    #[arg(long, env = "GRAFT_STORE", value_name = "URL", default_value = DEFAULT_STORE)]
    pub store: String,
}

/// `graft serve`
#[derive(Debug, ClapArgs)]
pub struct Serve {
    #[command(flatten)]
    pub store: Store,
    /// The address to listen on; port 0 picks a free one. Loopback only, until there is authentication.
    #[arg(long, env = "GRAFT_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:4600")]
    pub listen: SocketAddr,
    /// A directory that keeps fetched pages across restarts. [default: memory alone]
    #[arg(long, env = "GRAFT_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Bytes that each volume's cached pages may take in that directory.
    #[arg(long, env = "GRAFT_DISK_BYTES", value_name = "BYTES", default_value_t = 16 << 30)]
    pub disk_bytes: u64,
    /// A directory of static files to serve at `/`: an app's built page. [default: none]
    #[arg(long, env = "GRAFT_WEB", value_name = "DIR")]
    pub web: Option<PathBuf>,
    /// Seconds after which who does not say again that they are connected is gone from the others' lists.
    #[arg(long, env = "GRAFT_PRESENCE_TTL", value_name = "SECONDS", default_value_t = 90)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub presence_ttl: u64,
    /// Seconds between two runs of garbage collection on a volume that is written to; 0 for none.
    #[arg(long, env = "GRAFT_GC_INTERVAL", value_name = "SECONDS", default_value_t = 21_600)]
    pub gc_interval: u64,
    #[command(flatten)]
    pub keep: crate::gc::Keep,
    /// Write a checkpoint after so many commits: who opens a volume reads the head of each commit since.
    #[arg(long, env = "GRAFT_CHECKPOINT_COMMITS", value_name = "COUNT", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_commits: u64,
    /// Or as soon as the heads of the commits since have so many bytes.
    #[arg(long, env = "GRAFT_CHECKPOINT_BYTES", value_name = "BYTES", default_value_t = 4 << 20)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_bytes: u64,
    /// Look after so many commits, when a checkpoint is written, whether a volume's pages lie so badly that
    /// it is to be compacted; 0 for never. A look reads the page table.
    #[arg(long, env = "GRAFT_COMPACT_EVERY", value_name = "COUNT", default_value_t = 256)]
    pub compact_every: u64,
    /// Let programs that give this server as their --store write objects, as if they had the bucket's
    /// credentials. [default: they read]
    #[arg(long, env = "GRAFT_ALLOW_REMOTE_WRITES")]
    pub allow_remote_writes: bool,
}

/// `graft deploy`
#[derive(Debug, ClapArgs)]
pub struct Deploy {
    /// The compiled reducer module.
    #[arg(value_name = "MODULE.wasm")]
    pub module: PathBuf,
    #[command(flatten)]
    pub target: Target,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How long `graft mutate` waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// Until it is applied; it may still be lost if the server dies.
    Accepted,
    /// Until it is in object storage.
    Durable,
}

/// `graft mutate`
#[derive(Debug, ClapArgs)]
pub struct Mutate {
    /// The reducer's name.
    pub reducer: String,
    /// Its arguments: a JSON object of parameter names and values.
    #[arg(value_name = "JSON")]
    pub args: String,
    #[command(flatten)]
    pub target: Target,
    /// What to wait for.
    #[arg(long, value_enum, default_value_t = Wait::Durable)]
    pub wait: Wait,
    /// Act as this client id (1 to 64 of A-Z a-z 0-9 - _), which must not be in use elsewhere at the same
    /// time. [default: a fresh random one]
    #[arg(long, env = "GRAFT_CLIENT", value_name = "ID")]
    pub client: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `graft subscribe`
#[derive(Debug, ClapArgs)]
pub struct Subscribe {
    /// One SELECT.
    pub sql: String,
    /// Its parameters: a JSON array (by position) or object (by name).
    #[arg(long, value_name = "JSON")]
    pub params: Option<String>,
    /// Columns that identify a row, separated by commas. [default: `id`, or else the whole row]
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    pub key: Option<Vec<String>>,
    #[command(flatten)]
    pub target: Target,
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// `graft query`
#[derive(Debug, ClapArgs)]
pub struct Query {
    /// One SELECT.
    pub sql: String,
    /// Its parameters: a JSON array (by position) or object (by name).
    #[arg(long, value_name = "JSON")]
    pub params: Option<String>,
    #[command(flatten)]
    pub target: Target,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What to do with changes that another writer was faster than.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnConflict {
    /// Merge what can be merged, make a volume of the rest.
    Merge,
    /// Make a volume of everything.
    Branch,
}

/// `graft sql`
#[derive(Debug, ClapArgs)]
pub struct Sql {
    /// One or more statements, separated by semicolons. The last one that returns rows is printed.
    pub sql: String,
    /// The volume's name.
    #[arg(long, env = "GRAFT_VOLUME", value_name = "NAME")]
    pub volume: String,
    #[command(flatten)]
    pub store: Store,
    /// Allow changes, and commit them to the store before ending.
    #[arg(long)]
    pub write: bool,
    /// Drop changes of earlier runs that are kept in the data directory and could not be pushed.
    #[arg(long, requires = "data")]
    pub discard_kept: bool,
    /// What becomes of such changes where another writer committed first: `merge` keeps those that nothing
    /// they read or wrote was changed for, and makes a volume of the others; `branch` makes a volume of all
    /// of them. That volume is a fork of this one, where the changes were made, with them on it.
    #[arg(long, requires_all = ["data", "write"], value_enum, value_name = "HOW", conflicts_with = "discard_kept")]
    pub on_conflict: Option<OnConflict>,
    /// The name of that volume. [default: VOLUME-branch-ID, where ID is 8 hex digits of the new volume's id]
    #[arg(long, requires = "on_conflict", value_name = "NAME")]
    pub branch_name: Option<String>,
    /// A directory for the replica, kept for the next time. [default: a temporary one]
    #[arg(long, env = "GRAFT_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Bytes that cached pages may take in that directory.
    #[arg(long, env = "GRAFT_DISK_BYTES", value_name = "BYTES", default_value_t = 16 << 30)]
    pub disk_bytes: u64,
    /// Read the volume as it was: after this commit, or at this time (like 2026-11-22T09:30:00Z).
    #[arg(long, value_name = "LSN|TIME", conflicts_with_all = ["write", "discard_kept"])]
    pub at: Option<Moment>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `graft volume`
#[derive(Debug, ClapArgs)]
pub struct Volume {
    /// What to do with it.
    #[command(subcommand)]
    pub command: VolumeCommand,
}

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// List the volumes of a store.
    Ls {
        #[command(flatten)]
        store: Store,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one volume: identity, size, head, reducer module.
    Info {
        /// The volume's name.
        name: String,
        #[command(flatten)]
        store: Store,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a new volume that begins as another one is, or was. Copies nothing.
    Fork {
        /// The new volume's name.
        name: String,
        /// The volume to fork.
        #[arg(long, value_name = "NAME")]
        from: String,
        /// Where: after this commit, or at this time (like 2026-11-22T09:30:00Z). [default: now]
        #[arg(long, value_name = "LSN|TIME")]
        at: Option<Moment>,
        #[command(flatten)]
        store: Store,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Bring back an earlier state, as a new volume: a fork there. The volume itself keeps its newest
    /// state.
    Restore {
        /// The new volume's name.
        name: String,
        /// The volume whose past it is.
        #[arg(long, value_name = "NAME")]
        from: String,
        /// Where: after this commit, or at this time (like 2026-11-22T09:30:00Z).
        #[arg(long, value_name = "LSN|TIME")]
        at: Moment,
        #[command(flatten)]
        store: Store,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove a volume for ever. Refused while it has forks, which read through it.
    Rm {
        /// The volume's name.
        name: String,
        #[command(flatten)]
        store: Store,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write a checkpoint, so that opening the volume need not read its log. Servers do it by themselves.
    Checkpoint {
        /// The volume's name.
        name: String,
        #[command(flatten)]
        store: Store,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lay a volume's pages out anew, so that readers ask for fewer and larger pieces. Servers do it by
    /// themselves.
    Compact(crate::compact::Compact),
    /// Delete what no state that is kept, fork or reader needs. Servers do it by themselves.
    Gc(crate::gc::Gc),
    /// Read everything that a volume's states are made of and say what is wrong. Exits 1 where something is.
    Verify(crate::verify::Verify),
    /// List a volume's commits, newest first.
    Log {
        /// The volume's name.
        name: String,
        #[command(flatten)]
        store: Store,
        /// Show at most so many.
        #[arg(long, short = 'n', value_name = "COUNT")]
        limit: Option<usize>,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Bring all of a volume into a data directory, so that reading it needs no store.
    Hydrate(Hydrate),
    /// Store a plain file as a volume, in one commit.
    Put(VolumePut),
    /// Write out a file that was stored with put.
    Get(VolumeGet),
}

/// `graft volume hydrate`
#[derive(Debug, ClapArgs)]
pub struct Hydrate {
    /// The volume's name.
    pub name: String,
    #[command(flatten)]
    pub store: Store,
    /// The replica's directory. What it has already is not fetched again.
    #[arg(long, env = "GRAFT_DATA", value_name = "DIR")]
    pub data: PathBuf,
    /// Go on after that: fetch what others commit, until Ctrl-C.
    #[arg(long)]
    pub follow: bool,
    /// Seconds between two looks at the log, with --follow. Each is one LIST.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub interval: f64,
    /// Bytes that cached pages may take in the directory. A volume that does not fit is refused.
    #[arg(long, env = "GRAFT_DISK_BYTES", value_name = "BYTES", default_value_t = 16 << 30)]
    pub disk_bytes: u64,
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// Ten milliseconds to a day.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds from 0.01 to 86400".into()),
    }
}

/// `graft volume put`
#[derive(Debug, ClapArgs)]
pub struct VolumePut {
    /// The volume's name. It is created if it is new.
    pub name: String,
    /// The file to store. Readers see all of it or nothing; pages they have already are not sent.
    pub file: PathBuf,
    #[command(flatten)]
    pub store: Store,
    /// Bytes in each page of a new volume: a power of two from 512 to 65536. [default: 4096]
    #[arg(long, value_name = "BYTES")]
    pub page_size: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `graft volume get`
#[derive(Debug, ClapArgs)]
pub struct VolumeGet {
    /// The volume's name.
    pub name: String,
    /// Where the file goes. It is in FILE.part until it is whole; an interrupted get goes on from there.
    pub file: PathBuf,
    #[command(flatten)]
    pub store: Store,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `graft codegen`
#[derive(Debug, ClapArgs)]
pub struct Codegen {
    /// In which language.
    #[command(subcommand)]
    pub language: CodegenLanguage,
}

/// A language that types can be written in.
#[derive(Debug, Subcommand)]
pub enum CodegenLanguage {
    /// TypeScript, for the package graft-client.
    Ts(CodegenTs),
}

/// `graft codegen ts`
#[derive(Debug, ClapArgs)]
pub struct CodegenTs {
    /// The compiled reducer module. [default: ask the server for the volume's]
    #[arg(value_name = "MODULE.wasm")]
    pub module: Option<PathBuf>,
    /// The volume whose module is described, where no MODULE.wasm is given.
    #[arg(long, env = "GRAFT_VOLUME", value_name = "NAME")]
    pub volume: Option<String>,
    /// The server's URL.
    #[arg(long, env = "GRAFT_URL", value_name = "URL", default_value = DEFAULT_URL)]
    pub url: String,
    /// Seconds to try to connect before giving up.
    #[arg(long, env = "GRAFT_CONNECT_TIMEOUT", value_name = "SECONDS", default_value_t = 10)]
    pub connect_timeout: u64,
    /// The file to write, left alone where nothing changed. [default: print]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The interface's name. [default: the module's or volume's, as in TodoMutations]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Leave out the declaration that types every connect() of the program: for programs that use several
    /// modules, and say connect<TodoMutations>() themselves.
    #[arg(long)]
    pub no_register: bool,
}

/// `graft new`
#[derive(Debug, ClapArgs)]
pub struct New {
    /// The app's name, and that of the folder to make: lower-case letters, digits and `-`.
    pub name: String,
    /// The checkout of this project that the app takes the SDK and the client from, until they are
    /// published. [default: where this program was built]
    #[arg(long, value_name = "DIR")]
    pub path: Option<PathBuf>,
}

/// `graft dev`
#[derive(Debug, ClapArgs)]
pub struct Dev {
    /// The app's folder: its reducers are the crate in DIR/reducer, or in DIR itself.
    #[arg(value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Watch and deploy this module, and build nothing.
    #[arg(long, value_name = "MODULE.wasm")]
    pub wasm: Option<PathBuf>,
    /// The volume's name. [default: the app's]
    #[arg(long, env = "GRAFT_VOLUME", value_name = "NAME")]
    pub volume: Option<String>,
    /// Deploy to this server. [default: serve DIR/.graft here]
    #[arg(long, env = "GRAFT_URL", value_name = "URL")]
    pub url: Option<String>,
    /// The address to serve on, where no --url is given; port 0 picks a free one.
    #[arg(long, env = "GRAFT_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:4600")]
    pub listen: SocketAddr,
    /// Where the types go. [default: DIR/web/src/mutations.ts, if there is DIR/web]
    #[arg(long, value_name = "FILE")]
    pub types: Option<PathBuf>,
    /// Seconds to try to connect before giving up.
    #[arg(long, env = "GRAFT_CONNECT_TIMEOUT", value_name = "SECONDS", default_value_t = 10)]
    pub connect_timeout: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_documented_lines_parse() {
        for line in [
            "graft serve --store memory: --listen 127.0.0.1:0 --data d --web w",
            "graft serve --gc-interval 60 --keep-days 0.5 --keep-commits 9 --grace 5 --checkpoint-commits 8 \
             --checkpoint-bytes 4096 --compact-every 0",
            "graft volume gc todo --keep-days 0.5 --keep-commits 9 --grace 5 --dry-run --json",
            "graft deploy m.wasm --volume todo --url http://127.0.0.1:1",
            "graft mutate add {} --volume todo --wait accepted --json --client c",
            "graft subscribe SELECT --volume todo --params [] --json",
            "graft query SELECT --volume todo --params {} --json",
            "graft sql SELECT --volume todo --store memory: --write --data d --json",
            "graft volume ls --store memory: --json",
            "graft volume info todo --store memory: --json",
            "graft sql SELECT --volume todo --at 7",
            "graft volume fork new --from todo --at 2026-11-22T09:30:00Z --store memory: --json",
            "graft volume fork new --from todo",
            "graft volume restore new --from todo --at 12 --json",
            "graft volume rm todo --json",
            "graft volume checkpoint todo --store memory: --json",
            "graft volume log todo --store memory: --json",
            "graft volume hydrate todo --store memory: --data d --follow --interval 0.5 --disk-bytes 9 --json",
            "graft volume put f file --store memory: --page-size 65536 --json",
            "graft volume get f file --store memory: --json",
            "graft codegen ts m.wasm --out m.ts --name M --no-register",
            "graft codegen ts --volume todo --url http://127.0.0.1:1",
            "graft new app --path /src",
            "graft dev app --wasm m.wasm --volume v --listen 127.0.0.1:0 --types t.ts",
            "graft dev --url http://127.0.0.1:1",
        ] {
            assert!(Args::try_parse_from(line.split_whitespace()).is_ok(), "{line}");
        }
    }
}
