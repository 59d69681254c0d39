//! The messages: description, call, outcome, and the answers to `execute` and `query`.
//!
//! ```text
//! description   u8 version = 1
//!               list of reducer { str name, str doc, list of param { str name, u8 type, u8 optional } }
//!               list of u32 (migrations' versions)
//! call          u8 version = 1
//!               u8 entry: 0 reducer { str name, list of value }
//!                         1 migration { u32 version }
//!               str user, i64 now_ms, u64 seed
//! outcome       u8: 0 done
//!                   1 refused { str message }
//!                   2 unknown { str entry }
//! changes       u8: 0 done { u64 changed rows }
//!                   1 failed { i32 code, str message }
//! rows          u8: 0 rows { list of str (columns), u32 row count, then every row's values in turn }
//!                   1 failed { i32 code, str message }
//! ```
//!
//! Types: 0 text, 1 integer, 2 real, 3 boolean, 4 blob, 5 JSON.

use super::read::{DecodeError, Reader};
use super::value::{decode_list, decode_value, encode_list, encode_value};
use super::{ABI_VERSION, COLUMNS_MAX, VALUES_MAX, write};
use crate::{Call, Description, Entry, Failure, Param, Reducer, Rows, SqlError, Type, Value};

fn type_tag(ty: Type) -> u8 {
    match ty {
        Type::Text => 0,
        Type::Integer => 1,
        Type::Real => 2,
        Type::Boolean => 3,
        Type::Blob => 4,
        Type::Json => 5,
    }
}

fn decode_version(r: &mut Reader<'_>) -> Result<(), DecodeError> {
    match r.u8("version")? {
        ABI_VERSION => Ok(()),
        other => Err(r.tag("version", other)),
    }
}

/// What a module says of itself.
pub fn encode_description(description: &Description) -> Vec<u8> {
    let mut out = vec![ABI_VERSION];
    write::count(&mut out, description.reducers.len());
    for reducer in &description.reducers {
        write::str(&mut out, &reducer.name);
        write::str(&mut out, &reducer.doc);
        write::count(&mut out, reducer.params.len());
        for param in &reducer.params {
            write::str(&mut out, &param.name);
            out.push(type_tag(param.ty));
            out.push(u8::from(param.optional));
        }
    }
    write::count(&mut out, description.migrations.len());
    for version in &description.migrations {
        out.extend_from_slice(&version.to_le_bytes());
    }
    out
}

/// What a module says of itself; names and versions are as the module wrote them, unchecked.
///
/// # Errors
///
/// The bytes are not a description of this version.
pub fn decode_description(bytes: &[u8]) -> Result<Description, DecodeError> {
    let mut r = Reader::new(bytes);
    decode_version(&mut r)?;
    let mut reducers = Vec::new();
    for _ in 0..r.count("reducer count", 12, u32::MAX)? {
        let name = r.str("reducer name")?.to_owned();
        let doc = r.str("reducer doc")?.to_owned();
        let mut params = Vec::new();
        for _ in 0..r.count("parameter count", 6, VALUES_MAX)? {
            let name = r.str("parameter name")?.to_owned();
            let ty = match r.u8("parameter type")? {
                0 => Type::Text,
                1 => Type::Integer,
                2 => Type::Real,
                3 => Type::Boolean,
                4 => Type::Blob,
                5 => Type::Json,
                other => return Err(r.tag("parameter type", other)),
            };
            let optional = match r.u8("optional flag")? {
                0 => false,
                1 => true,
                other => return Err(r.tag("optional flag", other)),
            };
            params.push(Param { name, ty, optional });
        }
        reducers.push(Reducer { name, params, doc });
    }
    let mut migrations = Vec::new();
    for _ in 0..r.count("migration count", 4, u32::MAX)? {
        migrations.push(r.u32("migration version")?);
    }
    r.finish()?;
    Ok(Description { reducers, migrations })
}

/// One run, as a guest receives it.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodedCall<'a> {
    /// What to run.
    pub entry: DecodedEntry<'a>,
    /// Who called.
    pub user: &'a str,
    /// The mutation's wall clock, ms since 1970.
    pub now_ms: i64,
    /// The mutation's random seed.
    pub seed: u64,
}

/// What a received call wants run.
#[derive(Debug, Clone, PartialEq)]
pub enum DecodedEntry<'a> {
    /// A reducer.
    Reducer {
        /// Which.
        name: &'a str,
        /// Its arguments.
        args: Vec<Value>,
    },
    /// A migration.
    Migration {
        /// Its version.
        version: u32,
    },
}

impl DecodedCall<'_> {
    /// The same call, borrowed.
    pub fn as_call(&self) -> Call<'_> {
        Call {
            entry: match &self.entry {
                DecodedEntry::Reducer { name, args } => Entry::Reducer { name, args },
                DecodedEntry::Migration { version } => Entry::Migration { version: *version },
            },
            user: self.user,
            now_ms: self.now_ms,
            seed: self.seed,
        }
    }
}

/// One run of a module.
pub fn encode_call(call: &Call<'_>) -> Vec<u8> {
    let mut out = vec![ABI_VERSION];
    match call.entry {
        Entry::Reducer { name, args } => {
            out.push(0);
            write::str(&mut out, name);
            encode_list(&mut out, args);
        }
        Entry::Migration { version } => {
            out.push(1);
            out.extend_from_slice(&version.to_le_bytes());
        }
    }
    write::str(&mut out, call.user);
    out.extend_from_slice(&call.now_ms.to_le_bytes());
    out.extend_from_slice(&call.seed.to_le_bytes());
    out
}

