//! What a person or a script reads: tables, JSON lines, logs.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Serialize;
use serde_json::Value as Json;
use tracing_subscriber::EnvFilter;

/// Logs to stderr.
pub fn start_logging(filter: Option<&str>, serving: bool) -> anyhow::Result<()> {
    let filter = match filter {
        Some(filter) => EnvFilter::try_new(filter).with_context(|| {
            format!("`{filter}` is not a log filter: give a level like info, or coordinator=debug")
        })?,
        None if serving => EnvFilter::new("info"),
        None => EnvFilter::new("warn"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// Prints one line and flushes it, so that a reader at the other end of a pipe sees it now.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints a line to stderr where somebody reads it. Use it as `say!`.
pub fn say(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints one JSON object on a line.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(&serde_json::to_string(value)?)?)
}

/// An error and its causes, each said once: many an error ends with its cause's text already.
pub fn reason(error: &anyhow::Error) -> String {
    let mut out = String::new();
    let mut said = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // SQLite's own errors begin with what was said, and add its number.
        let known = !said.is_empty() && (out.ends_with(&text) || text.starts_with(&said));
        if !known {
            out.push_str(if out.is_empty() { "" } else { ": " });
            out.push_str(&text);
        }
        said = text.rsplit(": ").next().map(str::to_owned).unwrap_or_default();
    }
    out
}

/// Refuses a directory where a file is asked for, before any work is done for it.
pub fn check_no_directory(file: &Path) -> anyhow::Result<()> {
    if file.is_dir() {
        bail!("`{}` is a directory; give a file in it", file.display());
    }
    Ok(())
}

/// Whether stdout was closed by its reader.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Rows under their column names; numbers to the right.
pub fn table(columns: &[String], rows: &[Vec<Json>]) -> String {
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let names: Vec<String> = columns.iter().map(|name| printable(name)).collect();
    let mut widths: Vec<usize> = names.iter().map(|name| name.chars().count()).collect();
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let numeric: Vec<bool> = (0..columns.len())
        .map(|column| !rows.is_empty() && rows.iter().all(|row| row.get(column).is_some_and(Json::is_number)))
        .collect();
    let mut out = String::new();
    let mut push = |row: &[String]| {
        let mut line = String::new();
        for ((cell, width), numeric) in row.iter().zip(&widths).zip(&numeric) {
            let pad = " ".repeat(width - cell.chars().count());
            let (before, after) = if *numeric { (pad.as_str(), "") } else { ("", pad.as_str()) };
            line.push_str(before);
            line.push_str(cell);
            line.push_str(after);
            line.push_str("  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    };
    push(&names);
    push(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>());
    for row in &cells {
        push(row);
    }
    out.pop();
    out
}

/// One value, as one line: text bare, blobs by their length, other forms as in JSON.
pub fn cell(value: &Json) -> String {
    match value {
        Json::Null => "NULL".into(),
        Json::String(text) => printable(text),
        Json::Bool(_) | Json::Number(_) | Json::Array(_) => value.to_string(),
        Json::Object(tagged) => match (tagged.get("$int").or(tagged.get("$real")), tagged.get("$blob")) {
            (Some(Json::String(number)), _) => number.clone(),
            (_, Some(Json::String(base64))) => {
                let padding = base64.bytes().rev().take_while(|b| *b == b'=').count();
                format!("(blob, {} bytes)", (base64.len() / 4 * 3).saturating_sub(padding))
            }
            (_, _) => value.to_string(),
        },
    }
}

/// `text` without anything that a terminal would obey.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// `1 row`, `2 rows`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Resolves at Ctrl-C or SIGTERM.
pub async fn stop() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let file = std::io::Error::from_raw_os_error(2);
        let said = anyhow::anyhow!("file is not a database: Error code 26: file is not a database")
            .context("a.db: file is not a database")
            .context("`a.db` was not imported");
        assert_eq!(reason(&said), "`a.db` was not imported: a.db: file is not a database");
        let text = format!("a.db: {file}");
        let said = anyhow::Error::new(file).context(text.clone()).context("no import");
        assert_eq!(reason(&said), format!("no import: {text}"));
        let said = anyhow::anyhow!("the disk is full").context("it was not written");
        assert_eq!(reason(&said), "it was not written: the disk is full");
    }

    #[test]
    fn tables_are_aligned_and_safe_to_print() {
        let columns = ["id".into(), "title".into(), "n".into()];
        let rows = [
            vec![json!("milk"), json!("Buy %s\u{1b}[31m\n"), json!(1)],
            vec![json!("é"), json!(null), json!(250.5)],
        ];
        let expected = "\
id    title                   n
----  ------------------  -----
milk  Buy %s\\u{1b}[31m\\n      1
é     NULL                250.5";
        assert_eq!(table(&columns, &rows), expected);
        assert_eq!(table(&columns, &[]), "id  title  n\n--  -----  -");
    }

    #[test]
    fn tagged_values_read_as_what_they_are() {
        assert_eq!(cell(&json!({ "$int": "9223372036854775807" })), "9223372036854775807");
        assert_eq!(cell(&json!({ "$real": "-inf" })), "-inf");
        assert_eq!(cell(&json!({ "$blob": "AAAA" })), "(blob, 3 bytes)");
        assert_eq!(cell(&json!({ "$blob": "AA==" })), "(blob, 1 bytes)");
        assert_eq!(cell(&json!({ "$blob": "" })), "(blob, 0 bytes)");
    }
}
