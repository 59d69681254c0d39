//! Debian's package manager, asked only when something is missing.
//!
//! Invariant: no package is ever removed (`--no-remove`); apt's errors are shown, its progress is not.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::run::Run;

/// One run's dealings with apt.
pub struct Apt {
    root: PathBuf,
    updated: bool,
    /// Whether anything on this machine was changed, by apt or otherwise.
    pub changed: bool,
}

impl Apt {
    /// Asks nothing yet.
    pub fn new(root: &Path) -> Apt {
        Apt { root: root.into(), updated: false, changed: false }
    }

    /// Whether packages can be installed here at all: apt exists and we are root.
    pub fn usable(&self) -> bool {
        self.exists() && self.is_root()
    }

    /// Installs the first of `choices` that apt knows whole. `what` is missing, and needed `why`.
    ///
    /// # Errors
    ///
    /// Not root, no apt, no choice known, or apt failed. The message says what to install by hand.
    pub fn install(&mut self, what: &str, why: &str, choices: &[&[&str]]) -> anyhow::Result<()> {
        if !self.usable() {
            bail!(self.by_hand(what, why, choices));
        }
        if !self.updated {
            println!("setup: apt-get update, since {what} is missing");
            self.apt_get(&["update", "-qq"]).check().context("apt-get update failed")?;
            self.updated = true;
        }
        let Some(packages) = choices.iter().find(|packages| packages.iter().all(|p| self.knows(p))) else {
            bail!("apt knows none of the packages that bring {what}\n{}", self.by_hand(what, why, choices));
        };
        if *packages != choices[0] {
            println!("setup: apt does not know {}", choices[0].join(" "));
        }
        println!("setup: installing {} — {why}", packages.join(" "));
        let install = ["install", "-qq", "-y", "--no-install-recommends", "--no-remove"];
        self.apt_get(&install)
            .args(*packages)
            .check_quietly()
            .with_context(|| format!("{what} is missing"))?;
        self.changed = true;
        Ok(())
    }

    fn by_hand(&self, what: &str, why: &str, choices: &[&[&str]]) -> String {
        let known = choices.iter().find(|packages| packages.iter().all(|p| self.knows(p)));
        let packages = known.or(choices.last()).map(|p| p.join(" ")).unwrap_or_default();
        let reason = if self.exists() { "xtask is not root" } else { "this machine has no apt" };
        let others = "Fedora: dnf install clang-devel llvm lld; Arch: pacman -S clang llvm lld; \
             macOS: brew install llvm lld";
        format!(
            "{what} is missing ({why}), and {reason}.\n\
             Install it, then run the same command again:\n  \
             Debian, Ubuntu: sudo apt-get update && sudo apt-get install -y {packages}\n  \
             {others}"
        )
    }

    fn knows(&self, package: &str) -> bool {
        self.exists()
            && Run::new(&self.root, "apt-cache")
                .args(["show", "--no-all-versions", package])
                .output()
                .is_some_and(|text| !text.trim().is_empty())
    }

    fn exists(&self) -> bool {
        super::wasm::on_path("apt-get").is_some()
    }

    fn is_root(&self) -> bool {
        Run::new(&self.root, "id").args(["-u"]).output().is_some_and(|id| id.trim() == "0")
    }

    fn apt_get(&self, args: &[&str]) -> Run {
        Run::new(&self.root, "apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive")
    }
}
