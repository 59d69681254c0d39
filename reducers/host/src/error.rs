//! What can go wrong before a module runs.

use reducers_abi::Failure;
use reducers_abi::codec::DecodeError;

/// Why no host could be made.
#[derive(Debug, thiserror::Error)]
#[error("wasmtime could not start with these limits: {message}")]
pub struct HostError {
    /// What wasmtime or the operating system said.
    pub message: String,
}

/// Why bytes cannot be run as a module. Nothing of them is kept; the host stays usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There are too many of them.
    #[error(
        "the module has {found} bytes, and at most {max} are allowed: build it with optimisation and strip it"
    )]
    TooLarge {
        /// Bytes.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// They do not begin as a core wasm module does.
    #[error(
        "this is not a core wasm module ({found}): build with `cargo build --target wasm32-unknown-unknown`"
    )]
    NotWasm {
        /// What they look like.
        found: &'static str,
    },
    /// They begin as wasm but are damaged, use a proposal that is switched off, or need more memory or
    /// tables than is allowed.
    #[error("the module is not valid here: {message}")]
    Invalid {
        /// What wasmtime said.
        message: String,
    },
    /// The module wants something from outside that no host offers.
    #[error(
        "the module imports `{module}.{name}`, and there is only graft.{{execute, query, take, log, abort}}: a reducer has no files, clock, randomness or network of its own"
    )]
    Import {
        /// The import's module.
        module: String,
        /// Its name.
        name: String,
    },
    /// An import of `graft` or an export has another type than the ABI says.
    #[error("the module's {name} is not {expected}; see docs/reducer-abi.md")]
    Type {
        /// Which.
        name: String,
        /// What it should be.
        expected: &'static str,
    },
    /// An export is missing.
    #[error("the module does not export `{name}`: does it list its reducers with `reducers::module!`?")]
    Missing {
        /// Which.
        name: &'static str,
    },
    /// It was made for another version of the ABI.
    #[error(
        "the module speaks ABI version {found}, and this host speaks {}",
        reducers_abi::codec::ABI_VERSION
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// It failed while it was asked to describe itself.
    #[error("the module failed while describing itself: {0}")]
    Describe(Failure),
    /// Its description does not decode.
    #[error("the module's description is damaged: {0}")]
    Damaged(DecodeError),
    /// Its description breaks a rule.
    #[error("the module's description is wrong: {message}")]
    Description {
        /// Which rule, and where.
        message: String,
    },
}
