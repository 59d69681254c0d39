//! A client's copy of a subscription's rows.
//!
//! A [`Changes`] is read as `protocol.rs` says: remove the positions in `delete` from the last to the
//! first, put in the rows of `insert` from the first to the last at their positions in the new
//! rows, then replace the rows of `update` at their positions in the new rows. The whole change is
//! checked before any of it is made, so a change that does not fit leaves the rows as they were,
//! and its cost is linear in rows and changes whatever a hostile server sends.

use graft::Lsn;
use serde::{Deserialize, Serialize};

use crate::protocol::{At, Changes, WireRow};

/// Rows of one subscription and where they stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    columns: Vec<String>,
    key: Vec<String>,
    rows: Vec<WireRow>,
    at: At,
}

/// Why a delta does not apply. The rows are unchanged; only a fresh snapshot helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// A position lies outside the rows.
    #[error("{what} position {position} is outside the {rows} rows it refers to")]
    OutOfBounds {
        /// `delete`, `insert` or `update`.
        what: &'static str,
        /// The position, from 0.
        position: u32,
        /// How many rows there are (old ones for `delete`, new ones otherwise).
        rows: usize,
    },
    /// Positions of deletes or inserts do not rise.
    #[error("{what} position {position} does not come after the one before it")]
    OutOfOrder {
        /// `delete` or `insert`.
        what: &'static str,
        /// The position, from 0.
        position: u32,
    },
    /// A row has more or fewer values than there are columns.
    #[error("a row has {found} values, but there are {columns} columns")]
    Width {
        /// Its values.
        found: usize,
        /// The subscription's columns.
        columns: usize,
    },
}

impl Rows {
    /// The rows of a snapshot.
    ///
    /// # Errors
    ///
    /// [`DeltaError::Width`] where a row does not fit the columns.
    pub fn new(
        columns: Vec<String>,
        key: Vec<String>,
        rows: Vec<WireRow>,
        at: At,
    ) -> Result<Rows, DeltaError> {
        check_width(&columns, rows.iter())?;
        Ok(Rows { columns, key, rows, at })
    }

    /// No columns, no rows: before the first snapshot.
    pub fn empty() -> Rows {
        let at = At { epoch: 0, lsn: Lsn::ZERO, seq: 0 };
        Rows { columns: Vec::new(), key: Vec::new(), rows: Vec::new(), at }
    }

    /// Column names.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The columns that identify a row.
    pub fn key(&self) -> &[String] {
        &self.key
    }

    /// All rows, each as long as [`Rows::columns`], in the wire's value form ([`crate::value`]).
    pub fn rows(&self) -> &[WireRow] {
        &self.rows
    }

    /// Where the rows stand.
    pub fn at(&self) -> At {
        self.at
    }

    /// Applies a delta that leads to `at`.
    ///
    /// # Errors
    ///
    /// See [`Rows::apply`].
    pub fn advance(&mut self, at: At, changes: &Changes) -> Result<(), DeltaError> {
        self.apply(changes)?;
        self.at = at;
        Ok(())
    }

    /// Applies `changes`. Linear in rows and changes; rows are moved, not copied.
    ///
    /// # Errors
    ///
    /// Any [`DeltaError`]; the rows are then unchanged.
    pub fn apply(&mut self, changes: &Changes) -> Result<(), DeltaError> {
        let new_len = self.check(changes)?;
        if !changes.delete.is_empty() || !changes.insert.is_empty() {
            let mut deletes = changes.delete.iter().map(|position| *position as usize).peekable();
            let mut kept = std::mem::take(&mut self.rows)
                .into_iter()
                .enumerate()
                .filter(|(position, _)| deletes.next_if_eq(position).is_none())
                .map(|(_, row)| row);
            let mut inserts = changes.insert.iter().peekable();
            let mut rows = Vec::with_capacity(new_len);
            while rows.len() < new_len {
                let here = rows.len();
                let inserted = inserts.next_if(|(position, _)| *position as usize == here);
                match inserted.map(|(_, row)| row.clone()).or_else(|| kept.next()) {
                    Some(row) => rows.push(row),
                    None => break, // `check` counted them, so both run out together.
                }
            }
            self.rows = rows;
        }
        for (position, row) in &changes.update {
            self.rows[*position as usize].clone_from(row);
        }
        Ok(())
    }

    /// How many rows there will be, if `changes` fits.
    fn check(&self, changes: &Changes) -> Result<usize, DeltaError> {
        let old_len = self.rows.len();
        check_positions("delete", changes.delete.iter().copied(), old_len)?;
        let new_len = old_len - changes.delete.len() + changes.insert.len();
        check_positions("insert", changes.insert.iter().map(|(position, _)| *position), new_len)?;
        let changed = || changes.insert.iter().chain(&changes.update).map(|(_, row)| row);
        check_width(&self.columns, changed())?;
        match changes.update.iter().find(|(position, _)| *position as usize >= new_len) {
            Some((position, _)) => {
                Err(DeltaError::OutOfBounds { what: "update", position: *position, rows: new_len })
            }
            None => Ok(new_len),
        }
    }
}

fn check_width<'a>(columns: &[String], rows: impl Iterator<Item = &'a WireRow>) -> Result<(), DeltaError> {
    for row in rows {
        if row.len() != columns.len() {
            return Err(DeltaError::Width { found: row.len(), columns: columns.len() });
        }
    }
    Ok(())
}

