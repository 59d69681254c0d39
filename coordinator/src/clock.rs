//! The coordinator's clock and randomness: drivers own both, and this is the driver.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Milliseconds since 1970.
#[allow(clippy::disallowed_methods, reason = "a driver: it gives the actor its clock")]
pub(crate) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A generator seeded by the operating system.
pub(crate) fn rng() -> StdRng {
    StdRng::from_os_rng()
}

/// 16 random bytes.
pub(crate) fn random_id() -> [u8; 16] {
    rng().random()
}

/// A name nobody else picks.
pub(crate) fn random_name() -> String {
    format!("{:032x}", u128::from_be_bytes(random_id()))
}
