//! The wasm32 target: its standard library, and a clang for SQLite's C.
//!
//! The standard library comes by one of two routes, chosen for the whole process by `GRAFT_WASM`:
//!
//! | `GRAFT_WASM` | route |
//! | --- | --- |
//! | `rustup` | `rustup target add`, for the toolchain that runs us |
//! | `debian` | Debian's own rustc, and a standard library built once from its sources into a cache |
//! | unset | what is there already; else rustup; where that is missing or refuses, debian |
//!
//! Invariants: the cached library records the rustc that built it and is rebuilt for another; it
//! appears in the cache whole or not at all, so an interrupted set-up or two at once do no harm.
//! Why there are two routes: `docs/decisions/0001-wasm-route-by-environment.md`.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::apt::Apt;
use crate::run::Run;

/// The target all guests and browser code are built for.
pub const TRIPLE: &str = "wasm32-unknown-unknown";

const RUSTC: &str = "/usr/bin/rustc";
const CARGO: &str = "/usr/bin/cargo";
const WHY_TARGET: &str = "reducers and the browser core are compiled for wasm32";
const WHY_CLANG: &str = "SQLite's C is compiled for wasm32 with it";

/// How to build for wasm32 on this machine.
pub struct Target {
    /// A clang with the wasm32 back end.
    pub clang: PathBuf,
    ar: PathBuf,
    route: Route,
}

enum Route {
    /// The toolchain that runs us has the target.
    Toolchain,
    /// Debian's rustc with our sysroot; rustc names its version.
    Debian { rustc: String, sysroot: PathBuf, linker: PathBuf },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.route {
            Route::Toolchain => f.write_str("of the Rust toolchain in use"),
            Route::Debian { rustc, sysroot, linker: _ } => {
                write!(f, "{} with Debian's {}", sysroot.display(), short_version(rustc))
            }
        }
    }
}

impl Target {
    /// The cargo that can build for [`TRIPLE`], with everything it needs to know.
    pub fn cargo(&self, root: &Path) -> Run {
        let run = match &self.route {
            Route::Toolchain => Run::cargo(root, []),
            Route::Debian { rustc: _, sysroot, linker } => debian_cargo(root)
                .env("RUSTDOC", "/usr/bin/rustdoc")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
                .env(
                    "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS",
                    format!("--sysroot {}", sysroot.display()),
                ),
        };
        run.env("CC_wasm32_unknown_unknown", &self.clang)
            .env("AR_wasm32_unknown_unknown", &self.ar)
            // Without it bindgen hides every function of SQLite when it reads the header for wasm32.
            .env("BINDGEN_EXTRA_CLANG_ARGS_wasm32_unknown_unknown", "-fvisibility=default")
    }
}

/// Finds or installs both halves.
pub fn find_or_install(root: &Path, apt: &mut Apt) -> anyhow::Result<Target> {
    let (clang, ar) = match find_clang(root) {
        Some(found) => found,
        None => {
            apt.install("clang for wasm32", WHY_CLANG, &[&["clang-22", "llvm-22"], &["clang", "llvm"]])?;
            find_clang(root).context("clang was installed, but no clang here compiles for wasm32")?
        }
    };
    let route = match std::env::var("GRAFT_WASM").as_deref() {
        Ok("debian") => debian(root, apt, &clang)?,
        Ok("rustup") if toolchain_has_target(root) => Route::Toolchain,
        Ok("rustup") => match rustup(root, apt) {
            Ok(()) => Route::Toolchain,
            Err(why) => bail!("{why}; install the target by hand, or set GRAFT_WASM=debian"),
        },
        Err(std::env::VarError::NotPresent) => unasked(root, apt, &clang)?,
        Ok(other) => bail!("GRAFT_WASM={other} is neither `rustup` nor `debian`"),
        Err(std::env::VarError::NotUnicode(_)) => bail!("GRAFT_WASM is neither `rustup` nor `debian`"),
    };
    Ok(Target { clang, ar, route })
}

/// Nobody chose: what is there, then rustup, then Debian.
fn unasked(root: &Path, apt: &mut Apt, clang: &Path) -> anyhow::Result<Route> {
    if toolchain_has_target(root) {
        return Ok(Route::Toolchain);
    }
    if let Some(ready) = debian_if_ready(root, clang)? {
        return Ok(ready);
    }
    match rustup(root, apt) {
        Ok(()) => Ok(Route::Toolchain),
        Err(why) if apt.usable() => {
            println!("setup: {why}; taking the target from Debian's packages instead");
            debian(root, apt, clang)
        }
        Err(why) => bail!(
            "the wasm32 target is missing ({WHY_TARGET}), and {why}.\n\
             Install it, then run the same command again:\n  rustup target add {TRIPLE}\n  \
             or, on Debian as root: GRAFT_WASM=debian cargo xtask setup"
        ),
    }
}

