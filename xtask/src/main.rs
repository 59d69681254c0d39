//! `cargo xtask COMMAND`: everything a contributor or CI runs, on a machine that has only Rust.
//!
//! Each command first calls [`setup`], which finds what the build needs beyond Rust (libclang, a
//! clang that compiles for wasm32, the wasm32 target), installs what is missing where it may, and
//! otherwise says exactly what to install. What it found becomes the environment of every cargo
//! command that follows, so nothing has to be exported by hand.
//!
//! Invariants: everything is written below `target/` but for the cached sysroot in
//! `~/.cache/graft`; a command fails with the line that reproduces it; the exit code is 0 only if
//! every step succeeded.
//!
//! | module | holds |
//! | --- | --- |
//! | [`run`] | one command with its environment, printed so that a person can repeat it |
//! | [`setup`] | what is missing, how to get it, the environment that results |
//! | [`artifacts`] | the programs and modules other steps need: `graft`, guests, wasm32 libraries |
//! | [`bench`] | what the benchmarks need built |
//! | [`test`] | the steps of `test`, and the sum over all test programs |
//! | [`demo`] | a server and two scripted clients in one terminal |
//! | [`web`] | npm packages, checks and tests of `client/`, the page, the browser tests |

#![allow(clippy::disallowed_methods, reason = "a driver: it times its steps by the real clock")]

mod artifacts;
mod bench;
mod demo;
mod run;
mod setup;
mod test;
mod web;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

use run::Run;

/// One word after `cargo xtask`. The documents may name only these; the tidy test checks it.
struct Command {
    name: &'static str,
    usage: &'static str,
    what: &'static str,
    run: fn(&Path, &[String]) -> anyhow::Result<()>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "setup",
        usage: "",
        what: "find or install what the build needs beyond Rust, and npm's packages",
        run: setup,
    },
    Command {
        name: "build",
        usage: "",
        what: "target/release/graft, target/reducers/{todo,notes}.wasm and, with Node, examples/todo/web/dist",
        run: build,
    },
    Command {
        name: "test",
        usage: "[--quick] [FILTER]",
        what: "all checks and tests; --quick or a FILTER leaves out fmt, clippy and the wasm32 libraries, a FILTER also client/ and the browser",
        run: test::run,
    },
    Command {
        name: "demo",
        usage: "[--once]",
        what: "a server, two clients in this terminal, and with Node the page; --once stops after the script",
        run: demo::run,
    },
    Command {
        name: "bench",
        usage: "[NAME…] [OPTIONS]",
        what: "benchmarks beside peers (bench/); `bench --help` lists them, docs/bench.md explains them",
        run: bench::run,
    },
    Command {
        name: "sim",
        usage: "[--seed N] [--steps M]",
        what: "the whole-system simulation from one seed",
        run: sim,
    },
    Command {
        name: "wasm",
        usage: "",
        what: "graft, sqlsync-layer and the reducers for wasm32-unknown-unknown",
        run: wasm,
    },
    Command { name: "tidy", usage: "", what: "import rule, documents, dependencies, unsafe", run: tidy },
    Command { name: "fmt", usage: "", what: "format every crate", run: fmt },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> anyhow::Result<()> {
    let name = args.first().map_or("help", String::as_str);
    if matches!(name, "help" | "--help" | "-h") {
        print!("{}", help());
        return Ok(());
    }
    let Some(command) = COMMANDS.iter().find(|c| c.name == name) else {
        bail!("there is no `cargo xtask {name}`\n\n{}", help());
    };
    if args[1..].iter().any(|a| a == "--help" || a == "-h") && name != "bench" {
        println!("cargo xtask {} {}\n\n{}", command.name, command.usage, command.what);
        return Ok(());
    }
    (command.run)(&root()?, &args[1..])
}

fn help() -> String {
    let mut text = String::from("cargo xtask COMMAND\n\n");
    for c in COMMANDS {
        text += &format!("  {:<30} {}\n", format!("{} {}", c.name, c.usage), c.what);
    }
    text += "\nGRAFT_WASM=rustup|debian chooses where the wasm32 target comes from; unset, rustup is asked first.\n";
    text
}

/// The workspace's folder. `cargo run` names this crate's; the one known at build time is for a copied
/// executable.
fn root() -> anyhow::Result<PathBuf> {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = here.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    let root = here.parent().context("xtask has no parent folder")?;
    if !root.join("ARCHITECTURE.md").is_file() {
        bail!("{} is not the project's folder; run `cargo xtask` inside it", root.display());
    }
    Ok(root.to_path_buf())
}

fn no_arguments(args: &[String]) -> anyhow::Result<()> {
    match args.first() {
        None => Ok(()),
        Some(arg) => bail!("unexpected `{arg}`; `cargo xtask help` lists what there is"),
    }
}

fn setup(root: &Path, args: &[String]) -> anyhow::Result<()> {
    no_arguments(args)?;
    setup::setup(root)?;
    web::install(root)
}

fn build(root: &Path, args: &[String]) -> anyhow::Result<()> {
    no_arguments(args)?;
    let tools = setup::setup(root)?;
    let graft = artifacts::graft(&tools, true)?;
    let modules = artifacts::reducers(&tools)?;
    let page = web::page(root)?;
    println!("\n{}\n{}", graft.display(), modules.display());
    if let Some(page) = page {
        println!("{}", page.display());
    }
    Ok(())
}

fn wasm(root: &Path, args: &[String]) -> anyhow::Result<()> {
    no_arguments(args)?;
    let tools = setup::setup(root)?;
    artifacts::wasm_libraries(&tools)?;
    artifacts::reducers(&tools).map(drop)
}

fn sim(root: &Path, args: &[String]) -> anyhow::Result<()> {
    if !root.join("tests/src/bin/sim.rs").is_file() {
        bail!("there is no simulation yet: tests/src/bin/sim.rs does not exist");
    }
    let tools = setup::setup(root)?;
    let modules = artifacts::reducers(&tools)?;
    tools
        .cargo(["run", "--release", "-p", "tests", "--bin", "sim", "--"])
        .args(args)
        .env("GRAFT_REDUCERS", modules)
        .check()
}

fn tidy(root: &Path, args: &[String]) -> anyhow::Result<()> {
    let tools = setup::setup(root)?;
    tools.cargo(["test", "-p", "tests", "--test", "tidy", "--"]).args(args).check()
}

fn fmt(root: &Path, args: &[String]) -> anyhow::Result<()> {
    no_arguments(args)?;
    Run::cargo(root, ["fmt", "--all"]).check()
}
