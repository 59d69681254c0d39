//! Bugs planted in the world, never in the product: the simulation must find each of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::symptoms::Symptom;
use super::{Config, Failure, run};

/// A bug of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// A client's driver gives a mutation that it sends again the next seq.
    ResendRenumbers,
    /// A create of a key that exists replaces the object and reports success.
    StoreOverwrites,
    /// An acknowledged log entry is gone a while later.
    StoreLoses,
    /// A coordinator says durable where it only accepted.
    AckBeforePublish,
    /// The network loses one frame of a connection and delivers the ones after it.
    NetworkLosesFrame,
    /// A reducer depends on how often it has run.
    ImpureReducer,
    /// A direct writer that lost its LSN commits its pages under the next one as they are.
    BlindMerge,
    /// A collector deletes old log entries and checkpoints where a tombstone should stand.
    NoTombstone,
    /// A collector deletes segments of commits whose LSN is not taken.
    SweepsUploads,
    /// A collector does not see the pins of forks.
    IgnoresPins,
    /// A collector does not end the epoch of a compaction that was given up.
    EpochGoesOn,
    /// A checkpoint holds the ledger of a later state.
    StateOfTheTip,
    /// A compaction is published in an epoch that it did not begin in.
    OtherEpoch,
    /// A document's merge does not look at what was read.
    MergeSkipsReads,
    /// A document's merge looks at nothing but whether the same pages were written.
    MergeWritesOnly,
    /// A coordinator applies a mutation again that is sent again.
    SkipsLedger,
    /// A direct writer acknowledges local commits that are not on its disk yet.
    AckBeforeFsync,
    /// Segments of two commits under one LSN have the same key.
    ReusesSegmentKeys,
    /// A publisher that finds its LSN taken does not look by whom.
    SkipsReadBack,
    /// A collector does not see the leases of readers.
    IgnoresReaders,
    /// An owner does not look at its clock.
    OwnerIgnoresClock,
    /// A lease is written over whatever is there.
    LeaseOverwrites,
}

impl Plant {
    /// All of them.
    pub const ALL: [Plant; 22] = [
        Plant::ResendRenumbers,
        Plant::StoreOverwrites,
        Plant::StoreLoses,
        Plant::AckBeforePublish,
        Plant::NetworkLosesFrame,
        Plant::ImpureReducer,
        Plant::BlindMerge,
        Plant::NoTombstone,
        Plant::SweepsUploads,
        Plant::IgnoresPins,
        Plant::EpochGoesOn,
        Plant::StateOfTheTip,
        Plant::OtherEpoch,
        Plant::MergeSkipsReads,
        Plant::MergeWritesOnly,
        Plant::SkipsLedger,
        Plant::AckBeforeFsync,
        Plant::ReusesSegmentKeys,
        Plant::SkipsReadBack,
        Plant::IgnoresReaders,
        Plant::OwnerIgnoresClock,
        Plant::LeaseOverwrites,
    ];

