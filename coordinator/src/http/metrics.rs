//! `GET /v1/metrics`: what reading and fetching cost each open volume, as Prometheus reads it.
//!
//! Counters begin at 0 when a volume is opened, and a volume that was closed for want of sessions is not
//! listed: that is how Prometheus expects a counter to start again.
//!
//! Invariant: a scrape makes no request to the object store and waits for no volume.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use graft::VolumeName;
use graft::fetch::Metrics;

use crate::volumes::Volumes;

/// The text format's version.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One metric: name, type, what it is, and its samples in a volume's [`Metrics`], each under a label.
type Metric = (&'static str, &'static str, &'static str, fn(&Metrics) -> Vec<(&'static str, u64)>);

const METRICS: [Metric; 8] = [
    ("graft_fetch_requests_total", "counter", "Ranged GETs sent, hedges too.", |m| vec![("", m.requests)]),
    ("graft_fetch_bytes_total", "counter", "Bytes that they brought.", |m| vec![("", m.bytes)]),
    ("graft_fetch_shared_total", "counter", "Fetches that waited for another one's request.", |m| {
        vec![("", m.shared)]
    }),
    ("graft_fetch_hedges_total", "counter", "Second requests sent because the first took long.", |m| {
        vec![("outcome=\"sent\"", m.hedges), ("outcome=\"won\"", m.hedges_won)]
    }),
    ("graft_page_reads_total", "counter", "Reads of durable pages, by what answered.", |m| {
        vec![("from=\"memory\"", m.memory_hits), ("from=\"disk\"", m.disk_hits), ("from=\"store\"", m.misses)]
    }),
    ("graft_prefetch_pages_total", "counter", "Pages fetched ahead, and what became of them.", |m| {
        vec![
            ("outcome=\"issued\"", m.prefetch_issued),
            ("outcome=\"used\"", m.prefetch_used),
            ("outcome=\"wasted\"", m.prefetch_wasted),
        ]
    }),
    ("graft_cache_evicted_pages_total", "counter", "Pages evicted from the cache.", |m| {
        vec![("tier=\"memory\"", m.evicted_memory), ("tier=\"disk\"", m.evicted_disk)]
    }),
    ("graft_cache_bytes", "gauge", "Bytes of pages in the cache.", |m| {
        vec![("tier=\"memory\"", m.memory_bytes), ("tier=\"disk\"", m.disk_bytes)]
    }),
];

pub(super) async fn metrics(State(volumes): State<Arc<Volumes>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, TEXT)], text(&volumes.fetched()))
}

fn text(volumes: &[(VolumeName, Metrics)]) -> String {
    let mut text = String::new();
    for (metric, kind, help, samples) in METRICS {
        // Writing to a String cannot fail.
        _ = write!(text, "# HELP {metric} {help}\n# TYPE {metric} {kind}\n");
        for (name, metrics) in volumes {
            for (label, value) in samples(metrics) {
                // A name has no character that would have to be escaped.
                let comma = if label.is_empty() { "" } else { "," };
                _ = writeln!(text, "{metric}{{volume=\"{name}\"{comma}{label}}} {value}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_text_that_prometheus_reads() {
        let metrics = Metrics { requests: 3, bytes: 70_000, prefetch_wasted: 64, ..Metrics::default() };
        let text = text(&[("todo".parse().unwrap(), metrics)]);
        for line in [
            "# TYPE graft_fetch_requests_total counter",
            "graft_fetch_requests_total{volume=\"todo\"} 3",
            "graft_fetch_bytes_total{volume=\"todo\"} 70000",
            "graft_prefetch_pages_total{volume=\"todo\",outcome=\"wasted\"} 64",
            "graft_cache_bytes{volume=\"todo\",tier=\"memory\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with('\n'));
    }
}