fn check_positions(
    what: &'static str,
    positions: impl Iterator<Item = u32>,
    rows: usize,
) -> Result<(), DeltaError> {
    let mut before = None;
    for position in positions {
        if before.is_some_and(|before| before >= position) {
            return Err(DeltaError::OutOfOrder { what, position });
        }
        if position as usize >= rows {
            return Err(DeltaError::OutOfBounds { what, position, rows });
        }
        before = Some(position);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use serde_json::json;

    use super::*;

    const AT: At = At { epoch: 0, lsn: Lsn(1), seq: 0 };

    fn row(n: u64) -> WireRow {
        vec![json!(n)]
    }
    fn rows(values: &[u64]) -> Rows {
        Rows::new(vec!["n".into()], vec![], values.iter().map(|n| row(*n)).collect(), AT).unwrap()
    }
    fn values(rows: &Rows) -> Vec<u64> {
        rows.rows().iter().map(|row| row[0].as_u64().unwrap()).collect()
    }

    /// What protocol.rs says, word for word, on a list.
    fn by_the_letter(rows: &mut Vec<WireRow>, changes: &Changes) {
        for position in changes.delete.iter().rev() {
            rows.remove(*position as usize);
        }
        for (position, row) in &changes.insert {
            rows.insert(*position as usize, row.clone());
        }
        for (position, row) in &changes.update {
            rows[*position as usize] = row.clone();
        }
    }

    #[test]
    fn applying_is_what_the_protocol_says_by_the_letter() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let len = rng.random_range(0..30);
            let mut rows = rows(&(0..len).collect::<Vec<u64>>());
            for step in 0..20 {
                let old = rows.rows().len();
                let delete: Vec<u32> = (0..old as u32).filter(|_| rng.random_bool(0.2)).collect();
                let inserts = rng.random_range(0..6);
                let new = old - delete.len() + inserts;
                let mut places: Vec<u32> = (0..new as u32).collect();
                while places.len() > inserts {
                    let gone = rng.random_range(0..places.len());
                    places.remove(gone);
                }
                let insert = places.into_iter().map(|p| (p, row(rng.random_range(100..999)))).collect();
                let updated: Vec<u32> = (0..new as u32).filter(|_| rng.random_bool(0.1)).collect();
                let update = updated.into_iter().map(|p| (p, row(rng.random_range(1000..9999)))).collect();
                let changes = Changes { delete, insert, update };
                let mut expected = rows.rows().to_vec();
                by_the_letter(&mut expected, &changes);
                rows.apply(&changes).unwrap_or_else(|e| panic!("seed {seed}, step {step}: {e}, {changes:?}"));
                assert_eq!(rows.rows(), expected, "seed {seed}, step {step}, {changes:?}");
            }
        }
    }

    #[test]
    fn a_change_that_does_not_fit_changes_nothing() {
        let out = |what, position, rows| DeltaError::OutOfBounds { what, position, rows };
        let hostile = [
            (Changes { delete: vec![3], ..Changes::default() }, out("delete", 3, 3)),
            (Changes { delete: vec![u32::MAX], ..Changes::default() }, out("delete", u32::MAX, 3)),
            (
                Changes { delete: vec![1, 1], ..Changes::default() },
                DeltaError::OutOfOrder { what: "delete", position: 1 },
            ),
            (
                Changes { delete: vec![2, 0], ..Changes::default() },
                DeltaError::OutOfOrder { what: "delete", position: 0 },
            ),
            (Changes { insert: vec![(4, row(9))], ..Changes::default() }, out("insert", 4, 4)),
            (
                Changes { insert: vec![(1, row(9)), (1, row(9))], ..Changes::default() },
                DeltaError::OutOfOrder { what: "insert", position: 1 },
            ),
            (
                Changes { delete: vec![0, 1, 2], insert: vec![(1, row(9))], ..Changes::default() },
                out("insert", 1, 1),
            ),
            (Changes { update: vec![(3, row(9))], ..Changes::default() }, out("update", 3, 3)),
            (
                Changes { delete: vec![0], update: vec![(2, row(9))], ..Changes::default() },
                out("update", 2, 2),
            ),
            (
                Changes { insert: vec![(0, vec![])], ..Changes::default() },
                DeltaError::Width { found: 0, columns: 1 },
            ),
            (
                Changes {
                    delete: vec![0],
                    update: vec![(0, vec![json!(1), json!(2)])],
                    ..Changes::default()
                },
                DeltaError::Width { found: 2, columns: 1 },
            ),
        ];
        for (changes, error) in hostile {
            let mut rows = rows(&[1, 2, 3]);
            assert_eq!(rows.advance(At { seq: 9, ..AT }, &changes), Err(error), "{changes:?}");
            assert_eq!(values(&rows), [1, 2, 3], "{changes:?}");
            assert_eq!(rows.at(), AT, "{changes:?}");
        }
    }

    #[test]
    fn a_snapshot_with_ragged_rows_is_refused() {
        let ragged = Rows::new(vec!["a".into()], vec![], vec![row(1), vec![]], AT);
        assert_eq!(ragged, Err(DeltaError::Width { found: 0, columns: 1 }));
    }
}