    /// What it is meant to cause; anything else that a run with it shows does not count as finding it.
    pub fn causes(self) -> &'static [Symptom] {
        use Symptom::{
            Answer, Content, Cycle, Disk, Fork, Garbage, Impossible, Integrity, Lease, LeasedRead, Ledger,
            Log, NoRest, Order, Replay, SegmentGone, Seqs, Session, Shown, Twice, Unsound,
        };
        match self {
            Plant::ResendRenumbers => &[Seqs],
            Plant::StoreOverwrites | Plant::StoreLoses => &[Log],
            Plant::AckBeforePublish => &[Answer],
            // What was lost is waited for; or what comes after it does not fit.
            Plant::NetworkLosesFrame => &[NoRest, Session, Seqs],
            Plant::ImpureReducer => &[Replay, Shown, Content],
            Plant::BlindMerge => &[Cycle, Order, Content, Replay, Integrity, Impossible, Shown],
            Plant::NoTombstone => &[Log],
            Plant::SweepsUploads => &[SegmentGone],
            // What a fork reads through is collected with the parent's.
            Plant::IgnoresPins => &[Unsound, SegmentGone, Fork],
            // What it uploaded is never taken, as its epoch goes on.
            Plant::EpochGoesOn => &[Garbage],
            Plant::OtherEpoch => &[SegmentGone],
            Plant::StateOfTheTip => &[Ledger],
            Plant::MergeSkipsReads => &[Cycle, Replay, Shown],
            Plant::MergeWritesOnly => &[Cycle, Replay, Shown, Integrity, Impossible],
            Plant::SkipsLedger => &[Twice, Seqs],
            Plant::AckBeforeFsync => &[Disk],
            // One's frames are read with the other's head; or the loser's upload is collected, and was the winner's.
            Plant::ReusesSegmentKeys => &[Unsound, SegmentGone],
            Plant::SkipsReadBack => &[Answer],
            Plant::IgnoresReaders => &[LeasedRead],
            Plant::OwnerIgnoresClock => &[Lease],
            Plant::LeaseOverwrites => &[Lease],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Plant::ResendRenumbers => "resend-renumbers",
            Plant::StoreOverwrites => "store-overwrites",
            Plant::StoreLoses => "store-loses",
            Plant::AckBeforePublish => "ack-before-publish",
            Plant::NetworkLosesFrame => "network-loses-frame",
            Plant::ImpureReducer => "impure-reducer",
            Plant::BlindMerge => "blind-merge",
            Plant::NoTombstone => "no-tombstone",
            Plant::SweepsUploads => "sweeps-uploads",
            Plant::IgnoresPins => "ignores-pins",
            Plant::EpochGoesOn => "epoch-goes-on",
            Plant::StateOfTheTip => "state-of-the-tip",
            Plant::OtherEpoch => "other-epoch",
            Plant::MergeSkipsReads => "merge-skips-reads",
            Plant::MergeWritesOnly => "merge-writes-only",
            Plant::SkipsLedger => "skips-ledger",
            Plant::AckBeforeFsync => "ack-before-fsync",
            Plant::ReusesSegmentKeys => "reuses-segment-keys",
            Plant::SkipsReadBack => "skips-read-back",
            Plant::IgnoresReaders => "ignores-readers",
            Plant::OwnerIgnoresClock => "owner-ignores-clock",
            Plant::LeaseOverwrites => "lease-overwrites",
        }
    }
}

impl fmt::Display for Plant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No plant has this name.
#[derive(Debug)]
pub struct UnknownPlant(String);

impl fmt::Display for UnknownPlant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Plant::ALL.into_iter().map(Plant::name).collect();
        write!(f, "there is no plant `{}`; there are {}", self.0, names.join(", "))
    }
}
impl std::error::Error for UnknownPlant {}

impl FromStr for Plant {
    type Err = UnknownPlant;
    fn from_str(text: &str) -> Result<Plant, UnknownPlant> {
        Plant::ALL.into_iter().find(|plant| plant.name() == text).ok_or_else(|| UnknownPlant(text.into()))
    }
}

/// A plant that was found for the right reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// By which seed.
    pub seed: u64,
    /// So many seeds were tried, that one included.
    pub tried: u64,
    /// What did not hold that the plant is meant to cause.
    pub symptoms: Vec<Symptom>,
}

/// Looks for plants, with one number of steps for all of its runs.
#[derive(Debug)]
pub struct Hunt {
    steps: u64,
    /// Whether each seed holds without a plant.
    holds: BTreeMap<u64, bool>,
}

impl Hunt {
    /// One whose runs take `steps` steps.
    pub fn new(steps: u64) -> Hunt {
        Hunt { steps, holds: BTreeMap::new() }
    }

    /// Runs the seeds until one finds `plant` for the right reason: with the plant something does not hold that is
    /// among `causes`, and the same seed and steps without it hold. `tell` hears of every failure on the way, and
    /// what it is taken for.
    pub fn find(
        &mut self,
        plant: Plant,
        causes: &[Symptom],
        seeds: impl IntoIterator<Item = u64>,
        mut tell: impl FnMut(u64, &Failure, &str),
    ) -> Option<Found> {
        for (tried, seed) in (1..).zip(seeds) {
            let run_of = |plant| run(Config { plant, ..Config::new(seed, self.steps) });
            let Err(failure) = run_of(Some(plant)) else { continue };
            let symptoms: Vec<Symptom> =
                failure.symptoms().into_iter().filter(|symptom| causes.contains(symptom)).collect();
            if symptoms.is_empty() {
                tell(seed, &failure, "not what is looked for");
                continue;
            }
            if !*self.holds.entry(seed).or_insert_with(|| run_of(None).is_ok()) {
                tell(seed, &failure, "fails without the plant, too");
                continue;
            }
            tell(seed, &failure, "found");
            return Some(Found { seed, tried, symptoms });
        }
        None
    }
}
