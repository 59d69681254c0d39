//! Native documents: a volume that an app reads and changes at once, on line or off.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # async fn example(
//! #     remote: graft::remote::SharedRemote,
//! #     store: graft::store::SharedStore,
//! #     modules: Arc<dyn sqlsync_layer::actor::Modules>,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! use sqlsync_layer::document::{Document, Options};
//!
//! let volume = "todo".parse()?;
//! let todo = Document::open(remote, &volume, Some(store), modules, Options::default()).await?;
//! let mut open = todo.subscribe("SELECT id, title FROM tasks WHERE NOT done", Default::default(), None).await?;
//! todo.mutate("add_task", serde_json::json!({ "id": "t1", "list": "l1", "title": "Tea" })).await?;
//! println!("{} tasks, {}", open.next().await?.rows.len(), *todo.status().borrow());
//! # Ok(())
//! # }
//! ```
//!
//! A mutation runs at once on the local copy, is on disk when [`Document::mutate`] returns, and goes into
//! the log in the background: straight into the bucket, beside coordinators and other writers
//! ([`Route::Direct`]), or through a coordinator ([`Route::Coordinator`]). Work by others is brought in by
//! pulls: after every push, when the coordinator says that the log has grown, and else every now and then.
//! What becomes of local work then says [`crate::rebase`]; the app hears of it by [`Document::events`].
//!
//! | module | holds |
//! | --- | --- |
//! | `driver` | tokio, the clock, random numbers, the object store: [`Document`] |
//! | [`replica`] | the document without its surroundings: mutations, rebase, push, as a state machine |
//! | `timeline` | what it keeps in the local store beside the volume |

mod driver;
pub mod replica;
#[cfg(test)]
mod tests;
mod timeline;

pub use self::driver::{Document, DocumentError, DocumentStatus, Options, RowsOf};
pub use self::replica::publishing::{BRANCH_NAMES, BranchError, Publication, branch_name};
pub use self::replica::{
    Config, Counts, Event, MutateError, Progress, PushError, QueryError, RebaseError, Replica, Route, Status,
};
pub use self::timeline::{Branch, TimelineError};