/// Whether the rustc in use has the target's standard library. It names the folder in any case.
fn toolchain_has_target(root: &Path) -> bool {
    let libdir = Run::new(root, "rustc").args(["--print", "target-libdir", "--target", TRIPLE]).output();
    let entries = libdir.and_then(|dir| std::fs::read_dir(dir.trim()).ok()).into_iter().flatten().flatten();
    entries.into_iter().any(|e| e.file_name().to_string_lossy().starts_with("libstd-"))
}

/// Asks rustup for the target. The error is the reason, as half a sentence.
fn rustup(root: &Path, apt: &mut Apt) -> Result<(), String> {
    if on_path("rustup").is_none() {
        return Err("there is no rustup".into());
    }
    println!("setup: rustup target add {TRIPLE} — {WHY_TARGET}");
    let add = Run::new(root, "rustup").args(["target", "add", TRIPLE]);
    add.check().map_err(|_| "rustup did not install the target".to_string())?;
    apt.changed = true;
    if toolchain_has_target(root) { Ok(()) } else { Err("rustup added the target elsewhere".into()) }
}

// ---- Debian's route ----

fn debian(root: &Path, apt: &mut Apt, clang: &Path) -> anyhow::Result<Route> {
    if let Some(ready) = debian_if_ready(root, clang)? {
        return Ok(ready);
    }
    if !rustc_is_new_enough(root) || rust_source(root).is_none() || wasm_ld(clang).is_none() {
        let lld = if on_path("wasm-ld-22").is_some() || clang.starts_with("/usr/lib/llvm-22") {
            "lld-22"
        } else {
            "lld"
        };
        let packages = ["rustc-web", "cargo-web", "rust-web-src", lld];
        apt.install("the wasm32 target", WHY_TARGET, &[&packages])?;
    }
    if !rustc_is_new_enough(root) {
        bail!("{RUSTC} is older than this project needs; use rustup: rustup target add {TRIPLE}");
    }
    let rustc = rustc_version(root).with_context(|| format!("{RUSTC} does not run"))?;
    let linker = wasm_ld(clang).context("there is no wasm-ld; install Debian's lld")?;
    let sysroot = sysroot_dir()?;
    build_sysroot(root, &rustc, &sysroot)?;
    apt.changed = true;
    Ok(Route::Debian { rustc, sysroot, linker })
}

/// Debian's route where nothing is left to do.
fn debian_if_ready(root: &Path, clang: &Path) -> anyhow::Result<Option<Route>> {
    let (Some(rustc), Some(linker)) = (rustc_version(root), wasm_ld(clang)) else { return Ok(None) };
    let sysroot = sysroot_dir()?;
    let built_by = std::fs::read_to_string(sysroot.join("VERSION")).unwrap_or_default();
    let ready = built_by.trim() == rustc && Path::new(CARGO).exists();
    Ok(ready.then_some(Route::Debian { rustc, sysroot, linker }))
}

/// Builds the standard library from Debian's sources beside `sysroot`, then moves it there.
fn build_sysroot(root: &Path, rustc: &str, sysroot: &Path) -> anyhow::Result<()> {
    println!("setup: building the wasm32 standard library with Debian's {} (30 s)", short_version(rustc));
    let parent = sysroot.parent().context("the cache has no parent folder")?;
    let work = parent.join(format!("wasm-sysroot.building-{}", std::process::id()));
    let lib = work.join("done/lib/rustlib").join(TRIPLE).join("lib");
    std::fs::create_dir_all(work.join("src"))?;
    std::fs::create_dir_all(&lib)?;
    std::fs::write(
        work.join("Cargo.toml"),
        "[package]\nname = \"seed\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\
         [profile.release]\npanic = \"abort\"\n[workspace]\n",
    )?;
    std::fs::write(work.join("src/lib.rs"), "")?;
    debian_cargo(root)
        .args(["build", "--quiet", "--release", "-Zbuild-std=std,panic_abort", "--target", TRIPLE])
        .dir(&work)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", work.join("target"))
        // For the guests' link-time optimisation.
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", "-Cembed-bitcode=yes")
        .check()
        .context("the wasm32 standard library could not be built")?;
    for entry in std::fs::read_dir(work.join("target").join(TRIPLE).join("release/deps"))? {
        let (name, path) = entry.map(|e| (e.file_name(), e.path()))?;
        let name = name.to_string_lossy();
        if name.ends_with(".rlib") && !name.starts_with("libseed") {
            std::fs::copy(&path, lib.join(&*name))?;
        }
    }
    std::fs::write(work.join("done/VERSION"), format!("{rustc}\n"))?;
    if sysroot.exists() {
        std::fs::rename(sysroot, work.join("old"))?;
    }
    // Another set-up may have put the same library there in this moment; then ours is not needed.
    if let Err(error) = std::fs::rename(work.join("done"), sysroot)
        && !sysroot.join("VERSION").is_file()
    {
        return Err(error).with_context(|| format!("{} cannot be written", sysroot.display()));
    }
    std::fs::remove_dir_all(&work).with_context(|| format!("{} cannot be removed", work.display()))
}

