//! What was read: on replicas against a serial run, and everywhere against one serial order.
//!
//! A document shows what it pulled and its own work on top, which may still be taken back: that promise
//! (`docs/consistency.md`) is that the state is one that a serial execution reaches, the log up to some
//! commit and then its local work in order. What is durable is promised more: one order for everybody,
//! which [`serial`] looks for in what was observed alone.

use std::collections::{BTreeMap, BTreeSet};

use futures::executor::block_on;
use graft::format::commit::Head;
use graft::remote::SharedRemote;
use graft::volume::{Options, Volume};
use graft::{Lsn, VolumeId};
use serde_json::Value as Json;
use sqlsync_layer::guard::{Guarded, Mode, RowLimits};
use sqlsync_layer::payload::{Op, Outcome, Payload};
use sqlsync_layer::protocol::wire_rows;
use sqlsync_layer::vfs::Database;

use super::{Judge, Plain};
use crate::sim::bank::{Ask, WOVEN};
use crate::sim::serial::{self, Extent, Step, Txn};
use crate::sim::truth::{Claim, Local, READERS, Truth, rows_text};

impl Judge<'_> {
    /// Whatever was read on replicas that stood on this commit is what a serial run answers.
    pub(super) fn reads(&mut self, lsn: Lsn) -> Result<(), String> {
        let mut seen = self.seen.remove(&lsn).unwrap_or_default();
        // Stacks that grew come one after another, so that each mutation is run once for all of them.
        seen.sort_by_key(|seen| (seen.who, seen.at));
        let mut replica: Option<(Plain, Vec<Local>)> = None;
        for seen in seen {
            let grown = replica.take().filter(|(_, ran)| seen.local.starts_with(ran));
            let (mut plain, ran) = match grown {
                Some(grown) => grown,
                None => (self.plain.copy()?, Vec::new()),
            };
            for local in &seen.local[ran.len()..] {
                plain.local(local).map_err(|error| {
                    format!(
                        "{} had local work on lsn {lsn} that no serial run makes: {error}",
                        name(seen.who)
                    )
                })?;
            }
            let expected = plain.ask(seen.ask)?;
            if expected != seen.rows {
                return Err(format!(
                    "{} read {:?} on lsn {lsn} with {} local commits at {:.3} s: {}\na serial run answers {expected}\nthe local work is {:?}",
                    name(seen.who),
                    seen.ask,
                    seen.local.len(),
                    seen.at as f64 / 1000.0,
                    seen.rows,
                    seen.local
                ));
            }
            replica = Some((plain, seen.local.clone()));
        }
        Ok(())
    }
}

fn name(who: usize) -> String {
    match who.checked_sub(READERS) {
        Some(reader) => format!("reader {reader}"),
        None => format!("document {who}"),
    }
}

/// Looks for a serial order of everything durable that was woven and read: by coordinators' clients, by
/// documents without local work, by readers and writers straight on the bucket, and at last by us.
pub(super) fn serializable(
    truth: &Truth,
    heads: &[Head],
    remote: &SharedRemote,
    volume: VolumeId,
) -> Result<Extent, String> {
    let last = last_read(remote, volume)?;
    let mut history = mutations(truth, heads, &last)?;
    let published: BTreeMap<Lsn, u64> =
        heads.iter().filter_map(|head| Some((head.lsn, *truth.published.get(&head.id)?))).collect();
    for shown in truth.shown.iter().filter(|shown| shown.ask == Ask::Woven) {
        let durable = match shown.claim {
            Claim::Exactly => true,
            Claim::At { epoch, .. } => {
                truth.epochs.get(&epoch) == Some(&shown.lsn) || published.get(&shown.lsn) == Some(&epoch)
            }
        };
        if durable {
            history.push(reading(format!("client {} at lsn {}", shown.client, shown.lsn), &shown.rows)?);
        }
    }
    for seen in truth.seen.iter().filter(|seen| seen.ask == Ask::Woven && seen.local.is_empty()) {
        let who = format!("{} at {:.3} s, lsn {}", name(seen.who), seen.at as f64 / 1000.0, seen.lsn);
        history.push(reading(who, &seen.rows)?);
    }
    if let Some(rows) = &last {
        history.push(reading("the last reader".into(), rows)?);
    }
    serial::check(&history).map_err(|anomaly| anomaly.to_string())
}

