//! The types of a reducer's parameters.

use reducers_abi::Type;

use crate::value::{FromValue, Json};

/// What a reducer may take as an argument.
///
/// | Rust | from JSON |
/// | --- | --- |
/// | `String` | a string |
/// | `i64`, `i32`, `u32` | a number without fraction, within range |
/// | `f64` | a number |
/// | `bool` | `true`, `false` |
/// | `Vec<u8>` | `{"$blob": "base64"}` |
/// | [`Json`] | anything; it arrives as its text |
/// | `Option<T>` | as `T`, or null, or left out |
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a reducer",
    note = "use String, i64, i32, u32, f64, bool, Vec<u8>, reducers::Json, or Option of one of these"
)]
pub trait Argument: FromValue {
    /// What the module's description says of it.
    const TYPE: Type;
    /// Whether null, or leaving it out, is accepted.
    const OPTIONAL: bool = false;
}

impl Argument for String {
    const TYPE: Type = Type::Text;
}
impl Argument for i64 {
    const TYPE: Type = Type::Integer;
}
impl Argument for i32 {
    const TYPE: Type = Type::Integer;
}
impl Argument for u32 {
    const TYPE: Type = Type::Integer;
}
impl Argument for f64 {
    const TYPE: Type = Type::Real;
}
impl Argument for bool {
    const TYPE: Type = Type::Boolean;
}
impl Argument for Vec<u8> {
    const TYPE: Type = Type::Blob;
}
impl Argument for Json {
    const TYPE: Type = Type::Json;
}
impl<T: Argument> Argument for Option<T> {
    const TYPE: Type = T::TYPE;
    const OPTIONAL: bool = true;
}
