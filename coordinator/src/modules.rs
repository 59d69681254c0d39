//! Reducer modules from the object store, checked against their hash, compiled once.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use graft::ModuleHash;
use graft::ids::key;
use graft::remote::{RemoteError, SharedRemote};
use graft::store::{FjallStore, SharedStore, StoreError};
use reducers_abi::Runtime;
use reducers_host::{Host, LoadError, module_hash};
use sqlsync_layer::actor::{ModuleError, Modules};
use tokio::runtime::Handle;

/// [`Modules`] for every volume of a coordinator.
#[derive(Debug)]
pub(crate) struct StoreModules {
    remote: SharedRemote,
    host: Host,
    runtime: Handle,
}

impl StoreModules {
    /// Must be called inside the runtime that drives the remote.
    pub(crate) fn new(remote: SharedRemote, host: Host) -> StoreModules {
        StoreModules { remote, host, runtime: Handle::current() }
    }

    /// Compiles a module and so checks it. Takes CPU: not for a tokio thread.
    pub(crate) fn check(&self, bytes: &[u8]) -> Result<ModuleHash, LoadError> {
        self.host.load(bytes).map(|module| ModuleHash(module.hash()))
    }

    /// Stores a module that was checked. Storing one again is no error, and mends one that is damaged.
    pub(crate) async fn store(&self, module: ModuleHash, bytes: Bytes) -> Result<(), RemoteError> {
        let key = key::module(module);
        match self.remote.create(&key, bytes.clone()).await {
            Err(RemoteError::AlreadyExists { .. }) => {}
            created => return created,
        }
        if module_hash(&self.remote.get(&key).await?) == module.0 {
            return Ok(());
        }
        tracing::warn!(%module, "its stored bytes are damaged; storing it anew");
        self.remote.delete(&key).await?;
        match self.remote.create(&key, bytes).await {
            // Somebody else mends it with the same bytes.
            Ok(()) | Err(RemoteError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Modules for StoreModules {
    fn load(&self, module: ModuleHash) -> Result<Arc<dyn Runtime>, ModuleError> {
        if let Some(loaded) = self.host.get(module.0) {
            return Ok(loaded);
        }
        let invalid = |message: String| ModuleError::Invalid { module, message };
        let bytes = self
            .runtime
            .block_on(self.remote.get(&key::module(module)))
            .map_err(|error| ModuleError::Unavailable { module, message: error.to_string() })?;
        if module_hash(&bytes) != module.0 {
            return Err(ModuleError::Damaged { module });
        }
        let loaded = self.host.load(&bytes).map_err(|error| invalid(error.to_string()))?;
        Ok(loaded)
    }
}

/// Opens the directory that keeps cached pages across restarts.
pub(crate) fn open_data(dir: &Path) -> Result<SharedStore, StoreError> {
    Ok(Arc::new(FjallStore::open(dir)?))
}
