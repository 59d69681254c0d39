//! `#[reducer]`, `#[migration]`, `module!` and `#[derive(FromRow)]` of the crate `reducers`.
//!
//! An attribute leaves its function as it is, so that other functions may call it, and puts a hidden
//! constant beside it that describes it and calls it with decoded arguments. `module!` gathers these
//! constants into one static and, on wasm, exports the functions that a host calls. A constant that
//! no `module!` names is dead code, which is made an error: so nothing can be forgotten, and no linker
//! section or start-up code is needed to collect anything. The constant's name is the error's text.
//!
//! Paths are `::reducers::…`: the crate must not be renamed where it is used.

mod entry;
mod from_row;
mod list;

use proc_macro::TokenStream;

/// Makes a function a reducer: `fn add_task(ctx: &mut Ctx, id: String, title: String) -> Result<(), Error>`.
///
/// The function's name is the reducer's, its parameters' names are the keys of the arguments object,
/// and the first paragraph of its doc comment is its description. It takes effect once `module!` lists
/// it.
#[proc_macro_attribute]
pub fn reducer(attr: TokenStream, item: TokenStream) -> TokenStream {
    finish(entry::reducer(attr.into(), item.into()))
}

/// Makes a function a migration: `#[migration(1)] fn create(ctx: &mut Ctx) -> Result<(), Error>`.
///
/// The number is the schema version it leads to. Versions start at 1 and have no gaps. A migration
/// that was deployed must not change afterwards: volumes that ran it will not run it again.
#[proc_macro_attribute]
pub fn migration(attr: TokenStream, item: TokenStream) -> TokenStream {
    finish(entry::migration(attr.into(), item.into()))
}

/// Lists a module's migrations and reducers, as paths to their functions:
/// `reducers::module! { migrations: [create], reducers: [tasks::add_task, tasks::set_done] }`.
///
/// Makes `pub static MODULE: reducers::Module` and, on wasm, the exports that a host calls. Once per
/// crate.
#[proc_macro]
pub fn module(input: TokenStream) -> TokenStream {
    finish(list::module(input.into()))
}

/// Reads a struct from a row, each field from the column of its name.
#[proc_macro_derive(FromRow)]
pub fn from_row(input: TokenStream) -> TokenStream {
    finish(from_row::derive(input.into()))
}

fn finish(tokens: syn::Result<proc_macro2::TokenStream>) -> TokenStream {
    tokens.unwrap_or_else(|error| error.to_compile_error()).into()
}
