//! How much a module may use.

use std::time::Duration;

use reducers_abi::{QUERY_BYTES_MAX, QUERY_ROWS_MAX};

/// Bounds on modules and their runs. All but the times are the same on every machine; whoever changes
/// them changes which mutations succeed, so coordinators of one bucket should agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// A guest's linear memory. Default 64 MiB: four times the largest query result.
    pub memory_bytes: usize,
    /// A guest's stack of wasm frames. Default 512 KiB: a quarter of a Rust thread's, on which it lies,
    /// and thousands of calls deep.
    pub stack_bytes: usize,
    /// How long a guest may compute, not counting host calls. Default 5 s: a reducer that computes for
    /// a tenth of that is already felt by everybody, since one volume runs one mutation at a time; the
    /// rest is for slow machines.
    pub time: Duration,
    /// How long a run may take in all, host calls included: those may wait for pages from a slow
    /// object store, which is not the reducer's fault. Checked after each host call. Default 60 s.
    pub time_total: Duration,
    /// Host calls of one run, so that a loop of fast statements ends. Default 1,000,000.
    pub calls: u64,
    /// Rows that one query may answer. Default 100,000.
    pub query_rows: usize,
    /// Bytes that one query's rows may take. Default 16 MiB: guest and host both hold them.
    pub query_bytes: usize,
    /// Bytes of one statement's text and parameters. Default 16 MiB: as much as a result.
    pub statement_bytes: usize,
    /// Lines that one run may log; more are dropped, with one line that says so. Default 1,000.
    pub log_lines: usize,
    /// Bytes that one run may log; as above. Default 64 KiB.
    pub log_bytes: usize,
    /// Bytes of a refusal's text; the rest is cut off, since outcomes are recorded. Default 4 KiB.
    pub message_bytes: usize,
    /// Bytes of a module. Default 16 MiB: a hundred times a usual one; compiling is not interruptible.
    pub module_bytes: usize,
    /// Bytes of a module's description. Default 1 MiB.
    pub description_bytes: usize,
    /// Runs at one time; others wait. Default 32: each reserves 4 GiB of addresses, not of memory.
    pub concurrent_runs: u32,
    /// Compiled modules kept although nobody holds them. Default 64.
    pub cached_modules: usize,
}

impl Default for HostLimits {
    fn default() -> HostLimits {
        HostLimits {
            memory_bytes: 64 << 20,
            stack_bytes: 512 << 10,
            time: Duration::from_secs(5),
            time_total: Duration::from_secs(60),
            calls: 1_000_000,
            query_rows: QUERY_ROWS_MAX,
            query_bytes: QUERY_BYTES_MAX,
            statement_bytes: 16 << 20,
            log_lines: 1_000,
            log_bytes: 64 << 10,
            message_bytes: 4 << 10,
            module_bytes: 16 << 20,
            description_bytes: 1 << 20,
            concurrent_runs: 32,
            cached_modules: 64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limits that `docs/reducer-abi.md` promises are the defaults.
    #[test]
    fn the_document_says_the_defaults() {
        let document = include_str!("../../../docs/reducer-abi.md");
        let words = document.split_whitespace().collect::<Vec<_>>().join(" ");
        let limits = HostLimits::default();
        let mib = |bytes: usize| format!("{} MiB", bytes >> 20);
        let kib = |bytes: usize| format!("{} KiB", bytes >> 10);
        let thousands = |n: usize| match n / 1_000_000 {
            0 => format!("{},{:03}", n / 1_000, n % 1_000),
            millions => format!("{millions},{:03},{:03}", n / 1_000 % 1_000, n % 1_000),
        };
        for promise in [
            format!("{} of memory", mib(limits.memory_bytes)),
            format!("{} of stack", kib(limits.stack_bytes)),
            format!("{} s of computing and {} s in all", limits.time.as_secs(), limits.time_total.as_secs()),
            format!("{} host calls", thousands(limits.calls as usize)),
            format!("{} rows and {} for one query", thousands(limits.query_rows), mib(limits.query_bytes)),
            format!("{} for a statement", mib(limits.statement_bytes)),
            format!("{} table elements", thousands(crate::guest::TABLE_ELEMENTS_MAX)),
            format!("{} for a description or outcome", mib(limits.description_bytes)),
            format!("cut after {}", kib(limits.message_bytes)),
            format!("{} lines or {} are kept", thousands(limits.log_lines), kib(limits.log_bytes)),
        ] {
            assert!(words.contains(&promise), "docs/reducer-abi.md does not say: {promise}");
        }
    }
}
