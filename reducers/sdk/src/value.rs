//! Rust values to and from SQL values.

use std::fmt;

use reducers_abi::Value;

/// JSON as its text. As an argument the caller may pass any JSON value; in a row it is TEXT. This
/// crate does not parse it: SQLite's JSON functions can, or a crate of the author's choice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Json(pub String);

impl Json {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A SQL value was not what a Rust type needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    expected: &'static str,
    found: &'static str,
}

impl Mismatch {
    /// For implementations of [`FromValue`]: `expected` names what was wanted, with its article.
    pub fn new(expected: &'static str, found: &Value) -> Mismatch {
        let found = match found {
            Value::Null => "null",
            Value::Integer(_) => "an integer",
            Value::Real(_) => "a real number",
            Value::Text(_) => "text",
            Value::Blob(_) => "a blob",
        };
        Mismatch { expected, found }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, found {}", self.expected, self.found)
    }
}
impl std::error::Error for Mismatch {}

/// What can be read from a SQL value: a column of a row, or an argument.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from a SQL value",
    note = "use String, i64, i32, u32, f64, bool, Vec<u8>, Json, Value, or Option of one of these"
)]
pub trait FromValue: Sized {
    /// The Rust value.
    ///
    /// # Errors
    ///
    /// The SQL value is of another type, or out of the Rust type's range.
    fn from_value(value: Value) -> Result<Self, Mismatch>;
}

impl FromValue for Value {
    fn from_value(value: Value) -> Result<Value, Mismatch> {
        Ok(value)
    }
}

impl FromValue for String {
    fn from_value(value: Value) -> Result<String, Mismatch> {
        match value {
            Value::Text(text) => Ok(text),
            other => Err(Mismatch::new("text", &other)),
        }
    }
}

impl FromValue for Json {
    fn from_value(value: Value) -> Result<Json, Mismatch> {
        match value {
            Value::Text(text) => Ok(Json(text)),
            other => Err(Mismatch::new("JSON text", &other)),
        }
    }
}

impl FromValue for i64 {
    fn from_value(value: Value) -> Result<i64, Mismatch> {
        match value {
            Value::Integer(i) => Ok(i),
            other => Err(Mismatch::new("an integer", &other)),
        }
    }
}

impl FromValue for i32 {
    fn from_value(value: Value) -> Result<i32, Mismatch> {
        let wrong = Mismatch::new("an integer from -2147483648 to 2147483647", &value);
        i64::from_value(value).ok().and_then(|i| i32::try_from(i).ok()).ok_or(wrong)
    }
}

impl FromValue for u32 {
    fn from_value(value: Value) -> Result<u32, Mismatch> {
        let wrong = Mismatch::new("an integer from 0 to 4294967295", &value);
        i64::from_value(value).ok().and_then(|i| u32::try_from(i).ok()).ok_or(wrong)
    }
}

/// An integer is accepted too: JSON has one kind of number, and SQLite stores 1.0 in an INTEGER column as 1.
impl FromValue for f64 {
    fn from_value(value: Value) -> Result<f64, Mismatch> {
        match value {
            Value::Real(r) => Ok(r),
            Value::Integer(i) => Ok(i as f64),
            other => Err(Mismatch::new("a number", &other)),
        }
    }
}

/// As in SQL: 0 is false, other integers are true.
impl FromValue for bool {
    fn from_value(value: Value) -> Result<bool, Mismatch> {
        match value {
            Value::Integer(i) => Ok(i != 0),
            other => Err(Mismatch::new("a boolean (0 or 1)", &other)),
        }
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: Value) -> Result<Vec<u8>, Mismatch> {
        match value {
            Value::Blob(bytes) => Ok(bytes),
            other => Err(Mismatch::new("a blob", &other)),
        }
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value) -> Result<Option<T>, Mismatch> {
        match value {
            Value::Null => Ok(None),
            other => T::from_value(other).map(Some),
        }
    }
}

/// What can be a statement's parameter.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a parameter of a statement",
    note = "use String, &str, an integer of at most 64 bits signed, f64, bool, bytes, Json, Value, or Option of one of these"
)]
pub trait ToValue {
    /// The SQL value. A NaN arrives in the database as NULL.
    fn to_value(&self) -> Value;
}

impl<T: ToValue + ?Sized> ToValue for &T {
    fn to_value(&self) -> Value {
        (**self).to_value()
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Null, ToValue::to_value)
    }
}

macro_rules! to_value {
    ($($ty:ty, $this:ident => $value:expr;)*) => {$(
        impl ToValue for $ty {
            fn to_value(&self) -> Value {
                let $this = self;
                $value
            }
        }
    )*};
}
to_value! {
    Value, v => v.clone();
    str, v => Value::Text(v.to_owned());
    String, v => Value::Text(v.clone());
    Json, v => Value::Text(v.0.clone());
    [u8], v => Value::Blob(v.to_owned());
    Vec<u8>, v => Value::Blob(v.clone());
    bool, v => Value::Integer(i64::from(*v));
    i8, v => Value::Integer(i64::from(*v));
    u8, v => Value::Integer(i64::from(*v));
    i16, v => Value::Integer(i64::from(*v));
    u16, v => Value::Integer(i64::from(*v));
    i32, v => Value::Integer(i64::from(*v));
    u32, v => Value::Integer(i64::from(*v));
    i64, v => Value::Integer(*v);
    f32, v => Value::Real(f64::from(*v));
    f64, v => Value::Real(*v);
}

/// A statement's parameters, in order: `params![id, title, true]`. Values are borrowed.
#[macro_export]
macro_rules! params {
    () => { &[] as &[$crate::Value] };
    ($($value:expr),+ $(,)?) => { &[$($crate::ToValue::to_value(&$value)),+] as &[$crate::Value] };
}
