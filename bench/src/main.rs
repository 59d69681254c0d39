//! Benchmarks: `cargo xtask bench [throughput|latency]…`, all of them without arguments.
//!
//! Every figure is taken from the running product, the `graft` program as its own process on loopback
//! with a directory store whose every commit is fsynced, and stands beside a named peer's figure from
//! the same run on the same disk. What an acknowledgement means is printed beside each.
//!
//! The machine's noise is in every number: read ratios, and compare runs only with runs beside them.

mod latency;
mod server;
mod throughput;

use std::time::Duration;

fn main() -> anyhow::Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let known = ["throughput", "latency"];
    if let Some(unknown) = asked.iter().find(|name| !known.contains(&name.as_str())) {
        anyhow::bail!("there is no benchmark `{unknown}`; there are {}", known.join(", "));
    }
    let wanted = |name: &str| asked.is_empty() || asked.iter().any(|a| a == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        if wanted("throughput") {
            throughput::run().await?;
        }
        if wanted("latency") {
            latency::run().await?;
        }
        Ok(())
    })
}

/// The value below which `share` of `samples` lie; sorts them.
fn percentile(samples: &mut [Duration], share: f64) -> Duration {
    samples.sort_unstable();
    let at = ((samples.len() as f64 - 1.0) * share).round().max(0.0) as usize;
    samples.get(at).copied().unwrap_or_default()
}

/// Milliseconds with two decimals.
fn ms(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1e3)
}