/// One run of a module.
///
/// # Errors
///
/// The bytes are not a call of this version.
pub fn decode_call(bytes: &[u8]) -> Result<DecodedCall<'_>, DecodeError> {
    let mut r = Reader::new(bytes);
    decode_version(&mut r)?;
    let entry = match r.u8("entry kind")? {
        0 => DecodedEntry::Reducer { name: r.str("reducer name")?, args: decode_list(&mut r)? },
        1 => DecodedEntry::Migration { version: r.u32("migration version")? },
        other => return Err(r.tag("entry kind", other)),
    };
    let call =
        DecodedCall { entry, user: r.str("user")?, now_ms: r.i64("clock")?, seed: r.u64("random seed")? };
    r.finish()?;
    Ok(call)
}

/// How a run ended, as a guest answers it. Traps and limits are for hosts to find, so a guest that
/// answers one of those says "refused" with its message.
pub fn encode_outcome(outcome: &Result<(), Failure>) -> Vec<u8> {
    let mut out = Vec::new();
    match outcome {
        Ok(()) => out.push(0),
        Err(Failure::Refused { message } | Failure::Trap { message } | Failure::Limit { message }) => {
            out.push(1);
            write::str(&mut out, message);
        }
        Err(Failure::Unknown { entry }) => {
            out.push(2);
            write::str(&mut out, entry);
        }
    }
    out
}

/// How a run ended: done, [`Failure::Refused`] or [`Failure::Unknown`].
///
/// # Errors
///
/// The bytes are not an outcome.
pub fn decode_outcome(bytes: &[u8]) -> Result<Result<(), Failure>, DecodeError> {
    let mut r = Reader::new(bytes);
    let outcome = match r.u8("outcome")? {
        0 => Ok(()),
        1 => Err(Failure::Refused { message: r.str("message")?.to_owned() }),
        2 => Err(Failure::Unknown { entry: r.str("entry")?.to_owned() }),
        other => return Err(r.tag("outcome", other)),
    };
    r.finish()?;
    Ok(outcome)
}

fn encode_failed(out: &mut Vec<u8>, error: &SqlError) {
    out.push(1);
    out.extend_from_slice(&error.code.to_le_bytes());
    write::str(out, &error.message);
}

fn decode_failed(r: &mut Reader<'_>) -> Result<SqlError, DecodeError> {
    Ok(SqlError { code: r.i32("result code")?, message: r.str("message")?.to_owned() })
}

/// The host's answer to `execute`.
pub fn encode_changes(answer: &Result<u64, SqlError>) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Ok(changes) => {
            out.push(0);
            out.extend_from_slice(&changes.to_le_bytes());
        }
        Err(error) => encode_failed(&mut out, error),
    }
    out
}

/// The host's answer to `execute`.
///
/// # Errors
///
/// The bytes are not such an answer.
pub fn decode_changes(bytes: &[u8]) -> Result<Result<u64, SqlError>, DecodeError> {
    let mut r = Reader::new(bytes);
    let answer = match r.u8("answer")? {
        0 => Ok(r.u64("changed rows")?),
        1 => Err(decode_failed(&mut r)?),
        other => return Err(r.tag("answer", other)),
    };
    r.finish()?;
    Ok(answer)
}

/// The host's answer to `query`. Each row must be as long as there are columns; where there are no
/// columns no rows are written.
pub fn encode_rows(answer: &Result<Rows, SqlError>) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Ok(Rows { columns, rows }) => {
            out.push(0);
            write::count(&mut out, columns.len());
            for column in columns {
                write::str(&mut out, column);
            }
            write::count(&mut out, if columns.is_empty() { 0 } else { rows.len() });
            for row in rows {
                debug_assert_eq!(row.len(), columns.len(), "a row has one value for each column");
                for value in row {
                    encode_value(&mut out, value);
                }
            }
        }
        Err(error) => encode_failed(&mut out, error),
    }
    out
}

/// The host's answer to `query`.
///
/// # Errors
///
/// The bytes are not such an answer, or promise rows without columns.
pub fn decode_rows(bytes: &[u8]) -> Result<Result<Rows, SqlError>, DecodeError> {
    let mut r = Reader::new(bytes);
    let answer = match r.u8("answer")? {
        0 => {
            let mut columns = Vec::new();
            for _ in 0..r.count("column count", 4, COLUMNS_MAX)? {
                columns.push(r.str("column name")?.to_owned());
            }
            let rows_max = if columns.is_empty() { 0 } else { u32::MAX };
            let count = r.count("row count", columns.len().max(1), rows_max)?;
            let mut rows = Vec::with_capacity(count);
            for _ in 0..count {
                let mut row = Vec::with_capacity(columns.len());
                for _ in 0..columns.len() {
                    row.push(decode_value(&mut r)?);
                }
                rows.push(row);
            }
            Ok(Rows { columns, rows })
        }
        1 => Err(decode_failed(&mut r)?),
        other => return Err(r.tag("answer", other)),
    };
    r.finish()?;
    Ok(answer)
}
