//! A loaded module and one run of it.

use std::fmt;
use std::sync::Arc;

use reducers_abi::codec::{self, ABI_VERSION};
use reducers_abi::{Call, Description, Entry, Failure, Runtime, Sql};
use wasmtime::{ExternType, Instance, InstancePre, Module, Store, TypedFunc, ValType};

use crate::clock::ticks;
use crate::guest::{self, State};
use crate::host::Inner;
use crate::{LoadError, description};

/// A compiled module with its description. Cheap to keep; each run instantiates it afresh, which takes
/// some microseconds.
pub struct WasmModule {
    inner: Arc<Inner>,
    hash: [u8; 32],
    pre: InstancePre<State>,
    description: Description,
}

impl fmt::Debug for WasmModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WasmModule({})", hex::encode(self.hash))
    }
}

const MEMORY: &str = "memory";
const ABI_VERSION_EXPORT: &str = "graft_abi_version";
const ALLOC: &str = "graft_alloc";
const DESCRIBE: &str = "graft_describe";
const CALL: &str = "graft_call";

impl WasmModule {
    /// Compiles `bytes`, checks what they import and export, and asks them to describe themselves.
    pub(crate) fn load(inner: Arc<Inner>, hash: [u8; 32], bytes: &[u8]) -> Result<WasmModule, LoadError> {
        let invalid = |error: wasmtime::Error| LoadError::Invalid { message: format!("{error:#}") };
        let module = Module::from_binary(&inner.engine, bytes).map_err(invalid)?;
        check_imports(&module)?;
        check_exports(&module)?;
        let pre = inner.linker.instantiate_pre(&module).map_err(invalid)?;
        let mut loaded = WasmModule { inner, hash, pre, description: Description::default() };
        loaded.description = loaded.describe()?;
        Ok(loaded)
    }

    /// The SHA-256 of the bytes it was loaded from.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    fn describe(&self) -> Result<Description, LoadError> {
        let _turn = self.inner.clock.enter();
        let (mut store, instance) = self.instantiate(self.state()).map_err(LoadError::Describe)?;
        let version: TypedFunc<(), u32> =
            typed(&instance, &mut store, ABI_VERSION_EXPORT).map_err(LoadError::Describe)?;
        let found = version.call(&mut store, ()).map_err(|e| LoadError::Describe(guest::failure(&e)))?;
        if found != u32::from(ABI_VERSION) {
            return Err(LoadError::Version { found });
        }
        let describe: TypedFunc<(), u64> =
            typed(&instance, &mut store, DESCRIBE).map_err(LoadError::Describe)?;
        let packed = describe.call(&mut store, ()).map_err(|e| LoadError::Describe(guest::failure(&e)))?;
        let bytes = handed_over(&store, "description", packed, self.inner.limits.description_bytes)
            .map_err(LoadError::Describe)?;
        let found = codec::decode_description(bytes).map_err(LoadError::Damaged)?;
        description::check(&found)?;
        Ok(found)
    }

    fn state(&self) -> State {
        State::new(self.inner.limits, self.inner.clock.reader())
    }

    /// A fresh instance under limits. A start function runs here, and counts.
    fn instantiate(&self, state: State) -> Result<(Store<State>, Instance), Failure> {
        let mut store = Store::new(&self.inner.engine, state);
        store.limiter(|state| &mut state.growth);
        store.epoch_deadline_callback(|store| store.data().deadline());
        store.set_epoch_deadline(ticks(self.inner.limits.time));
        let instance = self.pre.instantiate(&mut store).map_err(|error| guest::failure(&error))?;
        let memory = instance.get_memory(&mut store, MEMORY);
        store.data_mut().memory = memory;
        Ok((store, instance))
    }

    fn run_in(&self, state: State, call: &Call<'_>) -> Result<(), Failure> {
        let failed = |error: wasmtime::Error| guest::failure(&error);
        let (mut store, instance) = self.instantiate(state)?;
        let bytes = codec::encode_call(call);
        let len = u32::try_from(bytes.len())
            .map_err(|_| Failure::Limit { message: "arguments of 4 GiB or more".into() })?;
        let alloc: TypedFunc<u32, u32> = typed(&instance, &mut store, ALLOC)?;
        let at = alloc.call(&mut store, len).map_err(failed)?;
        let memory = store.data().memory.ok_or_else(|| guest::broken("no memory"))?.data_mut(&mut store);
        let size = memory.len();
        let range = guest::range(size, at, len).ok_or_else(|| {
            guest::broken(format!("{ALLOC}({len}) answered {at}, outside of its memory of {size} bytes"))
        })?;
        memory[range].copy_from_slice(&bytes);
        let run: TypedFunc<(u32, u32), u64> = typed(&instance, &mut store, CALL)?;
        let packed = run.call(&mut store, (at, len)).map_err(failed)?;
        let bytes = handed_over(&store, "outcome", packed, self.inner.limits.description_bytes)?;
        codec::decode_outcome(bytes).map_err(|error| guest::undecodable("outcome", &error))?
    }
}

