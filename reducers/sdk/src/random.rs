//! Random numbers from a mutation's seed: splitmix64.
//!
//! The state is the seed, 64 bits. Each number, with wrapping arithmetic on unsigned 64 bits:
//!
//! ```text
//! state = state + 0x9e3779b97f4a7c15
//! z = state
//! z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
//! z = (z ^ (z >> 27)) * 0x94d049bb133111eb
//! number = z ^ (z >> 31)
//! ```
//!
//! An SDK in another language must answer the same numbers, and derive from them as [`Random`]'s
//! methods say, so that a reducer can be rewritten without changing what replays do. From seed 0 the
//! first three numbers are `e220a8397b1dcdaf`, `6e789e6aa1b965f4`, `06c45d188009454f`.
//!
//! This is not for secrets: whoever knows the seed, and every replica does, knows the numbers.

/// The generator. Two with one seed answer the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// The next number, uniform over 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`: the upper 64 bits of `next * bound` (128 bits); 0 where `bound` is 0.
    /// Its bias is below 2^-32 for bounds up to 2^32.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from 0 to below 1: the upper 53 bits of the next one, times 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// An identifier of 32 lower-case hex digits: two numbers, the first one's digits first.
    pub fn id(&mut self) -> String {
        let mut id = String::with_capacity(32);
        for number in [self.next_u64(), self.next_u64()] {
            for shift in (0..16).rev() {
                let digit = (number >> (shift * 4)) & 0xf;
                id.push(char::from(b"0123456789abcdef"[digit as usize]));
            }
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_documented() {
        let mut random = Random::new(0);
        assert_eq!(random.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.next_u64(), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(random.next_u64(), 0x06c4_5d18_8009_454f);
        assert_eq!(Random::new(0).id(), "e220a8397b1dcdaf6e789e6aa1b965f4");
        assert_eq!(Random::new(0).below(1000), 883);
        assert_eq!(Random::new(0).below(0), 0);
        assert_eq!(Random::new(0).unit(), 0.883_310_808_213_642_6);
    }
}
