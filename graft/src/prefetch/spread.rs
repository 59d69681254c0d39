//! How much to bring around a miss where accesses follow no trend.
//!
//! A query that asks for a hundred rows here and there misses once for each of them, a round trip each,
//! and no trend says where the next one is. What helps is to have what lies *beside* the misses, and in
//! the end all of it: of a b-tree whose leaves lie together, whoever reads a tenth at random soon reads
//! everywhere. What is brought grows with the misses, as doubling an array does with its pushes: the
//! bytes stay in proportion to the round trips that were paid already, since a request for 64 KiB costs
//! what one for 16 MiB does.
//!
//! ```text
//!   miss           1   2   3   4        5        6 …
//!   brought ahead  –   –   –   16 MiB   64 MiB   64 MiB
//!   of what is not here, at most  1/3   1/2      all
//! ```
//!
//! A volume of which at most [`WHOLE_BYTES`] are not here comes whole with the third miss, or the second
//! along a trend. A point query, which misses twice or three times, pays for what it reads.
//!
//! Bounds: what was brought and not read is never more than [`UNPROVEN_BYTES_MAX`] nor half of what the
//! cache holds; each page that was read of it earns [`EARNED_BYTES`]. Of a volume far larger than that
//! random reads stay what they are: a request each. A reader whose reads the cache answers, so that
//! misses are far apart, begins anew at each.
//!
//! Invariants: no I/O, no clock; the same misses, the same answers.

/// Misses without a trend after which a small volume comes whole; along a trend this one brings it.
const ALONE: u32 = 2;
/// What the first one brings that brings more than was asked for.
const FIRST_BYTES: u64 = 16 << 20;
/// How many times as much each later one brings.
const GROWTH: u64 = 8;
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
    /// What the last of them brought.
    step: u64,
    /// Brought in all.
    brought: u64,
    /// The reads so far at the last miss.
    reads: u64,
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
            (self.misses, self.all_misses, self.step) = (0, 0, 0);
        }
        self.reads = reads;
        self.all_misses = self.all_misses.saturating_add(1);
        if !has_trend {
            self.misses = self.misses.saturating_add(1);
        }
        if has_trend { self.all_misses == ALONE } else { self.misses > ALONE }
    }

    /// How many bytes to bring around the miss that was just told.
    pub fn step(&mut self, at: Standing) -> u64 {
        let unproven = self.brought.saturating_sub(at.used.saturating_mul(EARNED_BYTES));
        let room = UNPROVEN_BYTES_MAX.min(at.room / 2).saturating_sub(unproven);
        let whole = at.left <= WHOLE_BYTES.min(room);
        if whole {
            self.brought = self.brought.saturating_add(at.left);
            return at.left;
        }
        let share = match self.misses.saturating_sub(ALONE) {
            // Along a trend its own window is ahead of it.
            0 | 1 => return 0,
            2 => at.left / 3,
            3 => at.left / 2,
            4.. => at.left,
        };
        let grown = self.step.saturating_mul(GROWTH).clamp(FIRST_BYTES, STEP_BYTES_MAX);
        let step = grown.min(share).min(room);
        (self.step, self.brought) = (step, self.brought.saturating_add(step));
        step
    }
}

#[cfg(test)]
mod tests;
