//! Memory while reading a database of 1 GB, many times what the page cache may hold.

use super::cold;
use super::report::{Figure, Group, Row, Unit};

/// Rows that make a SQLite file of 1 GB with their index.
const ROWS: u64 = 7_700_000;

/// Measures.
pub async fn run() -> anyhow::Result<Group> {
    let (data, peak, ms) = cold::memory_of_scan(ROWS).await?;
    let row = |name: &str, unit, target, value| Row {
        name: name.into(),
        unit,
        target,
        figures: vec![Some(Figure::of(value))],
    };
    Ok(Group {
        title: format!("Memory: one scan of {ROWS} rows from an empty folder, without delay"),
        systems: vec!["graft".into()],
        rows: vec![
            row("the database", Unit::Bytes, "", data),
            row("memory of the process, at most", Unit::Bytes, "cache budget + 64 MB", peak),
            row("opening and the scan", Unit::Ms, "", ms),
        ],
        notes: vec![
            "The budget of the page cache is the default, 64 MiB; the process holds SQLite and nothing else."
                .into(),
        ],
    })
}
