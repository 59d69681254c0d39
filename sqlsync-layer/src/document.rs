//! Native documents: a volume that an app reads and changes at once, on line or off.
//!
//! | module | holds |
//! | --- | --- |
//! | [`replica`] | the document without its surroundings: mutations, rebase, push, as a state machine |
//! | `timeline` | what it keeps in the local store beside the volume |

pub mod replica;
mod timeline;
#[cfg(test)]
mod tests;

pub use self::replica::{
    Config, Counts, Event, MutateError, Progress, PushError, QueryError, RebaseError, Replica, Route, Status,
};
pub use self::timeline::{Branch, TimelineError};
