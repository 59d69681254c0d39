//! SQL values to and from JSON without loss.
//!
//! | SQL | JSON |
//! | --- | --- |
//! | NULL | `null` |
//! | INTEGER within ±(2^53 − 1) | a number without fraction |
//! | INTEGER beyond | `{"$int": "9223372036854775807"}` |
//! | REAL, finite | a number; whole ones keep `.0` |
//! | REAL, infinite | `{"$real": "inf"}`, `{"$real": "-inf"}` |
//! | TEXT | a string |
//! | BLOB | `{"$blob": "base64, padded"}` |
//!
//! A boolean is read as 1 or 0. Any other object or array is an error. A value that went out as
//! JSON comes back equal, also through a reader that holds numbers as doubles (but for the
//! difference between 1 and 1.0, which such a reader cannot keep).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reducers_abi::Value;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// The greatest integer that every JSON reader keeps exactly.
const SAFE_INTEGER_MAX: i64 = (1 << 53) - 1;

/// JSON was not a SQL value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found} is not a SQL value: use null, a boolean, a number, a string, {{\"$int\": \"…\"}}, {{\"$real\": \"inf\"}} or {{\"$blob\": \"base64\"}}"
)]
pub struct NotAValue {
    /// The JSON, shortened.
    pub found: String,
}

/// A SQL value as JSON.
pub fn to_json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Integer(i) if i.unsigned_abs() <= SAFE_INTEGER_MAX as u64 => Json::from(*i),
        Value::Integer(i) => serde_json::json!({ "$int": i.to_string() }),
        Value::Real(r) => match serde_json::Number::from_f64(*r) {
            Some(number) => Json::Number(number),
            None if r.is_nan() => Json::Null,
            None if *r > 0.0 => serde_json::json!({ "$real": "inf" }),
            None => serde_json::json!({ "$real": "-inf" }),
        },
        Value::Text(text) => Json::from(text.as_str()),
        Value::Blob(bytes) => serde_json::json!({ "$blob": BASE64.encode(bytes) }),
    }
}

/// JSON as a SQL value.
pub fn from_json(json: &Json) -> Result<Value, NotAValue> {
    let wrong = || {
        let mut found = json.to_string();
        if found.len() > 80 {
            let cut = (0..=80).rev().find(|i| found.is_char_boundary(*i)).unwrap_or(0);
            found.truncate(cut);
            found.push('…');
        }
        NotAValue { found }
    };
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Integer(i64::from(*b)),
        Json::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(i), _) => Value::Integer(i),
            (None, Some(r)) if !n.is_u64() => Value::Real(r),
            _ => return Err(wrong()),
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Object(tagged) if tagged.len() == 1 => match tagged.iter().next() {
            Some((tag, Json::String(text))) => match tag.as_str() {
                "$int" => Value::Integer(text.parse().map_err(|_| wrong())?),
                "$blob" => Value::Blob(BASE64.decode(text).map_err(|_| wrong())?),
                "$real" if text == "inf" => Value::Real(f64::INFINITY),
                "$real" if text == "-inf" => Value::Real(f64::NEG_INFINITY),
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        },
        Json::Object(_) | Json::Array(_) => return Err(wrong()),
    })
}

/// A statement's parameters: by position, or by name (with or without its `:`, `@` or `$`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Params {
    /// `?1, ?2, …`
    Positional(Vec<Json>),
    /// `:name`, `@name`, `$name`
    Named(serde_json::Map<String, Json>),
}

impl Default for Params {
    fn default() -> Params {
        Params::Positional(Vec::new())
    }
}

impl Params {
    /// No parameters.
    pub fn is_empty(&self) -> bool {
        match self {
            Params::Positional(values) => values.is_empty(),
            Params::Named(values) => values.is_empty(),
        }
    }
}

/// JSON text of a type that cannot fail to serialise (string keys, no failing impls).
pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our own types serialise: string keys, no failing impls")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_equal() {
        let values = [
            Value::Null,
            Value::Integer(0),
            Value::Integer(SAFE_INTEGER_MAX),
            Value::Integer(SAFE_INTEGER_MAX + 1),
            Value::Integer(i64::MIN),
            Value::Integer(i64::MAX),
            Value::Real(0.1),
            Value::Real(1.0),
            Value::Real(f64::INFINITY),
            Value::Real(f64::NEG_INFINITY),
            Value::Real(5e-324),
            Value::Text("%s \u{0}\u{1F600}".into()),
            Value::Blob(vec![]),
            Value::Blob((0..=255).collect()),
        ];
        for value in values {
            let text = to_json(&value).to_string();
            assert_eq!(from_json(&serde_json::from_str(&text).unwrap()).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn every_double_comes_back_to_the_last_bit() {
        use rand::{Rng, SeedableRng, rngs::StdRng};
        for seed in 0..20_000 {
            let bits: u64 = StdRng::seed_from_u64(seed).random();
            for value in
                [f64::from_bits(bits), (bits % 1_000_000) as f64 / 1e3].into_iter().filter(|v| !v.is_nan())
            {
                let text = to_json(&Value::Real(value)).to_string();
                let Ok(Value::Real(back)) = from_json(&serde_json::from_str(&text).unwrap()) else {
                    panic!("seed {seed}: {text}")
                };
                assert_eq!(back.to_bits(), value.to_bits(), "seed {seed}: {text}");
            }
        }
    }

    #[test]
    fn other_json_is_refused_by_name() {
        for bad in [
            r#"[]"#,
            r#"{}"#,
            r#"{"$int":"x"}"#,
            r#"{"$int":5}"#,
            r#"{"$blob":"?"}"#,
            r#"{"$real":"nan"}"#,
            r#"18446744073709551615"#,
        ] {
            let error = from_json(&serde_json::from_str(bad).unwrap()).unwrap_err();
            assert!(error.to_string().contains("is not a SQL value"), "{bad}");
        }
    }
}
