//! How much to bring around a miss where accesses follow no trend.
//!
//! A query that asks for a hundred rows here and there misses once for each of them, a round trip each,
//! and no trend says where the next one is. What helps is to have what lies *beside* the misses, and in
//! the end all of it: of a b-tree whose leaves lie together, whoever reads a tenth at random soon reads
//! everywhere. But a single question must not: what is brought stays in proportion to the round trips
//! that were paid already.
//!
//! ```text
//!   miss           1 … 7   8        9        10 …
//!   brought ahead  –       64 MiB   64 MiB   64 MiB
//!   of what is not here, at most    1/2      all
//! ```
//!
//! A volume of which at most [`WHOLE_BYTES`] are not here comes whole with the eighth miss; along a trend
//! with the first one after [`SCAN_READS`] reads, the second at the earliest. What one question misses is
//! fewer: a row by its key, two or three; by an index, as many again; an update of an indexed row, one
//! more for the entry that moves. Such a question pays for what it reads.
//!
//! Bounds: what was brought and not read is never more than [`UNPROVEN_BYTES_MAX`] nor half of what the
//! cache holds; each page that was read of it earns [`EARNED_BYTES`]. Of a volume far larger than that
//! random reads stay what they are: a request each. A reader whose reads the cache answers, so that
//! misses are far apart, begins anew at each.
//!
//! Invariants: no I/O, no clock; the same misses, the same answers.

/// Misses that bring what they ask for and nothing else.
const ALONE: u32 = 7;
/// Reads after which a trend is a scan, and not a question that went forward a few times.
const SCAN_READS: u64 = 32;
/// The most that one miss brings.
const STEP_BYTES_MAX: u64 = 64 << 20;
/// So much of a volume comes whole.
pub const WHOLE_BYTES: u64 = 24 << 20;
/// The most that is brought ahead of its use.
pub const UNPROVEN_BYTES_MAX: u64 = 256 << 20;
/// What each page brought ahead and read allows on top: it saved a request.
pub const EARNED_BYTES: u64 = 1 << 20;
/// Reads between two misses that part them.
const FAR_READS: u64 = 256;

/// The policy for one replica. All bytes are of pages, before compression.
#[derive(Debug, Clone, Default)]
pub struct Spread {
    /// Misses without a trend, none far from the one before.
    misses: u32,
    /// With those along a trend.
    all_misses: u32,
    /// Brought in all.
    brought: u64,
    /// The reads so far at the last miss.
    reads: u64,
    /// And at the first one since misses were far apart.
    first_reads: u64,
}

/// What a replica holds of its volume, at a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What is neither here nor under way.
    pub left: u64,
    /// What the cache has room for.
    pub room: u64,
    /// Pages brought ahead that were read, in all.
    pub used: u64,
}

impl Spread {
    /// A read missed; `reads` were made before, in all. Says whether [`Spread::step`] is worth asking:
    /// it needs to know what is not here, which takes time to find out.
    pub fn miss(&mut self, reads: u64, has_trend: bool) -> bool {
        if reads.saturating_sub(self.reads) > FAR_READS {
            (self.misses, self.all_misses) = (0, 0);
        }
        if self.all_misses == 0 {
            self.first_reads = reads;
        }
        self.reads = reads;
        self.all_misses = self.all_misses.saturating_add(1);
        if !has_trend {
            self.misses = self.misses.saturating_add(1);
        }
        let scans = reads.saturating_sub(self.first_reads) >= SCAN_READS;
        if has_trend { scans && (2..=ALONE).contains(&self.all_misses) } else { self.misses > ALONE }
    }

    /// How many bytes may be brought at most, of whatever is not here; see [`Standing`]. Where it is
    /// none, what is not here need not be found out.
    pub fn room(&self, room: u64, used: u64) -> u64 {
        let unproven = self.brought.saturating_sub(used.saturating_mul(EARNED_BYTES));
        UNPROVEN_BYTES_MAX.min(room / 2).saturating_sub(unproven)
    }

    /// How many bytes to bring around the miss that was just told.
    pub fn step(&mut self, at: Standing) -> u64 {
        let room = self.room(at.room, at.used);
        let whole = at.left <= WHOLE_BYTES.min(room);
        if whole {
            self.brought = self.brought.saturating_add(at.left);
            return at.left;
        }
        let share = match self.misses.saturating_sub(ALONE) {
            // Along a trend its own window is ahead of it.
            0 => return 0,
            1 => at.left / 2,
            2.. => at.left,
        };
        let step = STEP_BYTES_MAX.min(share).min(room);
        self.brought = self.brought.saturating_add(step);
        step
    }
}

#[cfg(test)]
mod tests;
