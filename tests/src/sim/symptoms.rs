//! The kinds of what may not hold, told by the text of a failure.
//!
//! A failure has the symptom of its first line, and beside it those that the world adds when it ends: a cycle in
//! what was read, damage in the store. [`Symptom::Other`] is what no line of the table names; no plant is
//! meant to have it.

/// A kind of violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Symptom {
    /// The faults are over, and something never ends.
    NoRest,
    /// The log has a gap, a broken chain, or an entry that is gone or not what it was.
    Log,
    /// The log or a checkpoint names a segment that is not stored.
    SegmentGone,
    /// Verification finds damage, or cannot read what it must.
    Unsound,
    /// A collection leaves what it must take, or its dry run says something else.
    Garbage,
    /// A mutation ended otherwise than in a serial run.
    Replay,
    /// What is stored differs from the serial replay.
    Content,
    /// `integrity_check` fails.
    Integrity,
    /// Somebody is shown what no state can be: money from nothing, a gap in a list.
    Impossible,
    /// Rows shown or read of a state are not that state's.
    Shown,
    /// What was read fits no serial order: a cycle.
    Cycle,
    /// What was read contradicts itself.
    Order,
    /// A mutation is in the log twice, or its answer was given twice.
    Twice,
    /// A client's mutations are recorded twice, with a gap, or as nobody made them.
    Seqs,
    /// An answer is not what is recorded.
    Answer,
    /// A delta does not fit, or a session is ended.
    Session,
    /// What was acknowledged as local is not on the disk.
    Disk,
    /// Two own the volume, or a lease goes back.
    Lease,
    /// A checkpoint holds another state's ledger.
    Ledger,
    /// A read under a lease fails.
    LeasedRead,
    /// A fork is lost, or reads through what is not there.
    Fork,
    /// The product panics.
    Panic,
    /// Anything else.
    Other,
}

/// What tells them: the first row whose text is in the line counts.
const TABLE: &[(&str, Symptom)] = &[
    ("a panic: ", Symptom::Panic),
    ("the world does not come to rest", Symptom::NoRest),
    ("not serializable (G", Symptom::Cycle),
    ("not serializable (", Symptom::Order),
    ("names the segment", Symptom::SegmentGone),
    (": it does not exist", Symptom::SegmentGone),
    ("was used for another mutation", Symptom::Seqs),
    ("the server knows mutations up to", Symptom::Seqs),
    (" as its parent, which is ", Symptom::Log),
    ("the log has volumes/", Symptom::Log),
    ("is gone, and no tombstone says what it was", Symptom::Log),
    ("has a false tombstone", Symptom::Log),
    ("is not what it was", Symptom::Log),
    ("was made by nobody", Symptom::Log),
    ("a false alarm in ", Symptom::Unsound),
    ("cannot be verified", Symptom::Unsound),
    (" before the last collection: ", Symptom::Unsound),
    (" after the last collection: ", Symptom::Unsound),
    (" as it was left: ", Symptom::Unsound),
    ("garbage that no collection takes", Symptom::Garbage),
    ("a dry run said", Symptom::Garbage),
    ("run serially it ends with", Symptom::Replay),
    ("no serial run makes", Symptom::Replay),
    ("differs from the serial replay", Symptom::Content),
    ("direct SQL: ", Symptom::Content),
    ("disk image is malformed", Symptom::Integrity),
    ("integrity_check", Symptom::Integrity),
    ("cannot be dumped", Symptom::Integrity),
    ("what can never be", Symptom::Impossible),
    ("VIOLATION: at lsn", Symptom::Impossible),
    ("was shown rows of", Symptom::Shown),
    (" local commits at ", Symptom::Shown),
    ("the live query", Symptom::Shown),
    (" where seq ", Symptom::Seqs),
    ("which was never made", Symptom::Seqs),
    ("; its client made ", Symptom::Seqs),
    ("records a stranger", Symptom::Seqs),
    ("which it never made", Symptom::Seqs),
    ("to two mutations", Symptom::Seqs),
    ("the store does not hold that", Symptom::Answer),
    ("was told twice", Symptom::Twice),
    ("ended twice", Symptom::Twice),
    ("was told that the lsn went to another", Symptom::Answer),
    ("; the log says ", Symptom::Answer),
    ("was acknowledged", Symptom::Answer),
    ("did not fit", Symptom::Session),
    ("the session of client", Symptom::Session),
    ("the server refused a client's frame", Symptom::Session),
    ("local commits that were on disk are gone", Symptom::Disk),
    ("took a local commit and left a later one", Symptom::Disk),
    ("is gone from its stack", Symptom::Disk),
    ("believe to own", Symptom::Lease),
    ("own the same epoch", Symptom::Lease),
    ("own what the store does not hold", Symptom::Lease),
    ("the lease in the store", Symptom::Lease),
    ("both owned", Symptom::Lease),
    ("and owns it again", Symptom::Lease),
    ("its ledger is not that of", Symptom::Ledger),
    (", under a lease: ", Symptom::LeasedRead),
    ("the branch ", Symptom::Fork),
    ("fork ", Symptom::Fork),
];

