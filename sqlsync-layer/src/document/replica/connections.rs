//! The SQLite connections of a replica, each opened when it is first needed.
//!
//! Opening one reads page 1 of the tip. Where the page cache lost it and garbage collection took the commit
//! that the replica stands on, nobody has that page any more; a pull and a rebase need none of the base's
//! pages, and afterwards page 1 is the new base's. So a document opens without SQLite, and what needs it
//! answers that a page is missing until then.
//!
//! Invariant: a connection that is open stays; one that could not be opened is tried at every use.

use std::cell::OnceCell;
use std::sync::Arc;

use crate::actor::batch::{Blocked, Writer};
use crate::actor::queries::{QueryFailure, Reader};
use crate::actor::{Limits, Modules};
use crate::vfs::{ConnectError, Database, IoFailure};

/// See the module.
pub(super) struct Connections {
    database: Arc<Database>,
    modules: Arc<dyn Modules>,
    limits: Limits,
    writer: Option<Writer>,
    reader: OnceCell<Reader>,
}

impl Connections {
    /// Tries to open both.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Register`]: no try will help in this process.
    pub(super) fn open(
        database: &Arc<Database>,
        modules: Arc<dyn Modules>,
        limits: Limits,
    ) -> Result<Connections, ConnectError> {
        let mut opened = Connections {
            database: database.clone(),
            modules,
            limits,
            writer: None,
            reader: OnceCell::new(),
        };
        let tried = opened.try_writer().map(drop).and_then(|()| opened.try_reader().map(drop));
        match tried {
            Ok(()) => {}
            Err(error @ ConnectError::Register(_)) => return Err(error),
            Err(error @ (ConnectError::Volume(_) | ConnectError::Sqlite(_))) => {
                let volume = database.volume().id();
                tracing::warn!(%volume, %error, "a document opens without SQLite; a pull may bring what it lacks");
            }
        }
        Ok(opened)
    }

    fn try_writer(&mut self) -> Result<&mut Writer, ConnectError> {
        match &mut self.writer {
            Some(writer) => Ok(writer),
            none => {
                let writer = Writer::new(&self.database, self.modules.clone(), self.limits)?;
                Ok(none.insert(writer))
            }
        }
    }

    fn try_reader(&self) -> Result<&Reader, ConnectError> {
        if let Some(reader) = self.reader.get() {
            return Ok(reader);
        }
        let reader = Reader::new(&self.database)?;
        Ok(self.reader.get_or_init(|| reader))
    }

    /// The connection that runs operations.
    pub(super) fn writer(&mut self) -> Result<&mut Writer, Blocked> {
        self.try_writer().map_err(|error| Blocked(failure(error)))
    }

    /// The connection that answers queries.
    pub(super) fn reader(&self) -> Result<&Reader, QueryFailure> {
        self.try_reader().map_err(|error| QueryFailure::Blocked(failure(error)))
    }

    /// The volume moved other than by the writer's own commits.
    pub(super) fn forget_schema(&self) {
        if let Some(writer) = &self.writer {
            writer.forget_schema();
        }
        if let Some(reader) = self.reader.get() {
            reader.forget_schema();
        }
    }
}

/// Why a connection was not opened, as what fails in its place.
pub(super) fn failure(error: ConnectError) -> IoFailure {
    match error {
        ConnectError::Volume(failure) => failure,
        ConnectError::Register(_) | ConnectError::Sqlite(_) => {
            IoFailure { message: error.to_string(), damaged: false }
        }
    }
}
