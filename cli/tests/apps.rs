//! Making an app: types from a module, a scaffold that works, and the loop that follows its saves.

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};

use common::{graft, wasm};

const TODO_TS: &str = include_str!("../../examples/todo/web/src/mutations.ts");
const NOTES_TS: &str = include_str!("../testdata/codegen/notes.ts");

fn run(folder: &Path, args: &[&str]) -> Output {
    graft(args).current_dir(folder).output().unwrap()
}

fn ok(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fails(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// `graft dev`. Killed when dropped.
struct Dev {
    child: Child,
    out: BufReader<ChildStdout>,
    err: BufReader<ChildStderr>,
}

impl Dev {
    fn start(folder: &Path, args: &[&str]) -> Dev {
        let mut command = graft(&["dev"]);
        command.current_dir(folder).args(args).args(["--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let err = BufReader::new(child.stderr.take().unwrap());
        Dev { child, out, err }
    }
    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.out.read_line(&mut line).unwrap() > 0, "the process ended");
        line.trim_end().to_owned()
    }
    /// What it said of an error; until the note that it waits.
    fn error(&mut self) -> String {
        let mut said = String::new();
        while !said.ends_with("waiting for the next save\n") {
            assert!(self.err.read_line(&mut said).unwrap() > 0, "the process ended: {said}");
        }
        said
    }
    fn end(mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// To renew the expected files: `graft codegen ts target/reducers/todo.wasm --out examples/todo/web/src/mutations.ts`.
#[test]
fn types_are_written_from_the_modules_own_description() {
    let dir = tempfile::tempdir().unwrap();
    for (example, expected) in [("todo", TODO_TS), ("notes", NOTES_TS)] {
        let module = wasm(example);
        let module = module.to_str().unwrap();
        assert_eq!(ok(dir.path(), &["codegen", "ts", module]), expected);
        // A file that holds them already is not written again, so that nothing rebuilds for it.
        let out = format!("made/{example}.ts");
        assert_eq!(ok(dir.path(), &["codegen", "ts", module, "--out", &out]), format!("wrote {out}\n"));
        assert_eq!(std::fs::read_to_string(dir.path().join(&out)).unwrap(), expected);
        assert_eq!(ok(dir.path(), &["codegen", "ts", module, "--out", &out]), format!("unchanged: {out}\n"));
        let named = ok(dir.path(), &["codegen", "ts", module, "--name", "Mine", "--no-register"]);
        assert!(named.contains("export interface Mine {") && !named.contains("declare module"), "{named}");
    }
    std::fs::write(dir.path().join("%s.wasm"), "hello").unwrap();
    for (args, words) in [
        (&["codegen", "ts"][..], &["MODULE.wasm", "--volume"][..]),
        (&["codegen", "ts", "nowhere.wasm"], &["`nowhere.wasm`", "cargo build"]),
        (&["codegen", "ts", "%s.wasm"], &["`%s.wasm`", "not a core wasm module"]),
        (&["codegen", "ts", "--volume", "../x"], &["`../x` cannot name a volume"]),
        (&["codegen", "ts", "%s.wasm", "--name", "a b"], &["error"]),
        (&["codegen", "ts", "--volume", "x", "--url", "http://127.0.0.1:1"], &["127.0.0.1:1", "graft serve"]),
    ] {
        let said = fails(dir.path(), args);
        assert!(words.iter().all(|word| said.contains(word)), "{args:?}: {said}");
    }
}

#[test]
fn a_new_app_names_its_checkout_and_touches_nothing_that_exists() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ok(dir.path(), &["new", "my-app"]).contains("graft dev"));
    let read = |file: &str| std::fs::read_to_string(dir.path().join("my-app").join(file)).unwrap();
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().display().to_string();
    assert!(read("reducer/Cargo.toml").contains(&format!("\"{checkout}/reducers/sdk\"")));
    assert!(read("web/package.json").contains(&format!("\"file:{checkout}/client\"")));
    assert!(read("README.md").contains(&checkout));
    assert!(read("web/src/mutations.ts").contains("export interface MyAppMutations {"));
    assert!(read("web/src/main.ts").contains("connect<MyAppMutations>"));
    for (args, words) in [
        (&["new", "my-app"][..], &["`my-app`", "another name"][..]),
        (&["new", "../x"], &["`../x`", "lower-case"]),
        (&["new", "%S"], &["`%S`", "lower-case"]),
        (&["new", "other", "--path", "/nowhere"], &["`/nowhere`", "--path DIR"]),
    ] {
        let said = fails(dir.path(), args);
        assert!(words.iter().all(|word| said.contains(word)), "{args:?}: {said}");
    }
    assert!(!dir.path().join("other").exists());
}

/// With this workspace's lock, so that nothing is fetched; in a target folder of its own, so that
/// cargo's lock of the one in use is not waited for.
#[test]
fn a_new_apps_reducers_build_and_pass_their_tests() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &["new", "fresh"]);
    let app = dir.path().join("fresh");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::copy(workspace.join("Cargo.lock"), app.join("Cargo.lock")).unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tested = Command::new(cargo)
        .args(["test", "--offline", "--quiet"])
        .current_dir(&app)
        .env("CARGO_TARGET_DIR", workspace.join("target/new-app"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&tested.stdout);
    assert!(tested.status.success(), "{said}{}", String::from_utf8_lossy(&tested.stderr));
    assert!(said.contains("2 passed"), "{said}");
}

/// A module is put in another's place while the loop runs: good, broken, of another app, good again.
#[test]
fn dev_follows_the_module_and_survives_its_errors() {
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("todo");
    std::fs::create_dir_all(app.join("web")).unwrap();
    let put = |bytes: &[u8]| {
        // By renaming, so that it is never seen half written.
        let fresh = dir.path().join("fresh.wasm");
        std::fs::write(&fresh, bytes).unwrap();
        std::fs::rename(&fresh, app.join("module.wasm")).unwrap();
    };
    let todo = std::fs::read(wasm("todo")).unwrap();
    put(&todo);
    let mut dev = Dev::start(&app, &["--wasm", "module.wasm"]);
    let line = dev.line();
    let url = line.strip_prefix("volume todo at ").unwrap_or_else(|| panic!("{line}")).to_owned();
    let types = app.join("web/src/mutations.ts");
    assert!(dev.line().ends_with("web/src/mutations.ts"));
    let line = dev.line();
    assert!(line.starts_with("deployed ") && line.contains("to todo: schema 2 (2 migrations run)"), "{line}");
    assert_eq!(std::fs::read_to_string(&types).unwrap(), TODO_TS);

    // It serves, and its own description makes the same types.
    let ask = ["codegen", "ts", "--volume", "todo", "--url", url.as_str()];
    assert_eq!(ok(&app, &ask), TODO_TS);
    let mutate =
        ["mutate", "create_list", r#"{"id":"l","name":"L"}"#, "--volume", "todo", "--url", url.as_str()];
    assert!(ok(&app, &mutate).starts_with("durable"));

    put(b"not wasm");
    assert!(dev.error().contains("not a core wasm module"));
    // An older version of the module, which does not know the volume's tables.
    let older = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/testdata/todo-schema-1.wasm");
    put(&std::fs::read(older).unwrap());
    let said = dev.error();
    assert!(
        said.contains("cannot deploy to volume `todo`") && said.contains("schema is at version 2"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(&types).unwrap(), TODO_TS, "types are of what is in force");
    // The same module with a section that means nothing: other bytes, so it is deployed.
    let mut changed = todo.clone();
    changed.extend([0, 3, 1, b'x', 0]);
    put(&changed);
    let line = dev.line();
    assert!(line.starts_with("deployed ") && line.contains("schema 2 (0 migrations run)"), "{line}");
    std::fs::remove_file(app.join("module.wasm")).unwrap();
    assert!(dev.error().contains("cannot read `module.wasm`"));
    put(&changed);
    assert_eq!(dev.line(), "the same module: nothing to deploy");
    assert_eq!(dev.end(), Some(0));

    // What it served is kept beside the app.
    let store = app.join(".graft");
    let sql = ["sql", "SELECT name FROM lists", "--volume", "todo", "--store", store.to_str().unwrap()];
    assert!(ok(&app, &sql).contains('L'));
}

#[test]
fn dev_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    for (args, words) in [
        (&["dev", "nowhere"][..], &["`nowhere`", "graft new"][..]),
        (&["dev"], &["reducer/Cargo.toml", "--wasm"]),
        (&["dev", "--wasm", "x.wasm", "--volume", "../x"], &["`../x` cannot name a volume"]),
    ] {
        let said = fails(dir.path(), args);
        assert!(words.iter().all(|word| said.contains(word)), "{args:?}: {said}");
    }
}
