//! Ceph's object gateway: the real S3 server of the tests. Wanted by `cargo xtask test` alone.
//!
//! Invariant: a machine that cannot have it still runs every other test; only CI must have it.

use super::Apt;
use super::wasm::on_path;

/// What `tests/src/s3.rs` starts. The tools beside them come with the same packages.
const PROGRAMS: [&str; 3] = ["radosgw", "ceph-mon", "ceph-osd"];

/// Finds or installs the server; says so where it cannot, and that tests will be skipped.
///
/// # Errors
///
/// It cannot be had, and `CI=true`: there, nothing may be skipped.
pub fn find_or_install(apt: &mut Apt) -> anyhow::Result<()> {
    let what = "an S3 server (Ceph's radosgw)";
    if let Some(radosgw) = PROGRAMS.map(on_path).into_iter().collect::<Option<Vec<_>>>() {
        super::found("S3 server", &radosgw[0].display().to_string());
        return Ok(());
    }
    match apt.install(what, "the tests of `s3://` stores run against it", &[&PROGRAMS]) {
        Ok(()) => Ok(()),
        Err(error) if std::env::var("CI").as_deref() == Ok("true") => Err(error),
        Err(error) => {
            // The rest of the message is advice for what the build cannot do without.
            let why = format!("{error:#}");
            let why = why.lines().next().unwrap_or_default();
            println!("setup: {why}");
            println!(
                "setup: the S3 tests will be SKIPPED; to have them: sudo apt-get install -y \
                 --no-install-recommends {}",
                PROGRAMS.join(" ")
            );
            Ok(())
        }
    }
}
