//! The engine, and the modules it has compiled.

use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, Linker, PoolingAllocationConfig};

use crate::clock::Clock;
use crate::guest::{self, State, TABLE_ELEMENTS_MAX};
use crate::{HostError, HostLimits, LoadError, WasmModule};
use reducers_abi::Runtime;

/// A module's name: the SHA-256 of its bytes.
pub fn module_hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Compiles and keeps modules. One for a process: it owns a pool of memories and a thread that ticks
/// while guests run. Cloning shares it; modules keep what they need of it alive.
#[derive(Debug, Clone)]
pub struct Host {
    inner: Arc<Inner>,
    /// Most recently used last.
    cache: Arc<Mutex<Vec<Arc<WasmModule>>>>,
}

/// What modules share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) limits: HostLimits,
    pub(crate) engine: Engine,
    pub(crate) linker: Shown<Linker<State>>,
    pub(crate) clock: Clock,
}

/// A field without a `Debug` of its own.
pub(crate) struct Shown<T>(T);

impl<T> std::fmt::Debug for Shown<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}
impl<T> std::ops::Deref for Shown<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl Host {
    /// A host whose modules run under `limits`.
    ///
    /// # Errors
    ///
    /// wasmtime refuses the limits (a stack larger than a thread's, say), or the operating system has
    /// no thread to give. Where it has too few addresses for a pool of memories, they are mapped one by
    /// one instead.
    pub fn new(limits: HostLimits) -> Result<Host, HostError> {
        let failed = |message: String| HostError { message };
        let engine = Engine::new(config(&limits).allocation_strategy(pool(&limits))).or_else(|error| {
            tracing::warn!(%error, "no pool of guest memories; each run maps its own");
            Engine::new(config(&limits).allocation_strategy(InstanceAllocationStrategy::OnDemand))
                .map_err(|error| failed(format!("{error:#}")))
        })?;
        let linker = guest::linker(&engine).map_err(|error| failed(format!("{error:#}")))?;
        let ticked = engine.clone();
        let clock = Clock::start(limits.concurrent_runs, move || ticked.increment_epoch())
            .map_err(|error| failed(error.to_string()))?;
        let inner = Inner { limits, engine, linker: Shown(linker), clock };
        Ok(Host { inner: Arc::new(inner), cache: Arc::default() })
    }

    /// The limits it was made with.
    pub fn limits(&self) -> &HostLimits {
        &self.inner.limits
    }

    /// The module made of these bytes, compiled if it is not among those kept. Compiling takes some
    /// tens of milliseconds for 100 KB, and the module is asked to describe itself.
    ///
    /// # Errors
    ///
    /// The bytes are not a module that can run here; [`LoadError`] says why.
    pub fn load(&self, bytes: &[u8]) -> Result<Arc<WasmModule>, LoadError> {
        let max = self.inner.limits.module_bytes;
        if bytes.len() > max {
            return Err(LoadError::TooLarge { found: bytes.len(), max });
        }
        check_preamble(bytes)?;
        let hash = module_hash(bytes);
        if let Some(module) = self.get(hash) {
            return Ok(module);
        }
        // Two threads may compile one module at the same time; the second to finish is dropped.
        let loaded = Arc::new(WasmModule::load(self.inner.clone(), hash, bytes)?);
        let mut cache = self.cache.lock();
        if let Some(module) = cache.iter().find(|module| module.hash() == hash) {
            return Ok(module.clone());
        }
        tracing::debug!(
            module = hex::encode(hash),
            bytes = bytes.len(),
            reducers = loaded.description().reducers.len(),
            "module compiled"
        );
        cache.push(loaded.clone());
        if cache.len() > self.inner.limits.cached_modules {
            cache.remove(0);
        }
        Ok(loaded)
    }

    /// The module of this hash, if it is among those kept. For a caller that would have to fetch the
    /// bytes.
    pub fn get(&self, hash: [u8; 32]) -> Option<Arc<WasmModule>> {
        let mut cache = self.cache.lock();
        let at = cache.iter().position(|module| module.hash() == hash)?;
        let module = cache.remove(at);
        cache.push(module.clone());
        Some(module)
    }
}

/// The first eight bytes of a core module: `\0asm`, then version 1 and layer 0, u16 each.
fn check_preamble(bytes: &[u8]) -> Result<(), LoadError> {
    let found = match bytes {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => return Ok(()),
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => "it is a wasm component",
        [0, b'a', b's', b'm', ..] => "it is wasm of another version, or cut short",
        [] => "it is empty",
        [b'(', ..] => "it looks like wasm's text format",
        _ => "it does not begin with `\\0asm`",
    };
    Err(LoadError::NotWasm { found })
}

/// Everything that could make two runs differ is off.
fn config(limits: &HostLimits) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .max_wasm_stack(limits.stack_bytes)
        .wasm_backtrace_max_frames(None);
    config
}

/// What a slot of the pool keeps of a run's memory for the next one: a usual run writes a tenth of it.
const RESIDENT_BYTES_MAX: usize = 1 << 20;

fn pool(limits: &HostLimits) -> InstanceAllocationStrategy {
    let runs = limits.concurrent_runs.max(1);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(runs)
        .total_memories(runs)
        .total_tables(runs)
        .max_memories_per_module(1)
        .max_tables_per_module(1)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(limits.memory_bytes);
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        // The kernel says which pages a run wrote, and they are overwritten with what they held at first.
        // Otherwise they are given back and faulted in again, which costs more than a short run itself.
        pool.pagemap_scan(Enabled::Yes)
            .linear_memory_keep_resident(RESIDENT_BYTES_MAX)
            .table_keep_resident(RESIDENT_BYTES_MAX);
    }
    InstanceAllocationStrategy::Pooling(pool)
}
