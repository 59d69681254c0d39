//! What one person sees: the rows of a live query, kept up to date from its messages.
//!
//! The messages are those of `docs/protocol.md`: a `snapshot` replaces all rows; a `delta` deletes
//! by old positions, then inserts and updates by new ones. A message that does not fit the rows is
//! an error, so that the demo also checks what the server sends.

use std::fmt;

use anyhow::{Context, bail};
use serde_json::Value;

/// A live query's rows: id, title, done.
#[derive(Debug, Default)]
pub struct List {
    rows: Vec<Vec<Value>>,
}

impl List {
    /// Applies one line of `graft subscribe --json`.
    pub fn apply(&mut self, line: &str) -> anyhow::Result<()> {
        let message: Value = serde_json::from_str(line).context("not JSON")?;
        match message["type"].as_str() {
            Some("snapshot") => {
                self.rows = rows(&message["rows"])?;
                Ok(())
            }
            Some("delta") => self.change(&message["changes"]),
            Some(other) => bail!("a message of type `{other}`"),
            None => bail!("a message without a type"),
        }
    }

    fn change(&mut self, changes: &Value) -> anyhow::Result<()> {
        let list = |name: &str| changes[name].as_array().cloned().unwrap_or_default();
        for position in list("delete").iter().rev() {
            let position = index(position)?;
            if position >= self.rows.len() {
                bail!("a delete of row {position} of {}", self.rows.len());
            }
            self.rows.remove(position);
        }
        for insert in list("insert") {
            let (position, row) = placed(&insert)?;
            if position > self.rows.len() {
                bail!("an insert at {position} into {} rows", self.rows.len());
            }
            self.rows.insert(position, row);
        }
        for update in list("update") {
            let (position, row) = placed(&update)?;
            let len = self.rows.len();
            *self
                .rows
                .get_mut(position)
                .with_context(|| format!("an update of row {position} of {len}"))? = row;
        }
        Ok(())
    }
}

fn rows(value: &Value) -> anyhow::Result<Vec<Vec<Value>>> {
    let rows = value.as_array().context("rows are missing")?;
    rows.iter().map(|row| row.as_array().cloned().context("a row is no array")).collect()
}

fn placed(value: &Value) -> anyhow::Result<(usize, Vec<Value>)> {
    Ok((index(&value[0])?, value[1].as_array().cloned().context("a row is missing")?))
}

fn index(value: &Value) -> anyhow::Result<usize> {
    usize::try_from(value.as_u64().context("a position is no number")?).context("a position is too large")
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return f.write_str("an empty list");
        }
        for (n, row) in self.rows.iter().enumerate() {
            let title = row.get(1).and_then(Value::as_str).unwrap_or("?");
            let done = row.get(2).is_some_and(|done| *done == 1 || *done == true);
            let space = if n == 0 { "" } else { "  " };
            write!(f, "{space}[{}] {title}", if done { "x" } else { " " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_the_messages() {
        let mut list = List::default();
        for (line, sees) in [
            (r#"{"type":"snapshot","columns":["id","title","done"],"rows":[]}"#, "an empty list"),
            (r#"{"type":"delta","changes":{"insert":[[0,["a","A",0]],[1,["b","B",0]]]}}"#, "[ ] A  [ ] B"),
            (r#"{"type":"delta","changes":{"update":[[1,["b","B",1]]]}}"#, "[ ] A  [x] B"),
            (r#"{"type":"delta","changes":{"delete":[0],"insert":[[1,["c","C",0]]]}}"#, "[x] B  [ ] C"),
            (r#"{"type":"delta","changes":{"delete":[0,1]}}"#, "an empty list"),
            (r#"{"type":"snapshot","rows":[["d","D",1]]}"#, "[x] D"),
        ] {
            list.apply(line).unwrap();
            assert_eq!(list.to_string(), sees, "{line}");
        }
    }

    #[test]
    fn messages_that_do_not_fit_are_errors() {
        for line in [
            "no json",
            "{}",
            r#"{"type":"pong"}"#,
            r#"{"type":"snapshot"}"#,
            r#"{"type":"delta","changes":{"delete":[0]}}"#,
            r#"{"type":"delta","changes":{"insert":[[1,[]]]}}"#,
            r#"{"type":"delta","changes":{"update":[[0,[]]]}}"#,
        ] {
            assert!(List::default().apply(line).is_err(), "{line}");
        }
    }
}