impl Runtime for WasmModule {
    fn description(&self) -> &Description {
        &self.description
    }

    /// Blocks while as many runs as are allowed at once are going on.
    fn run(&self, call: &Call<'_>, sql: &mut dyn Sql) -> Result<(), Failure> {
        let known = match call.entry {
            Entry::Reducer { name, .. } => self.description.reducer(name).is_some(),
            Entry::Migration { version } => self.description.migrations.contains(&version),
        };
        if !known {
            return Err(Failure::Unknown {
                entry: match call.entry {
                    Entry::Reducer { name, .. } => format!("reducer `{name}`"),
                    Entry::Migration { version } => format!("migration {version}"),
                },
            });
        }
        let _turn = self.inner.clock.enter();
        let outcome = guest::with_sql(sql, self.state(), |state| self.run_in(state, call));
        outcome.map_err(|failure| shortened(failure, self.inner.limits.message_bytes))
    }
}

/// The bytes that an export answered: address in the upper half, length in the lower.
fn handed_over<'a>(
    store: &'a Store<State>,
    what: &str,
    packed: u64,
    max: usize,
) -> Result<&'a [u8], Failure> {
    let (at, len) = ((packed >> 32) as u32, packed as u32);
    if len as usize > max {
        return Err(Failure::Limit {
            message: format!("its {what} has {len} bytes, at most {max} are allowed"),
        });
    }
    let memory = store.data().memory.ok_or_else(|| guest::broken("no memory"))?.data(store);
    let range = guest::range(memory.len(), at, len).ok_or_else(|| {
        let size = memory.len();
        guest::broken(format!("its {what} at {at} of {len} bytes is outside of its memory of {size}"))
    })?;
    Ok(&memory[range])
}

fn typed<P: wasmtime::WasmParams, R: wasmtime::WasmResults>(
    instance: &Instance,
    store: &mut Store<State>,
    name: &str,
) -> Result<TypedFunc<P, R>, Failure> {
    instance.get_typed_func(store, name).map_err(|error| guest::broken(format!("{name}: {error}")))
}

/// Outcomes are recorded, so their texts are bounded.
fn shortened(failure: Failure, max: usize) -> Failure {
    let cut = |mut text: String| {
        if text.len() > max {
            text.truncate(text.floor_char_boundary(max));
            text.push('…');
        }
        text
    };
    match failure {
        Failure::Refused { message } => Failure::Refused { message: cut(message) },
        Failure::Trap { message } => Failure::Trap { message: cut(message) },
        Failure::Limit { message } => Failure::Limit { message: cut(message) },
        Failure::Unknown { entry } => Failure::Unknown { entry: cut(entry) },
        other => other,
    }
}

const I32X4_TO_I32: &str = "a function (i32, i32, i32, i32) -> i32";
const I32X2: &str = "a function (i32, i32)";

fn check_imports(module: &Module) -> Result<(), LoadError> {
    for import in module.imports() {
        let (params, results, expected) = match (import.module(), import.name()) {
            ("graft", "execute" | "query") => (4, 1, I32X4_TO_I32),
            ("graft", "take" | "log" | "abort") => (2, 0, I32X2),
            (module, name) => return Err(LoadError::Import { module: module.into(), name: name.into() }),
        };
        if !is_func(&import.ty(), params, &[ValType::I32][..results]) {
            return Err(LoadError::Type { name: format!("import graft.{}", import.name()), expected });
        }
    }
    Ok(())
}

fn check_exports(module: &Module) -> Result<(), LoadError> {
    let export = |name: &'static str| module.get_export(name).ok_or(LoadError::Missing { name });
    let wrong = |name: &str, expected| Err(LoadError::Type { name: format!("export {name}"), expected });
    match export(MEMORY)? {
        ExternType::Memory(memory) if !memory.is_64() && !memory.is_shared() => {}
        _ => return wrong(MEMORY, "an unshared 32-bit memory"),
    }
    for (name, params, result, expected) in [
        (ABI_VERSION_EXPORT, 0, ValType::I32, "a function () -> i32"),
        (ALLOC, 1, ValType::I32, "a function (i32) -> i32"),
        (DESCRIBE, 0, ValType::I64, "a function () -> i64"),
        (CALL, 2, ValType::I64, "a function (i32, i32) -> i64"),
    ] {
        if !is_func(&export(name)?, params, &[result]) {
            return wrong(name, expected);
        }
    }
    Ok(())
}

/// Whether `ty` is a function of `params` i32s with these results.
fn is_func(ty: &ExternType, params: usize, results: &[ValType]) -> bool {
    let ExternType::Func(func) = ty else { return false };
    func.params().len() == params
        && func.params().all(|p| ValType::eq(&p, &ValType::I32))
        && func.results().len() == results.len()
        && func.results().zip(results).all(|(a, b)| ValType::eq(&a, b))
}