/// What stands before what the world adds to a failure.
pub const ADDED: &str = "\nand ";
/// What it adds where what was read does not fit.
pub const READ: &str = "what was read is ";

fn of_part(part: &str) -> Symptom {
    // Who both were stands in the second line.
    let is_read = part.starts_with("not serializable") || part.starts_with(READ);
    if is_read && part.lines().nth(1).is_some_and(is_twice) {
        return Symptom::Twice;
    }
    let line = part.lines().next().unwrap_or_default();
    TABLE.iter().find(|(text, _)| line.contains(text)).map_or(Symptom::Other, |(_, symptom)| *symptom)
}

/// Whether a line of [`super::serial`] says that one mutation appended its value under two LSNs.
fn is_twice(line: &str) -> bool {
    let Some((pair, _)) = line.split_once(" both appended ") else { return false };
    let made = |who: &str| who.split_once(" made at ").map(|(mutation, _)| mutation.trim().to_owned());
    pair.split_once(" and ")
        .is_some_and(|(first, second)| made(first).is_some() && made(first) == made(second))
}

/// The symptoms of a failure, the first of them that of its first line.
pub fn of(what: &str) -> Vec<Symptom> {
    let mut parts = what.split(ADDED);
    let first = of_part(parts.next().unwrap_or_default());
    let mut symptoms = vec![first];
    for part in parts {
        let symptom = of_part(part);
        if symptom != Symptom::Other && !symptoms.contains(&symptom) {
            symptoms.push(symptom);
        }
    }
    symptoms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_the_symptoms_of_its_parts() {
        let what = "the world does not come to rest after the storm: documents [\"was acknowledged\"]\n\
                    and what was read is not serializable (contradicting reads):\n  \
                    client-2's mutation 4 made at 2.324 s, lsn 10 and client-2's mutation 4 made at 2.324 s, lsn 15 both \
                    appended 109 to list 4\n\
                    and in the store lsn 3 names the segment a, which is not stored";
        assert_eq!(of(what), [Symptom::NoRest, Symptom::Twice, Symptom::SegmentGone]);
        assert_eq!(of("not serializable (G2, write skew):\n  T1"), [Symptom::Cycle]);
        let two = "not serializable (contradicting reads):\n  client-1's mutation 4 made at 1 s, lsn 1 and client-2's \
                   mutation 4 made at 1 s, lsn 2 both appended 1 to list 4";
        assert_eq!(of(two), [Symptom::Order]);
    }

    #[test]
    fn what_the_table_does_not_name_is_no_plants() {
        assert_eq!(of("somebody is unhappy"), [Symptom::Other]);
        for plant in super::super::plant::Plant::ALL {
            assert!(!plant.causes().is_empty() && !plant.causes().contains(&Symptom::Other), "{plant}");
        }
    }
}
