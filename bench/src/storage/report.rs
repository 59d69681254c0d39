//! Figures side by side: on the terminal, as JSON, and as the README's tables.

use std::fmt::Write as _;

use serde::Serialize;

use super::s3::Counts;
use crate::table;

/// What a figure is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Bytes.
    Bytes,
}

/// One figure.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Figure {
    /// How many of the row's unit.
    pub value: f64,
    /// Requests and bytes of the object store that it took.
    pub counts: Option<Counts>,
    /// How many times the counted thing was done.
    pub times: u64,
}

impl Figure {
    /// A time or size without requests.
    pub fn of(value: f64) -> Figure {
        Figure { value, counts: None, times: 1 }
    }
}

/// One measure.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was done.
    pub name: String,
    /// What its figures are in.
    pub unit: Unit,
    /// What ours is to reach, in words; empty where nothing was promised.
    pub target: &'static str,
    /// One for each system, ours first; none where that was left out.
    pub figures: Vec<Option<Figure>>,
}

/// One table.
#[derive(Debug, Serialize)]
pub struct Group {
    /// Its heading.
    pub title: String,
    /// Ours first.
    pub systems: Vec<String>,
    /// The measures.
    pub rows: Vec<Row>,
    /// What must be known to read it: what durable means for each, and what was left out and why.
    pub notes: Vec<String>,
}

impl Group {
    /// Prints it.
    pub fn print(&self) {
        println!("\n# {}\n", self.title);
        let (head, rows) = self.cells();
        table::print(&head.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
        println!();
        self.notes.iter().for_each(|note| println!("{note}"));
    }

    /// As a table of Markdown.
    pub fn markdown(&self) -> String {
        let (head, rows) = self.cells();
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut out = format!("**{}**\n\n{}", self.title, line(&head));
        out += &line(&vec!["---".to_string(); head.len()]);
        rows.iter().for_each(|row| out += &line(row));
        out.push('\n');
        self.notes.iter().for_each(|note| out += &format!("- {note}\n"));
        out
    }

    fn cells(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let named = self.rows.iter().any(|row| !row.target.is_empty());
        let mut head = vec![String::new()];
        head.extend(self.systems.iter().cloned());
        if named {
            head.push("to reach".into());
        }
        let rows = self.rows.iter().map(|row| {
            let ours = row.figures.first().copied().flatten();
            let mut cells = vec![row.name.clone()];
            for (at, figure) in row.figures.iter().enumerate() {
                cells.push(
                    figure
                        .map_or_else(|| "–".into(), |figure| cell(row.unit, figure, ours.filter(|_| at > 0))),
                );
            }
            if named {
                cells.push(row.target.into());
            }
            cells
        });
        (head, rows.collect())
    }
}

/// `12.3 ms [4 requests, 56 KB] ×1.9`; the last is the figure in multiples of ours.
fn cell(unit: Unit, figure: Figure, ours: Option<Figure>) -> String {
    let mut text = match unit {
        Unit::Ms if figure.value < 10.0 => format!("{:.2} ms", figure.value),
        Unit::Ms => format!("{:.0} ms", figure.value),
        Unit::Bytes => bytes(figure.value),
    };
    if let Some(counts) = figure.counts {
        let times = figure.times.max(1) as f64;
        let requests = counts.requests() as f64 / times;
        let requests = if figure.times > 1 { format!("{requests:.1}") } else { format!("{requests:.0}") };
        let _ = write!(text, " [{requests}, {}]", bytes((counts.down + counts.up) as f64 / times));
    }
    if let Some(ours) = ours.filter(|ours| ours.value > 0.0) {
        let ratio = figure.value / ours.value;
        let _ = if ratio < 10.0 { write!(text, " ×{ratio:.2}") } else { write!(text, " ×{ratio:.0}") };
    }
    text
}

fn bytes(value: f64) -> String {
    match value {
        value if value < 1e3 => format!("{value:.0} B"),
        value if value < 1e6 => format!("{:.0} KB", value / 1e3),
        value => format!("{:.1} MB", value / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_shown_in_multiples_of_ours() {
        let counts = Counts { gets: 20, puts: 10, down: 4_000_000, ..Counts::default() };
        let ours = Figure { value: 20.0, counts: Some(counts), times: 10 };
        let rows = vec![Row {
            name: "update".into(),
            unit: Unit::Ms,
            target: "≤ 35 ms",
            figures: vec![Some(ours), Some(Figure::of(5.0)), None],
        }];
        let systems = vec!["graft".into(), "peer".into(), "other".into()];
        let group = Group { title: "T".into(), systems, rows, notes: vec!["a note".into()] };
        let text = group.markdown();
        assert!(text.contains("| update | 20 ms [3.0, 400 KB] | 5.00 ms ×0.25 | – | ≤ 35 ms |"), "{text}");
        assert!(text.ends_with("- a note\n"), "{text}");
    }
}