/// Every woven list as the bucket has it; `None` before there is one.
fn last_read(remote: &SharedRemote, volume: VolumeId) -> Result<Option<String>, String> {
    const ROWS: RowLimits = RowLimits { rows_max: 1_000_000, bytes_max: 1 << 30 };
    let opened = block_on(Volume::open(&**remote, volume, Options::default())).map_err(|e| e.to_string())?;
    let fetch = std::sync::Arc::new(graft::fetch::RemoteFetch::new(remote.clone()));
    let database = Database::new(std::sync::Arc::new(opened.volume), fetch);
    let (connection, _control) = database.connect_read_only().map_err(|error| error.to_string())?;
    let guarded = Guarded::new(connection).map_err(|error| error.to_string())?;
    let ask = Ask::Woven;
    let rows = guarded.within(Mode::Query, u64::MAX, |guarded| guarded.ask(ask.sql(), &ask.params(), ROWS));
    // A malformed volume is reported by its dump.
    Ok(rows.ok().map(|rows| rows_text(&wire_rows(&rows.rows))))
}

/// Who wove what: from the records that the clients' own mutations have, and from what the last reader
/// finds in the entries of what each of them saw.
fn mutations(truth: &Truth, heads: &[Head], last: &Option<String>) -> Result<Vec<Txn>, String> {
    let mut saw: BTreeMap<u64, Step> = BTreeMap::new();
    for row in rows(last.as_deref().unwrap_or("[]"))? {
        let [_, _, tag, list, n, last] = row;
        saw.insert(tag, Step::Saw { list, n, last });
    }
    let mut history = Vec::new();
    for head in heads {
        let payload = Payload::decode(head).map_err(|error| error.to_string())?;
        for record in payload.records {
            let Op::Mutation(mutation) = record.op else { continue };
            if mutation.reducer != "weave" {
                continue;
            }
            let args: Json = serde_json::from_str(&mutation.args).map_err(|error| error.to_string())?;
            let (Some(list), Some(tag)) = (args["to"].as_u64(), args["tag"].as_u64()) else { continue };
            let applied = record.outcome == Outcome::Applied;
            let who = mutation.client.as_str();
            let made =
                truth.made.iter().flatten().find(|(seq, made)| **seq == mutation.seq && made.is(&mutation));
            let at = made.map_or(0, |(_, made)| made.at) as f64 / 1000.0;
            let who = format!("{who}'s mutation {} made at {at:.3} s, lsn {}", mutation.seq, head.lsn);
            let steps = saw.get(&tag).cloned().into_iter().chain([Step::Append { list, value: tag }]);
            history.push(Txn { who, applied, steps: steps.collect() });
        }
    }
    // A rejected mutation that its app tried again has the same value as the one that was applied.
    let values: BTreeSet<Step> = history.iter().filter(|txn| txn.applied).filter_map(appended).collect();
    let mut rejected = BTreeSet::new();
    history.retain(|txn| {
        let new = |step: Step| !values.contains(&step) && rejected.insert(step);
        txn.applied || appended(txn).is_none_or(new)
    });
    Ok(history)
}

fn appended(txn: &Txn) -> Option<Step> {
    txn.steps.last().cloned()
}

/// A reader's transaction: every list at once.
fn reading(who: String, text: &str) -> Result<Txn, String> {
    let mut lists: BTreeMap<u64, Vec<u64>> = (1..=WOVEN).map(|list| (list, Vec::new())).collect();
    for [list, _, tag, _, _, _] in rows(text)? {
        lists.entry(list).or_default().push(tag);
    }
    let steps = lists.into_iter().map(|(list, values)| Step::Read { list, values }).collect();
    Ok(Txn { who, applied: true, steps })
}

/// List, position, tag, list seen, its length and its last tag.
fn rows(text: &str) -> Result<Vec<[u64; 6]>, String> {
    let rows: Vec<Vec<Json>> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let row = |row: Vec<Json>| {
        let numbers: Option<Vec<u64>> = row.iter().map(Json::as_u64).collect();
        numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| format!("{row:?} is no thread"))
    };
    rows.into_iter().map(row).collect()
}
