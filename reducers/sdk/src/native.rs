//! A module run without wasm.

use std::panic::{AssertUnwindSafe, catch_unwind};

use reducers_abi::{Call, Description, Failure, Runtime, Sql};

use crate::Module;

/// Runs a module's functions as they are, in this process: for tests and tools that have the module's
/// source. Without limits on time or memory, so not for modules of others.
#[derive(Debug)]
pub struct Native {
    module: &'static Module,
    description: Description,
}

impl Native {
    /// For a module, usually `&MODULE`.
    pub fn new(module: &'static Module) -> Native {
        Native { module, description: module.description() }
    }
}

impl Runtime for Native {
    fn description(&self) -> &Description {
        &self.description
    }

    /// A panic is a [`Failure::Trap`] with its text, as on wasm.
    fn run(&self, call: &Call<'_>, sql: &mut dyn Sql) -> Result<(), Failure> {
        // After a panic nothing of the run is used again: the caller rolls the database back.
        catch_unwind(AssertUnwindSafe(|| self.module.run(call, sql))).unwrap_or_else(|payload| {
            let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
            let text = text.unwrap_or_else(|| "(without a text)".to_owned());
            Err(Failure::Trap { message: format!("panicked: {text}") })
        })
    }
}
