//! What a reader has seen or written, to be shown again to a later query.
//!
//! A token names a state of one volume, and its text is opaque to callers. A query that takes it as
//! `after` runs on that state or a later one. What a state is known by decides whether it can be found
//! again after the tip was lost:
//!
//! | known by | holds | found again |
//! | --- | --- | --- |
//! | `lsn` | every commit up to it | always: commits are durable |
//! | `mutation` | that client's mutation | once it is applied, wherever; the ledger knows |
//! | `tip` | all that was accepted when it was read | only at the tip of that epoch |
//!
//! ```text
//! 1.{volume}.{lsn}.{epoch, or empty}.{client and seq with a : between, or empty}
//! ```
//!
//! Invariant: a token is never reached by a state that lacks what it names.

use std::fmt;
use std::str::FromStr;

use graft::{Lsn, VolumeId};

use crate::protocol::ClientId;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The volume's identity.
    pub volume: VolumeId,
    /// This commit and all before it; 0 for none.
    pub lsn: Lsn,
    /// The tip of this epoch as well, which was ahead of `lsn`.
    pub tip: Option<u64>,
    /// This client's mutation of this seq as well.
    pub mutation: Option<(ClientId, u64)>,
}

/// Text was not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a token; give one that a query or a mutation answered, unchanged")]
pub struct NotAToken;

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}.{}.", self.volume, self.lsn)?;
        if let Some(epoch) = self.tip {
            write!(f, "{epoch}")?;
        }
        f.write_str(".")?;
        if let Some((client, seq)) = &self.mutation {
            write!(f, "{client}:{seq}")?;
        }
        Ok(())
    }
}

impl FromStr for Token {
    type Err = NotAToken;

    /// Safe on hostile input.
    fn from_str(text: &str) -> Result<Token, NotAToken> {
        let parts: Vec<&str> = text.splitn(6, '.').collect();
        let ["1", volume, lsn, tip, mutation] = parts.as_slice() else { return Err(NotAToken) };
        let tip = if tip.is_empty() { None } else { Some(number(tip)?) };
        let mutation = if mutation.is_empty() {
            None
        } else {
            let (client, seq) = mutation.split_once(':').ok_or(NotAToken)?;
            Some((ClientId::new(client).ok_or(NotAToken)?, number(seq)?))
        };
        let volume = volume.parse().map_err(|_| NotAToken)?;
        Ok(Token { volume, lsn: Lsn(number(lsn)?), tip, mutation })
    }
}

/// Digits alone: Rust's parser would take a sign.
fn number(text: &str) -> Result<u64, NotAToken> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or(NotAToken)
}

impl serde::Serialize for Token {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Token {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_its_text() {
        let volume = VolumeId([0xab; 16]);
        let client = ClientId::new("-_9").unwrap();
        for lsn in [0, 1, u64::MAX] {
            for tip in [None, Some(0), Some(u64::MAX)] {
                for mutation in [None, Some((client.clone(), 0)), Some((client.clone(), u64::MAX))] {
                    let token = Token { volume, lsn: Lsn(lsn), tip, mutation };
                    assert_eq!(token.to_string().parse(), Ok(token.clone()), "{token}");
                }
            }
        }
    }

    #[test]
    fn other_text_is_no_token() {
        let id = "ab".repeat(16);
        let huge = "1.".repeat(100_000);
        assert!(format!("1.{id}.1..").parse::<Token>().is_ok());
        for text in [
            String::new(),
            ".".into(),
            "1....".into(),
            huge,
            format!("2.{id}.1.."),
            format!("1.{id}.1."),
            format!("1.{id}.1...more"),
            format!("1.{id}.+1.."),
            format!("1.{id}.-1.."),
            format!("1.{id}.18446744073709551616.."),
            format!("1.{id}.1.x."),
            format!("1.{id}.1..a"),
            format!("1.{id}.1..a:"),
            format!("1.{id}.1..:1"),
            format!("1.{id}.1..a:1:2"),
            format!("1.{id}.1..../:1"),
            "1.%s.1..".into(),
        ] {
            assert_eq!(text.parse::<Token>(), Err(NotAToken), "{}", text.get(..80).unwrap_or(&text));
        }
    }
}
