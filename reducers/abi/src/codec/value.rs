//! One SQL value, and lists of them.
//!
//! | tag | value | then |
//! | ---: | --- | --- |
//! | 0 | NULL | |
//! | 1 | INTEGER | i64 |
//! | 2 | REAL | f64 |
//! | 3 | TEXT | str |
//! | 4 | BLOB | bytes |
//!
//! A NaN is written and read as NULL, as SQLite stores it: wasm leaves a NaN's bits open, and two
//! hosts must not see different ones.

use super::read::{DecodeError, Reader};
use super::{VALUES_MAX, write};
use crate::Value;

/// The value as the boundary carries it: NaN becomes NULL, all else stays.
pub fn canonical(value: Value) -> Value {
    match value {
        Value::Real(r) if r.is_nan() => Value::Null,
        Value::Null | Value::Integer(_) | Value::Real(_) | Value::Text(_) | Value::Blob(_) => value,
    }
}

pub(super) fn encode_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(0),
        Value::Integer(i) => {
            out.push(1);
            out.extend_from_slice(&i.to_le_bytes());
        }
        Value::Real(r) if r.is_nan() => out.push(0),
        Value::Real(r) => {
            out.push(2);
            out.extend_from_slice(&r.to_le_bytes());
        }
        Value::Text(text) => {
            out.push(3);
            write::str(out, text);
        }
        Value::Blob(bytes) => {
            out.push(4);
            write::bytes(out, bytes);
        }
    }
}

pub(super) fn decode_value(r: &mut Reader<'_>) -> Result<Value, DecodeError> {
    Ok(match r.u8("value tag")? {
        0 => Value::Null,
        1 => Value::Integer(r.i64("integer")?),
        2 => canonical(Value::Real(r.f64("real")?)),
        3 => Value::Text(r.str("text")?.to_owned()),
        4 => Value::Blob(r.bytes("blob")?.to_owned()),
        other => return Err(r.tag("value tag", other)),
    })
}

pub(super) fn decode_list(r: &mut Reader<'_>) -> Result<Vec<Value>, DecodeError> {
    let count = r.count("value count", 1, VALUES_MAX)?;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(decode_value(r)?);
    }
    Ok(values)
}

pub(super) fn encode_list(out: &mut Vec<u8>, values: &[Value]) {
    write::count(out, values.len());
    for value in values {
        encode_value(out, value);
    }
}

/// A statement's parameters: list of value.
pub fn encode_values(values: &[Value]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_list(&mut out, values);
    out
}

/// A statement's parameters.
///
/// # Errors
///
/// The bytes are not a list of at most [`VALUES_MAX`] values.
pub fn decode_values(bytes: &[u8]) -> Result<Vec<Value>, DecodeError> {
    let mut r = Reader::new(bytes);
    let values = decode_list(&mut r)?;
    r.finish()?;
    Ok(values)
}
