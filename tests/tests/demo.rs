//! `cargo xtask demo --once`: what a newcomer sees first, on the program that the other tests run.

use std::process::Command;

use tests::places;
use tests::process::{Process, run};

fn demo(args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    let module = places::reducer_module("todo");
    command
        .args(["run", "--quiet", "--package", "xtask", "--", "demo"])
        .args(args)
        .current_dir(places::root())
        .env("GRAFT_BIN", places::graft_bin())
        .env("GRAFT_REDUCERS", module.parent().unwrap_or(&module));
    command
}

#[test]
fn the_demo_shows_two_people_who_see_each_other() {
    let output = run(demo(&["--once"])).expect(0);
    let mut lines = output.stdout.lines();
    // In this order, with others between.
    for expected in [
        "$ graft serve --store ",
        "http://127.0.0.1:",
        "$ graft deploy target/reducers/todo.wasm --volume todo",
        "deployed ",
        "alice │ $ graft subscribe",
        "alice │ sees an empty list",
        "bob   │ sees an empty list",
        "alice │ $ graft mutate create_list",
        "alice │ durable: create_list",
        "alice │ $ graft mutate add_task",
        "alice │ sees [ ] Buy milk",
        "bob   │ sees [ ] Buy milk",
        "bob   │ $ graft mutate add_task",
        "alice │ sees [ ] Buy milk  [ ] Water the fern",
        "bob   │ sees [ ] Buy milk  [ ] Water the fern",
        "bob   │ $ graft mutate set_done",
        "alice │ sees [x] Buy milk  [ ] Water the fern",
        "alice │ $ graft mutate rename_task",
        "bob   │ sees [x] Buy milk  [ ] Water all plants",
        "bob   │ $ graft mutate add_task",
        "bob   │ rejected: a task needs a title (refused)",
        "alice │ $ graft mutate delete_task",
        "alice │ sees [ ] Water all plants",
        "Both see the same: [ ] Water all plants",
        "demo: stopping the server",
    ] {
        assert!(
            lines.any(|line| line.starts_with(expected)),
            "`{expected}` is missing in its place: {output}"
        );
    }
    let store = output.stdout.lines().find_map(|line| line.split("file://").nth(1)?.split("/store").next());
    let folder = std::path::Path::new(store.unwrap());
    assert!(folder.starts_with(places::root().join("target")), "{output}");
    assert!(!folder.exists(), "it leaves nothing behind: {output}");
}

/// A demo that is asked to stop, also when the test fails: killed, it would leave its programs behind.
struct Gently(Process);

impl Drop for Gently {
    fn drop(&mut self) {
        if self.0.is_running() {
            self.0.terminate();
            self.0.wait();
        }
    }
}

/// Without `--once` it stays up, tells what to type, and shows what the reader's own mutations do.
#[test]
fn the_demo_stays_up_for_the_readers_own_commands() {
    let mut demo = Gently(Process::start(demo(&[])));
    let demo = &mut demo.0;
    let wait = |demo: &mut Process, part: &str| loop {
        let line = demo.line();
        if line.contains(part) {
            return line;
        }
    };
    let line = wait(demo, "stays up at http://");
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap();
    let url = url.trim_end_matches('.').to_string();
    let typed = wait(demo, "mutate add_task");
    wait(demo, "Ctrl-C stops everything");
    // Typed as it stands there, by a shell.
    let mut shell = Command::new("sh");
    shell.args(["-c", typed.trim()]);
    let output = run(shell).expect(0);
    assert!(output.stdout.starts_with("durable: add_task"), "{output}");
    assert!(typed.contains(&url), "{typed}");
    // In whichever order it reaches them.
    let mut see =
        ["alice", "bob  "].map(|who| format!("{who} │ sees [ ] Water all plants  [ ] Say hello")).to_vec();
    while !see.is_empty() {
        let line = demo.line();
        see.retain(|expected| *expected != line);
    }
    demo.terminate();
    let status = demo.wait();
    assert_eq!(status.code(), Some(0), "{}", demo.told());
    let gone = tests::process::graft([
        "query",
        "SELECT 1",
        "--volume",
        "todo",
        "--url",
        &url,
        "--connect-timeout",
        "1",
    ]);
    gone.error();
}