/// Debian's cargo and rustc without what the caller's environment says about another toolchain.
fn debian_cargo(root: &Path) -> Run {
    let foreign = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO_BUILD_TARGET", "CARGO"];
    let run = Run::new(root, CARGO).env("RUSTC", RUSTC);
    foreign.into_iter().fold(run, |run, name| run.without(name))
}

fn rustc_version(root: &Path) -> Option<String> {
    Run::new(root, RUSTC).args(["-V"]).output().map(|text| text.trim().to_string())
}

/// `rustc 1.96.0 (…)` to `rustc 1.96.0`.
fn short_version(rustc: &str) -> String {
    rustc.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

fn rustc_is_new_enough(root: &Path) -> bool {
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap_or_default();
    let wanted = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \""));
    let wanted = wanted.and_then(|text| minor_version(text.trim_end_matches('"')));
    let have = rustc_version(root).and_then(|text| minor_version(text.split_whitespace().nth(1)?));
    have.is_some() && have >= wanted
}

/// `1.96.0` or `1.96` to 96.
fn minor_version(version: &str) -> Option<u32> {
    version.strip_prefix("1.")?.split('.').next()?.parse().ok()
}

fn rust_source(root: &Path) -> Option<PathBuf> {
    let sysroot = Run::new(root, RUSTC).args(["--print", "sysroot"]).output()?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    library.join("std/Cargo.toml").is_file().then_some(library)
}

fn sysroot_dir() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = cache.or(home).context("neither XDG_CACHE_HOME nor HOME is set; set one")?;
    Ok(cache.join("graft/wasm-sysroot"))
}

// ---- clang ----

/// The newest clang here that compiles for wasm32, and an archiver.
fn find_clang(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let given = std::env::var_os("CC_wasm32_unknown_unknown").map(PathBuf::from);
    let llvm = super::llvm_dirs().into_iter().map(|dir| dir.join("bin/clang")).filter(|p| p.is_file());
    let candidates = given.into_iter().chain(llvm).chain(on_path("clang"));
    candidates.into_iter().find_map(|clang| {
        let targets = Run::new(root, clang.to_string_lossy()).args(["--print-targets"]).output()?;
        targets.lines().any(|line| line.trim_start().starts_with("wasm32 ")).then_some(())?;
        let ar = std::env::var_os("AR_wasm32_unknown_unknown").map(PathBuf::from);
        let ar = ar.or_else(|| beside(&clang, "llvm-ar")).or_else(|| on_path("llvm-ar"))?;
        Some((clang, ar))
    })
}

fn wasm_ld(clang: &Path) -> Option<PathBuf> {
    let llvm = super::llvm_dirs().into_iter().map(|dir| dir.join("bin/wasm-ld")).find(|p| p.is_file());
    beside(clang, "wasm-ld").or(llvm).or_else(|| on_path("wasm-ld"))
}

/// `name` in the folder where `program` really is.
fn beside(program: &Path, name: &str) -> Option<PathBuf> {
    let real = std::fs::canonicalize(program).ok()?;
    Some(real.with_file_name(name)).filter(|path| path.is_file())
}

/// The program `name` on `PATH`.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(minor_version("1.96.0"), Some(96));
        assert_eq!(minor_version("1.95"), Some(95));
        assert_eq!(minor_version("2.0"), None);
        assert_eq!(short_version("rustc 1.96.0 (ac68faa20 2026-05-25)"), "rustc 1.96.0");
    }
}
