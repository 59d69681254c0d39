//! Reading a volume as it was: `--at`, and the lease that keeps what is read.

use std::str::FromStr;

use graft::LeaseId;
use graft::reader::{Holding, Standing};
use graft::remote::SharedRemote;
use graft::snapshot::Snapshot;
use graft::time::{At, NotAMoment};
use rand::Rng as _;

/// A state of a volume, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub At);

impl FromStr for Moment {
    type Err = NotAMoment;
    fn from_str(text: &str) -> Result<Moment, NotAMoment> {
        text.parse().map(Moment)
    }
}

/// A lease on a state that is read, taken beside the reading.
pub struct Held(Holding);

impl Held {
    /// Takes a lease on `snapshot`.
    #[allow(clippy::disallowed_methods, reason = "a driver: it gives leases their random ids")]
    pub fn begin(remote: &SharedRemote, snapshot: &Snapshot) -> Held {
        Held(Holding::begin(remote.clone(), snapshot, LeaseId(rand::rng().random())))
    }

    /// Gives it up; answers what there was, for a script: `held`, or `none: ` and why.
    pub async fn end(self) -> String {
        match self.0.end().await {
            Ok(Standing::Held { .. } | Standing::Due { .. }) => "held".into(),
            Ok(Standing::Lapsed) => "none: it lapsed, because the store did not take renewals".into(),
            Err(error) => format!("none: {error}"),
        }
    }
}
