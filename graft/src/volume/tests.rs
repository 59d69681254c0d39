//! A replica against a model of it, and its promises one by one.

mod faults;
mod leftovers;
mod model;
mod promises;
mod pushers;
mod stack;
mod streamed;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;

use super::*;
use crate::fetch::fetch;
use crate::format::meta::Meta;
use crate::ids::VolumeName;
use crate::remote::memory::MemoryRemote;

const VOLUME: VolumeId = VolumeId([3; 16]);

fn page(idx: u32) -> PageIdx {
    PageIdx::new(idx).unwrap()
}

/// A store that holds one empty volume called `v`.
fn created(page_size: u32) -> Arc<MemoryRemote> {
    let remote = Arc::new(MemoryRemote::new());
    let name: VolumeName = "v".parse().unwrap();
    let meta = Meta { page_size: PageSize::new(page_size).unwrap(), parent: None };
    block_on(catalog::create(&*remote, &name, VOLUME, meta)).unwrap();
    remote
}

fn open(remote: &dyn Remote, options: Options) -> Volume {
    block_on(Volume::open(remote, VOLUME, options)).unwrap().volume
}

/// Nothing kept but in memory.
fn in_memory() -> Options {
    Options { store: None, locals: None, cache_bytes: 16 << 20, ..Options::default() }
}

fn filled(page_size: usize, byte: u8) -> Bytes {
    vec![byte; page_size].into()
}

/// Commits pages filled with one byte each on the tip.
fn write(volume: &Volume, pages: u32, writes: &[(u32, u8)]) -> Snapshot {
    let size = volume.page_size().bytes();
    let changes: BTreeMap<_, _> =
        writes.iter().map(|(idx, byte)| (page(*idx), filled(size, *byte))).collect();
    volume.commit(&volume.tip(), Change { changes, pages, payload: Bytes::new() }).unwrap()
}

/// Reads a page, fetching it where it is missing.
fn read(remote: &dyn Remote, volume: &Volume, snapshot: &Snapshot, idx: u32) -> Bytes {
    match volume.read(snapshot, page(idx)) {
        Ok(bytes) => bytes,
        Err(ReadError::Fault(missing)) => {
            block_on(fetch(remote, volume, snapshot, &missing)).unwrap();
            volume.read(snapshot, page(idx)).unwrap()
        }
        Err(error) => panic!("{error}"),
    }
}

/// The first byte of each page of the tip.
fn bytes_of(remote: &dyn Remote, volume: &Volume) -> Vec<u8> {
    let tip = volume.tip();
    (1..=tip.pages()).map(|idx| read(remote, volume, &tip, idx)[0]).collect()
}

fn ids(from: u8) -> impl FnMut() -> CommitId {
    let mut next = u128::from(from) << 64;
    move || {
        next += 1;
        CommitId(next.to_be_bytes())
    }
}

fn push_all(remote: &dyn Remote, volume: &Volume, writer: u8) -> Result<Pushed, PushError> {
    // Ids are unique in each test: by writer and by the commit they would become.
    let from = writer.wrapping_mul(16).wrapping_add(volume.status().lsn.0 as u8);
    block_on(push(remote, volume, |_| Bytes::new(), ids(from), 1000))
}

fn catch_up(remote: &dyn Remote, volume: &Volume) -> PageSet {
    volume.absorb(block_on(volume.pull(remote)).unwrap()).unwrap()
}
