//! Why a reducer refuses.

use std::fmt;

use reducers_abi::SqlError;

/// Why a reducer ended without effect. Its text is what the caller is told, so it is best written for
/// the person who clicked: "a task needs a title".
///
/// `?` makes one from a string, from a failed statement and from the standard parse errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    message: String,
    sql_code: Option<i32>,
}

impl Error {
    /// An error that says `message`.
    pub fn new(message: impl Into<String>) -> Error {
        Error { message: message.into(), sql_code: None }
    }

    /// SQLite's extended result code where a statement failed, so that a reducer can tell a
    /// constraint (2067 `UNIQUE`, 1555 `PRIMARY KEY`, 787 `FOREIGN KEY`, 275 `CHECK`, 1299 `NOT NULL`)
    /// from the rest; 0 where the host refused the statement.
    pub fn sql_code(&self) -> Option<i32> {
        self.sql_code
    }

    /// What it says.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for Error {}

impl From<&str> for Error {
    fn from(message: &str) -> Error {
        Error::new(message)
    }
}

impl From<String> for Error {
    fn from(message: String) -> Error {
        Error::new(message)
    }
}

impl From<SqlError> for Error {
    fn from(error: SqlError) -> Error {
        Error { message: error.message, sql_code: Some(error.code) }
    }
}

macro_rules! from_display {
    ($($error:ty),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Error {
                Error::new(error.to_string())
            }
        }
    )*};
}
from_display!(
    std::num::ParseIntError,
    std::num::ParseFloatError,
    std::num::TryFromIntError,
    std::str::Utf8Error,
    std::string::FromUtf8Error,
    crate::Mismatch
);

/// Returns an [`Error`] with a formatted text: `bail!("no task {id}")`.
#[macro_export]
macro_rules! bail {
    ($($message:tt)+) => {
        return ::core::result::Result::Err($crate::Error::new(::std::format!($($message)+)).into())
    };
}

/// Returns an [`Error`] with a formatted text unless a condition holds:
/// `ensure!(!title.is_empty(), "a task needs a title")`.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            $crate::bail!($($message)+);
        }
    };
}
