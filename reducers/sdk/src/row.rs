//! Rows to tuples and structs.

use reducers_abi::Value;

use crate::Error;
use crate::value::{FromValue, Json};

/// One row of a result, from which columns are taken.
#[derive(Debug)]
pub struct Row<'a> {
    columns: &'a [String],
    values: Vec<Value>,
}

impl<'a> Row<'a> {
    pub(crate) fn new(columns: &'a [String], values: Vec<Value>) -> Row<'a> {
        Row { columns, values }
    }

    /// How many columns it has.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it has no columns.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Takes the column at `index` (from 0), leaving NULL.
    ///
    /// # Errors
    ///
    /// There is no such column, or its value is not a `T`.
    pub fn take<T: FromValue>(&mut self, index: usize) -> Result<T, Error> {
        let Some(value) = self.values.get_mut(index) else {
            return Err(Error::new(format!(
                "a row of {} columns has no column {}",
                self.columns.len(),
                index + 1
            )));
        };
        T::from_value(std::mem::replace(value, Value::Null)).map_err(|mismatch| {
            let name = self.columns.get(index).map_or("?", String::as_str);
            Error::new(format!("column `{name}`: {mismatch}"))
        })
    }

    /// Takes the first column called `name`, leaving NULL.
    ///
    /// # Errors
    ///
    /// There is no such column, or its value is not a `T`.
    pub fn take_named<T: FromValue>(&mut self, name: &str) -> Result<T, Error> {
        match self.columns.iter().position(|c| c == name) {
            Some(index) => self.take(index),
            None => Err(Error::new(format!(
                "the result has no column `{name}`, only {}",
                self.columns.join(", ")
            ))),
        }
    }
}

/// What a row can become: a tuple of up to twelve columns in their order, the single column of a row,
/// or a struct with `#[derive(FromRow)]`, whose fields are columns by name.
#[diagnostic::on_unimplemented(
    message = "a row cannot become `{Self}`",
    note = "use a tuple of column types, one column's type, or #[derive(FromRow)] on a struct"
)]
pub trait FromRow: Sized {
    /// The row as `Self`.
    ///
    /// # Errors
    ///
    /// Columns are missing, too many, or of other types; the text names the column.
    fn from_row(row: &mut Row<'_>) -> Result<Self, Error>;
}

fn expect_columns(row: &Row<'_>, expected: usize) -> Result<(), Error> {
    match row.len() {
        found if found == expected => Ok(()),
        found => Err(Error::new(format!("the query answers {found} columns where {expected} are read"))),
    }
}

macro_rules! single {
    ($($ty:ty),*) => {$(
        impl FromRow for $ty {
            fn from_row(row: &mut Row<'_>) -> Result<Self, Error> {
                expect_columns(row, 1)?;
                row.take(0)
            }
        }
    )*};
}
single!(String, i64, i32, u32, f64, bool, Vec<u8>, Json, Value);

impl<T: FromValue> FromRow for Option<T> {
    fn from_row(row: &mut Row<'_>) -> Result<Self, Error> {
        expect_columns(row, 1)?;
        row.take(0)
    }
}

macro_rules! tuples {
    ($(($count:literal: $($ty:ident $index:tt),+))*) => {$(
        impl<$($ty: FromValue),+> FromRow for ($($ty,)+) {
            fn from_row(row: &mut Row<'_>) -> Result<Self, Error> {
                expect_columns(row, $count)?;
                Ok(($(row.take::<$ty>($index)?,)+))
            }
        }
    )*};
}
tuples! {
    (1: A 0)
    (2: A 0, B 1)
    (3: A 0, B 1, C 2)
    (4: A 0, B 1, C 2, D 3)
    (5: A 0, B 1, C 2, D 3, E 4)
    (6: A 0, B 1, C 2, D 3, E 4, F 5)
    (7: A 0, B 1, C 2, D 3, E 4, F 5, G 6)
    (8: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7)
    (9: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8)
    (10: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9)
    (11: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10)
    (12: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11)
}
