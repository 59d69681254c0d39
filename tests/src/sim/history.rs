//! What happened, readable: the last lines, and a fingerprint of all of them.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Lines kept for a failure's report.
const LINES_MAX: usize = 120;

/// Characters kept of a line.
const CHARS_MAX: usize = 300;

/// The world's diary.
#[derive(Debug, Default)]
pub struct History {
    lines: VecDeque<String>,
    fingerprint: DefaultHasher,
    loud: bool,
}

impl History {
    /// A diary that also prints each line to stderr if `loud`.
    pub fn new(loud: bool) -> History {
        History { loud, ..History::default() }
    }

    /// Writes a line down.
    pub fn note(&mut self, now: u64, mut line: String) {
        if let Some((cut, _)) = line.char_indices().nth(CHARS_MAX) {
            line.truncate(cut);
            line.push('…');
        }
        let line = format!("{:>9.3} {line}", now as f64 / 1000.0);
        line.hash(&mut self.fingerprint);
        if self.loud {
            eprintln!("{line}");
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Equal for equal runs.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint.finish()
    }

    /// The last lines.
    pub fn last(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}
