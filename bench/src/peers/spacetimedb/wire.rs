//! The part of SpacetimeDB's `v1.bsatn` protocol that the benchmarks speak.
//!
//! BSATN is little-endian; a string or an array is its length as u32 and its bytes or elements, a sum is a
//! tag byte and its payload. A server's frame begins with a byte that names its compression, which we
//! decline when we connect.
//!
//! Invariant: what the server sends is checked; a short or unknown frame is an error, never a panic.

use anyhow::{Context as _, bail};

/// The subprotocol's name.
pub const PROTOCOL: &str = "v1.bsatn.spacetimedb";

const CALL_REDUCER: u8 = 0;
const SUBSCRIBE_SINGLE: u8 = 3;

/// A reducer's arguments, encoded.
pub struct Args(Vec<u8>);

/// Arguments, one after the other.
pub mod args {
    use super::{Args, string};

    /// Of `transfer`.
    pub fn transfer(from: u32, to: u32, amount: i64) -> Args {
        Args([&from.to_le_bytes()[..], &to.to_le_bytes(), &amount.to_le_bytes()].concat())
    }

    /// Of `open_accounts`.
    pub fn open_accounts(first: u32, count: u32, balance: i64) -> Args {
        transfer(first, count, balance)
    }

    /// Of `write_note`.
    pub fn write_note(id: u32, text: &str) -> Args {
        let mut bytes = id.to_le_bytes().to_vec();
        string(&mut bytes, text.as_bytes());
        Args(bytes)
    }
}

/// What a server says, as far as anybody here wants to know.
pub enum ServerMessage {
    /// The answer to a call.
    Called { request: u32, outcome: Result<(), String> },
    /// New texts of the note that is watched.
    Notes(Vec<String>),
    /// A subscription was refused or ended.
    SubscriptionFailed(String),
    /// Something else, such as the greeting.
    Other,
}

/// A call whose outcome is wanted.
pub fn call(reducer: &str, args: &Args, request: u32) -> Vec<u8> {
    let mut bytes = vec![CALL_REDUCER];
    string(&mut bytes, reducer.as_bytes());
    string(&mut bytes, &args.0);
    bytes.extend(request.to_le_bytes());
    // Flags: tell the caller also of success.
    bytes.push(0);
    bytes
}

/// A subscription to one query.
pub fn subscribe(sql: &str, request: u32) -> Vec<u8> {
    let mut bytes = vec![SUBSCRIBE_SINGLE];
    string(&mut bytes, sql.as_bytes());
    bytes.extend(request.to_le_bytes());
    bytes.extend(request.to_le_bytes()); // the query's id
    bytes
}

fn string(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text);
}

/// Reads a frame.
pub fn read(frame: &[u8]) -> anyhow::Result<ServerMessage> {
    let mut reader = Reader(frame);
    if reader.u8()? != 0 {
        bail!("a compressed frame, although compression was declined");
    }
    Ok(match reader.u8()? {
        // TransactionUpdate: the caller's own call, whole.
        1 => {
            let outcome = match reader.u8()? {
                0 => reader.database_update(&mut Vec::new()).map(Ok)?,
                1 => Err(reader.string()?),
                2 => Err("out of energy".into()),
                tag => bail!("a status with the tag {tag}"),
            };
            reader.skip(8 + 32 + 16)?; // time, identity, connection
            reader.bytes()?; // the reducer's name
            reader.skip(4)?; // its id
            reader.bytes()?; // its arguments
            ServerMessage::Called { request: reader.u32()?, outcome }
        }
        // TransactionUpdateLight: another's call, its rows alone.
        2 => {
            reader.skip(4)?; // the call's number, with its caller
            let mut notes = Vec::new();
            reader.database_update(&mut notes)?;
            ServerMessage::Notes(notes)
        }
        // SubscribeApplied: the rows as they are.
        5 => {
            reader.skip(4 + 8 + 4)?; // request, duration, query
            reader.skip(4)?; // table
            reader.bytes()?; // its name
            let mut notes = Vec::new();
            reader.table_update(&mut notes)?;
            ServerMessage::Notes(notes)
        }
        // SubscriptionError
        7 => {
            reader.skip(8)?; // duration
            for _request_query_table in 0..3 {
                if reader.u8()? == 0 {
                    reader.skip(4)?;
                }
            }
            ServerMessage::SubscriptionFailed(reader.string()?)
        }
        _ => ServerMessage::Other,
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> anyhow::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("the frame is too short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn skip(&mut self, count: usize) -> anyhow::Result<()> {
        self.take(count).map(drop)
    }

    fn u8(&mut self) -> anyhow::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> anyhow::Result<u32> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into()?))
    }

    fn bytes(&mut self) -> anyhow::Result<&'a [u8]> {
        let count = self.u32()? as usize;
        self.take(count)
    }

    fn string(&mut self) -> anyhow::Result<String> {
        Ok(String::from_utf8(self.bytes()?.to_vec())?)
    }

    fn database_update(&mut self, notes: &mut Vec<String>) -> anyhow::Result<()> {
        for _table in 0..self.u32()? {
            self.table_update(notes)?;
        }
        Ok(())
    }

    /// One table's change. Rows of `note` are the only ones that anybody here subscribes to.
    fn table_update(&mut self, notes: &mut Vec<String>) -> anyhow::Result<()> {
        self.skip(4)?; // table
        self.bytes()?; // its name
        self.skip(8)?; // how many rows
        for _update in 0..self.u32()? {
            if self.u8()? != 0 {
                bail!("compressed rows, although compression was declined");
            }
            self.rows()?; // deleted
            let mut inserted = Reader(self.rows()?);
            while !inserted.0.is_empty() {
                inserted.skip(4)?; // id
                notes.push(inserted.string()?);
            }
        }
        Ok(())
    }

    /// A list of rows, one after the other.
    fn rows(&mut self) -> anyhow::Result<&'a [u8]> {
        match self.u8()? {
            0 => self.skip(2)?, // every row's size
            1 => {
                let offsets = self.u32()? as usize;
                self.skip(offsets.checked_mul(8).context("the frame is too short")?)?;
            }
            tag => bail!("rows with the tag {tag}"),
        }
        self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No frame makes the reader panic: every cut of a good one is an error.
    #[test]
    fn cut_frames_are_errors() {
        let mut note = 1u32.to_le_bytes().to_vec();
        string(&mut note, b"seven");
        let mut frame = vec![0, 2];
        frame.extend(9u32.to_le_bytes()); // request
        frame.extend(1u32.to_le_bytes()); // tables
        frame.extend(4096u32.to_le_bytes());
        string(&mut frame, b"note");
        frame.extend(1u64.to_le_bytes());
        frame.extend(1u32.to_le_bytes()); // updates
        frame.push(0);
        for rows in [&[][..], &note] {
            frame.push(1);
            frame.extend(1u32.to_le_bytes());
            frame.extend(0u64.to_le_bytes());
            string(&mut frame, rows);
        }
        let Ok(ServerMessage::Notes(notes)) = read(&frame) else { panic!("a good frame is refused") };
        assert_eq!(notes, ["seven"]);
        for end in 0..frame.len() {
            assert!(read(&frame[..end]).is_err(), "cut at {end}");
        }
    }
}
