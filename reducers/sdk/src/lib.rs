//! Write reducers in Rust: functions that turn a mutation into SQL, compiled to wasm.
//!
//! ```
//! use reducers::prelude::*;
//!
//! #[migration(1)]
//! fn create(ctx: &mut Ctx) -> Result<(), Error> {
//!     ctx.execute("CREATE TABLE tasks(id TEXT PRIMARY KEY NOT NULL, title TEXT NOT NULL)", params![])?;
//!     Ok(())
//! }
//!
//! /// Adds a task.
//! #[reducer]
//! fn add_task(ctx: &mut Ctx, id: String, title: String) -> Result<(), Error> {
//!     ensure!(!title.trim().is_empty(), "a task needs a title");
//!     ctx.execute("INSERT INTO tasks VALUES (?, ?)", params![id, title])?;
//!     Ok(())
//! }
//!
//! reducers::module! {
//!     migrations: [create],
//!     reducers: [add_task],
//! }
//! # fn main() {}
//! ```
//!
//! The crate is a `cdylib` (for wasm) and an `rlib` (for its tests). [`module!`] lists what belongs to
//! the module: nothing is collected behind the author's back, so that the same list serves the wasm
//! exports and native tests. A reducer or migration that is left out of the list is a compile error:
//!
//! ```compile_fail
//! use reducers::prelude::*;
//!
//! #[reducer]
//! fn forgotten(ctx: &mut Ctx) -> Result<(), Error> { Ok(()) }
//!
//! reducers::module! { reducers: [] }
//! # fn main() {}
//! ```
//!
//! So are versions of migrations that do not go 1, 2, 3, …:
//!
//! ```compile_fail
//! use reducers::prelude::*;
//!
//! #[migration(2)]
//! fn second(ctx: &mut Ctx) -> Result<(), Error> { Ok(()) }
//!
//! reducers::module! { migrations: [second], reducers: [] }
//! # fn main() {}
//! ```
//!
//! **A reducer runs many times**: at once on the client, again on the server, again whenever the
//! history below it changed. It must do the same each time, and everything here is made so: the clock
//! and the random numbers come from the mutation, memory starts fresh, and there is no other input
//! than the arguments and the database. An error or a panic undoes everything the run did; the error's
//! text is what the caller is told.
//!
//! Where things are: [`Ctx`] runs SQL and knows the caller; [`Argument`] lists the types a reducer may
//! take; [`FromRow`] turns rows into tuples and structs; [`random`] documents the generator;
//! [`testkit`] (feature `testkit`, native) tests reducers with `cargo test`; [`Native`] runs a module
//! without wasm. The bytes between this crate and a host are in `docs/reducer-abi.md`.

// So that the macros' paths (`::reducers::…`) also work in this crate's own tests.
extern crate self as reducers;

mod argument;
mod ctx;
mod error;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;
mod module;
#[cfg(not(target_arch = "wasm32"))]
mod native;
pub mod random;
mod row;
#[cfg(all(feature = "testkit", not(target_arch = "wasm32")))]
pub mod testkit;
mod time;
mod value;

pub use argument::Argument;
pub use ctx::Ctx;
pub use error::Error;
pub use module::Module;
#[cfg(not(target_arch = "wasm32"))]
pub use native::Native;
pub use reducers_abi::{Description, Failure, Rows, SqlError, Value};
pub use reducers_macro::{FromRow, migration, module, reducer};
pub use row::{FromRow, Row};
pub use value::{FromValue, Json, Mismatch, ToValue};

/// What a module's source needs: `use reducers::prelude::*;`.
pub mod prelude {
    pub use crate::{Ctx, Error, FromRow, Json, Value, bail, ensure, log, migration, params, reducer};
}

/// What the macros expand to. Not for use by hand; it may change with any version.
#[doc(hidden)]
pub mod __private {
    #[cfg(target_arch = "wasm32")]
    pub use crate::guest;
    pub use crate::module::{Args, MigrationDef, ParamDef, ReducerDef};
}
