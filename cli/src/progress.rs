//! How far long work is, on stderr: a bar on a terminal, a line for each tenth elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// A terminal is not drawn to more often.
const REDRAW: Duration = Duration::from_millis(100);
const WIDTH: usize = 30;

pub struct Bar {
    what: String,
    /// What is counted, where it is not bytes.
    unit: Option<&'static str>,
    terminal: bool,
    began: Instant,
    drawn: Option<Instant>,
    tenths: u64,
}

impl Bar {
    pub fn new(what: impl Into<String>) -> Bar {
        let terminal = io::stderr().is_terminal();
        Bar { what: what.into(), unit: None, terminal, began: now(), drawn: None, tenths: 0 }
    }

    /// One that counts things in place of bytes.
    pub fn of(what: impl Into<String>, unit: &'static str) -> Bar {
        let mut bar = Bar::new(what);
        bar.unit = Some(unit);
        bar
    }

    /// So much is done; both in bytes, or in its unit.
    pub fn set(&mut self, done: u64, total: u64) {
        if self.terminal {
            if done < total && self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
                return;
            }
            self.drawn = Some(now());
            self.print(&format!("\r{}\x1b[K", self.text(done, total)));
        } else {
            let tenths = (done * 10).checked_div(total).unwrap_or(10);
            if tenths > self.tenths {
                self.tenths = tenths;
                self.print(&format!("{}\n", self.text(done, total)));
            }
        }
    }

    /// Leaves the line to what comes next. So does dropping it, which an error does.
    pub fn end(self) {
        drop(self);
    }

    fn text(&self, done: u64, total: u64) -> String {
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        let seconds = self.began.elapsed().as_secs_f64();
        let amount = |n: u64| self.unit.map_or_else(|| size(n), |unit| format!("{n} {unit}"));
        let rate = if seconds > 0.2 {
            format!(", {}/s", amount((done as f64 / seconds) as u64))
        } else {
            String::new()
        };
        let text = format!("{percent:>3} % of {}{rate}", amount(total));
        if !self.terminal {
            return format!("{}: {}", self.what, text.trim_start());
        }
        let full = (done * WIDTH as u64).checked_div(total).map_or(WIDTH, |full| (full as usize).min(WIDTH));
        format!("{} [{}{}] {text}", self.what, "#".repeat(full), "-".repeat(WIDTH - full))
    }

    fn print(&self, text: &str) {
        // Progress that nobody can read is no reason to stop the work.
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.terminal && self.drawn.is_some() {
            self.print("\n");
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a driver: it shows a person how fast it goes")]
fn now() -> Instant {
    Instant::now()
}

/// `1.5 MB`, by thousands.
pub fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = None;
    for next in units {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = Some(next);
    }
    match unit {
        None => format!("{bytes} bytes"),
        Some(unit) => format!("{value:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (20_480_000, "20.5 MB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "18446744.1 TB");
    }

    #[test]
    fn an_empty_total_is_done() {
        let bar = Bar::new("x");
        assert!(bar.text(0, 0).contains("100 %"), "{}", bar.text(0, 0));
    }
}
