//! Percentiles, and how figures are printed.

use std::time::Duration;

use serde::Deserialize;

/// Percentiles in milliseconds; `None` where there were no samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub struct Percentiles {
    /// The median.
    pub p50: Option<f64>,
    /// Nine of ten are below.
    pub p90: Option<f64>,
    /// 99 of a hundred are below.
    pub p99: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
}

impl Percentiles {
    /// Of `samples`, which it sorts.
    pub fn of(samples: &mut [Duration]) -> Percentiles {
        samples.sort_unstable();
        let at = |share: f64| {
            let index = (samples.len().saturating_sub(1) as f64 * share).round() as usize;
            samples.get(index).map(|sample| sample.as_secs_f64() * 1e3)
        };
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

/// Milliseconds with two decimals, or a dash.
pub fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), |ms| format!("{ms:.2}"))
}

/// `peer` in multiples of `ours`, or a dash.
pub fn ratio(peer: Option<f64>, ours: Option<f64>) -> String {
    match (peer, ours) {
        (Some(peer), Some(ours)) if ours > 0.0 => format!("{:.2}", peer / ours),
        _ => "–".into(),
    }
}

/// Prints rows under `head`: the first two columns to the left, the others to the right.
pub fn print(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(&head.iter().map(|cell| (*cell).to_string()).collect::<Vec<_>>());
    for row in rows {
        line(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples: Vec<Duration> = (1..=101).rev().map(Duration::from_millis).collect();
        let found = Percentiles::of(&mut samples);
        assert_eq!(
            (found.p50, found.p90, found.p99, found.max),
            (Some(51.0), Some(91.0), Some(100.0), Some(101.0))
        );
        assert_eq!(Percentiles::of(&mut []), Percentiles::default());
    }
}
