//! `cargo xtask bench`: builds what the benchmarks run, then runs `bench/` with its arguments.
//!
//! Built here, as far as it is needed: the loadable extension for the storage benchmarks; `graft` in
//! release, the examples' reducers, `bench/reducer`, and, where they can be had, SpacetimeDB's module and
//! our TypeScript client. The peers themselves are `bench/src/peers.rs`'s.
//!
//! Invariant: what only peers need never fails the run; it is said aloud, and the bench leaves that out.

use std::path::Path;

use anyhow::Context;

use crate::run::Run;
use crate::setup::{self, Tools};
use crate::{artifacts, web};

/// Crates that become wasm modules: folder, what cargo makes of it, its name in `target/bench-modules`.
const OURS: Module =
    Module { dir: "bench/reducer", profile: "wasm", output: "bench_reducer.wasm", name: "graft.wasm" };
const SPACETIMEDB: Module = Module {
    dir: "bench/peers/spacetimedb",
    profile: "release",
    output: "bench_spacetimedb.wasm",
    name: "spacetimedb.wasm",
};

struct Module {
    dir: &'static str,
    profile: &'static str,
    output: &'static str,
    name: &'static str,
}

/// Builds and runs.
///
/// # Errors
///
/// A build or the bench failed.
pub fn run(root: &Path, args: &[String]) -> anyhow::Result<()> {
    let asks_help = args.iter().any(|arg| arg == "--help" || arg == "-h");
    let tools = setup::setup(root)?;
    let bench = tools
        .cargo(["run", "--release", "--locked", "--"])
        .args(args)
        .dir(&root.join("bench"))
        .env("CARGO_TARGET_DIR", root.join("target/bench"));
    if asks_help {
        return bench.check();
    }
    let mut bench = bench;
    if wants_storage(args) {
        tools.cargo(["build", "--release", "--locked", "-p", "sqlite-ext"]).dir(root).check()?;
        bench = bench.env("GRAFT_EXTENSION", root.join("target/release/libgraft_sqlite.so"));
        if only_storage(args) {
            return bench.check();
        }
    }
    let reducers = artifacts::reducers(&tools)?;
    bench = bench.env("GRAFT_REDUCERS", reducers);
    if needs_server(args) {
        bench = bench.env("GRAFT_BIN", artifacts::graft(&tools, true)?);
        module(&tools, &OURS)?;
    }
    if needs_server(args)
        && wants(args, "spacetimedb")
        && let Err(error) = module(&tools, &SPACETIMEDB)
    {
        println!("\nWithout SpacetimeDB's module: {error:#}");
    }
    // Ours is also measured through the TypeScript client, whoever the peers are.
    if let Err(error) = client(root) {
        println!("\nWithout the TypeScript client: {error:#}");
    }
    bench.env("GRAFT_BENCH_MODULES", root.join("target/bench-modules")).check()
}

/// The names of benchmarks that need the product's server, the one that needs the examples' reducers
/// alone, and those that need the extension alone.
const SERVED: [&str; 3] = ["throughput", "fanout", "transfers"];
const REBASE: [&str; 1] = ["rebase"];
const STORAGE: [&str; 5] = ["storage", "cold", "warm", "speedtest1", "memory"];

fn named(args: &[String], names: &[&str]) -> bool {
    args.iter().any(|arg| names.contains(&arg.as_str()))
}

/// Whether a benchmark of storage is asked for, as it is where none is named.
fn wants_storage(args: &[String]) -> bool {
    named(args, &STORAGE) || !(named(args, &SERVED) || named(args, &REBASE))
}

/// Whether nothing else is.
fn only_storage(args: &[String]) -> bool {
    named(args, &STORAGE) && !(named(args, &SERVED) || named(args, &REBASE))
}

/// Whether one is asked for that needs the product's server, as it is where none is named.
fn needs_server(args: &[String]) -> bool {
    named(args, &SERVED) || !(named(args, &STORAGE) || named(args, &REBASE))
}

/// Whether `--peers` asks for `peer`, as it does by default.
fn wants(args: &[String], peer: &str) -> bool {
    let list = args.iter().position(|arg| arg == "--peers").and_then(|at| args.get(at + 1));
    list.is_none_or(|list| list.split(',').any(|name| name == peer))
}

/// Builds a module for wasm32 and copies it to `target/bench-modules`.
fn module(tools: &Tools, module: &Module) -> anyhow::Result<()> {
    tools
        .wasm_cargo(["build", "--locked", "--profile", module.profile])
        .dir(&tools.root.join(module.dir))
        .check()?;
    let built = tools.wasm_output(module.profile).join(module.output);
    let dir = tools.root.join("target/bench-modules");
    std::fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let copied = std::fs::copy(&built, dir.join(module.name));
    copied.with_context(|| format!("{} cannot be copied to {}", built.display(), dir.display()))?;
    Ok(())
}

/// Builds `client/dist`.
fn client(root: &Path) -> anyhow::Result<()> {
    web::install(root)?;
    Run::new(root, "npm").args(["run", "build", "-w", "client"]).check()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_that_are_asked_for_are_known() {
        let args = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
        assert!(wants(&args("fanout"), "spacetimedb"));
        assert!(wants(&args("--peers zero,spacetimedb"), "spacetimedb"));
        assert!(!wants(&args("--peers zero fanout"), "spacetimedb"));
        assert!(!wants(&args("--peers none"), "spacetimedb"));
    }

    #[test]
    fn storage_alone_needs_no_server() {
        let args = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
        assert!(wants_storage(&args("--seconds 1")) && !only_storage(&args("--seconds 1")));
        assert!(only_storage(&args("cold --rows 10")));
        assert!(!wants_storage(&args("fanout")));
        assert!(!only_storage(&args("warm transfers")));
        assert!(!only_storage(&args("warm rebase")) && !wants_storage(&args("rebase --pending 10")));
    }

    #[test]
    fn rebase_needs_no_server() {
        let args = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
        assert!(!needs_server(&args("rebase --pending 10")) && !needs_server(&args("rebase cold")));
        assert!(needs_server(&args("rebase fanout")) && needs_server(&args("--seconds 1")));
    }
}
