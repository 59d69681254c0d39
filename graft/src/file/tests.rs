//! Files against a model: random lengths, ranges, page sizes, holes, interruptions.

use std::sync::Arc;

use futures::executor::block_on;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::catalog;
use crate::fetch::Ahead;
use crate::fetch::tests::{VOLUME, in_memory, open};
use crate::format::meta::Meta;
use crate::ids::{CommitId, VolumeName};
use crate::publish::publish;
use crate::remote::{Counting, Fault, Faulty, MemoryRemote, Request, SharedRemote};
use crate::store::ByteFile;
use crate::store::memory::MemoryFile;
use crate::volume::push;

fn created(page_size: u32) -> (Arc<Counting>, SharedRemote) {
    let counting = Counting::new(Arc::new(MemoryRemote::new()));
    let remote: SharedRemote = counting.clone();
    let name: VolumeName = "v".parse().unwrap();
    let meta = Meta { page_size: PageSize::new(page_size).unwrap(), parent: None };
    block_on(catalog::create(&*remote, &name, VOLUME, meta)).unwrap();
    (counting, remote)
}

fn ids(seed: u64) -> impl FnMut() -> CommitId {
    let mut rng = StdRng::seed_from_u64(seed);
    move || CommitId(rng.random())
}

/// Bytes with holes in them.
fn sparse(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for _ in 0..rng.random_range(0..6) {
        let from = rng.random_range(0..=len);
        let to = rng.random_range(from..=len.min(from + len / 3));
        rng.fill(&mut bytes[from..to]);
    }
    bytes
}

fn whole(fetcher: &Fetcher, volume: &Volume) -> Vec<u8> {
    let target = MemoryFile::default();
    let file = block_on(FileView::open(fetcher, volume, volume.tip())).unwrap();
    let done = block_on(get(fetcher, &file, &target, &mut |_| {})).unwrap();
    assert_eq!((done.done, done.bytes), (file.len(), file.len()));
    let mut bytes = vec![0; target.len().unwrap() as usize];
    target.read(0, &mut bytes).unwrap();
    bytes
}

fn put_all(fetcher: &Fetcher, volume: &Volume, bytes: &[u8], id: CommitId) -> Put {
    let mut source = bytes;
    let put = block_on(put(fetcher, volume, bytes.len() as u64, &mut source, id, 1, &mut |_| {})).unwrap();
    if let Some(prepared) = &put.prepared {
        block_on(publish(&**fetcher.remote(), prepared)).unwrap();
        let pulled = block_on(volume.pull(&**fetcher.remote())).unwrap();
        volume.absorb(pulled).unwrap();
    }
    put
}

/// Any edits of ranges and lengths, puts, pushes and cold readers: the bytes are the model's.
#[test]
fn a_file_reads_like_its_model() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let page_size = 512 << rng.random_range(0..8);
        let (_, remote) = created(page_size);
        let fetcher = Fetcher::new(remote.clone()).in_foreground();
        let volume = open(&remote, in_memory(4 << 20));
        let mut id = ids(seed);
        let mut model: Vec<u8> = Vec::new();
        for step in 0..25 {
            if rng.random_bool(0.2) {
                block_on(push(&*remote, &volume, |_| Bytes::new(), &mut id, 1)).unwrap();
                let len = rng.random_range(0..200_000);
                model = sparse(&mut rng, len);
                put_all(&fetcher, &volume, &model, id());
            } else {
                let mut edit = block_on(FileEdit::begin(&fetcher, &volume)).unwrap();
                for _ in 0..rng.random_range(1..5) {
                    if rng.random_bool(0.3) {
                        let len = rng.random_range(0..200_000);
                        block_on(edit.set_len(&fetcher, len)).unwrap();
                        model.resize(len as usize, 0);
                    } else {
                        let at = rng.random_range(0..model.len() + 5000);
                        let len = rng.random_range(0..20_000);
                        let bytes = sparse(&mut rng, len);
                        block_on(edit.write(&fetcher, at as u64, &bytes)).unwrap();
                        if !bytes.is_empty() {
                            model.resize(model.len().max(at + bytes.len()), 0);
                            model[at..at + bytes.len()].copy_from_slice(&bytes);
                        }
                    }
                }
                assert_eq!(edit.len(), model.len() as u64);
                edit.commit().unwrap();
            }
            let file = block_on(FileView::open(&fetcher, &volume, volume.tip())).unwrap();
            assert_eq!(file.len(), model.len() as u64, "seed {seed}, step {step}");
            for _ in 0..5 {
                let (at, len) = (rng.random_range(0..model.len() + 10), rng.random_range(0..30_000));
                let found = block_on(file.read(&fetcher, at as u64, len)).unwrap();
                let expected = &model[at.min(model.len())..(at + len).min(model.len())];
                assert_eq!(found, expected, "seed {seed}, step {step}, {at}+{len}");
            }
        }
        block_on(push(&*remote, &volume, |_| Bytes::new(), &mut id, 1)).unwrap();
        let cold = open(&remote, in_memory(rng.random_range(1..2 << 20)));
        assert!(whole(&fetcher, &cold) == model, "seed {seed}");
    }
}

#[test]
fn only_what_changed_is_sent_and_holes_cost_nothing() {
    let (counting, remote) = created(4096);
    let fetcher = Fetcher::new(remote.clone()).with_ahead(Ahead::Nothing).in_foreground();
    let volume = open(&remote, in_memory(4 << 20));
    let mut id = ids(1);
    let mut bytes = vec![0; 40 << 20];
    StdRng::seed_from_u64(9).fill(&mut bytes[..36 << 20]);
    counting.reset();
    let first = put_all(&fetcher, &volume, &bytes, id());
    let sent = counting.reset();
    // The first page and 36 MiB of pages: three segments and the commit; then the pull.
    assert_eq!((first.changed, sent.creates), (1 + 9216, 4));
    assert!(sent.bytes_up < 37 << 20, "{sent:?}");
    // Nothing changed: one frame, to see that this is a file.
    assert!(put_all(&fetcher, &volume, &bytes, id()).prepared.is_none());
    assert_eq!((counting.snapshot().ranges, counting.reset().requests()), (1, 1));
    bytes[20 << 20] ^= 1;
    let again = put_all(&fetcher, &volume, &bytes, id());
    assert_eq!((again.changed, counting.reset().creates), (1, 1));
    // Cut off inside a page.
    bytes.truncate((10 << 20) + 5);
    assert_eq!(put_all(&fetcher, &volume, &bytes, id()).changed, 2);
    let cold = open(&remote, in_memory(1 << 20));
    assert!(whole(&fetcher, &cold) == bytes);
}

/// A get that fails in the middle goes on; a target that holds another version, or rubbish, becomes
/// the file by its differences.
#[test]
fn a_get_resumes_and_updates() {
    let (counting, remote) = created(1024);
    let fetcher = Fetcher::new(remote.clone()).in_foreground();
    let volume = open(&remote, in_memory(8 << 20));
    let mut id = ids(2);
    let mut bytes = vec![0; (20 << 20) + 77];
    StdRng::seed_from_u64(10).fill(&mut bytes[..]);
    put_all(&fetcher, &volume, &bytes, id());

    let target = MemoryFile::default();
    let read_all = || {
        let mut found = vec![0; target.len().unwrap() as usize];
        target.read(0, &mut found).unwrap();
        found
    };
    let cold = open(&remote, in_memory(6 << 20));
    let faulty = Faulty::new(remote.clone(), 1);
    let failing = Fetcher::new(faulty.clone()).in_foreground();
    let file = block_on(FileView::open(&failing, &cold, cold.tip())).unwrap();
    let mut told = 0;
    let error = block_on(get(&failing, &file, &target, &mut |progress| {
        told = progress.done;
        if told > 8 << 20 {
            faulty.fail_next(Request::GetRange, Fault::FailBefore);
        }
    }));
    assert!(matches!(error, Err(FileError::Fetch(_))), "{error:?}");
    assert!(told > 8 << 20 && told < 20 << 20);

    let cold = open(&remote, in_memory(6 << 20));
    let file = block_on(FileView::open(&fetcher, &cold, cold.tip())).unwrap();
    let done = block_on(get(&fetcher, &file, &target, &mut |_| {})).unwrap();
    assert!(done.written <= bytes.len() as u64 - told, "{done:?} after {told}");
    assert!(read_all() == bytes);

    bytes[5 << 20..(5 << 20) + 3000].fill(7);
    bytes[6 << 20..7 << 20].fill(0);
    put_all(&fetcher, &volume, &bytes, id());
    target.set_len(30 << 20).unwrap();
    target.write(100, b"rubbish").unwrap();
    let pulled = block_on(cold.pull(&*remote)).unwrap();
    cold.absorb(pulled).unwrap();
    let file = block_on(FileView::open(&fetcher, &cold, cold.tip())).unwrap();
    counting.reset();
    let done = block_on(get(&fetcher, &file, &target, &mut |_| {})).unwrap();
    assert!(read_all() == bytes);
    assert!(done.written <= (1 << 20) + 5 * 1024, "{done:?}");
}

#[test]
fn a_volume_of_something_else_is_left_alone() {
    let (_, remote, writer) = crate::fetch::tests::written(4096, 3);
    let fetcher = Fetcher::new(remote.clone());
    let error = block_on(FileView::open(&fetcher, &writer, writer.tip())).unwrap_err();
    assert!(matches!(error, FileError::NotAFile { .. }), "{error}");
    let mut source: &[u8] = b"abc";
    let put = block_on(put(&fetcher, &writer, 3, &mut source, CommitId([1; 16]), 1, &mut |_| {}));
    assert!(matches!(put, Err(PutError::File(FileError::NotAFile { .. }))));
    let (_, remote) = created(512);
    let empty = open(&remote, in_memory(1 << 20));
    let error = block_on(FileView::open(&fetcher, &empty, empty.tip())).unwrap_err();
    assert!(error.to_string().contains("it is empty"), "{error}");
}

#[test]
fn a_source_that_changes_its_length_is_refused() {
    let (_, remote) = created(512);
    let fetcher = Fetcher::new(remote.clone());
    let volume = open(&remote, in_memory(1 << 20));
    for said in [2, 4] {
        let mut source: &[u8] = b"abc";
        let put = block_on(put(&fetcher, &volume, said, &mut source, CommitId([1; 16]), 1, &mut |_| {}));
        assert!(matches!(put, Err(PutError::Length { expected }) if expected == said));
    }
    let most = length_max(PageSize::new(512).unwrap());
    let mut edit = block_on(FileEdit::begin(&fetcher, &volume)).unwrap();
    let error = block_on(edit.set_len(&fetcher, most + 1)).unwrap_err();
    assert!(matches!(error, FileError::TooLong { .. }), "{error}");
    // A sparse file as long as there can be: one page.
    block_on(edit.write(&fetcher, most - 1, b"x")).unwrap();
    edit.commit().unwrap();
    block_on(push(&*remote, &volume, |_| Bytes::new(), ids(3), 1)).unwrap();
    let cold = open(&remote, in_memory(1 << 20));
    let file = block_on(FileView::open(&fetcher, &cold, cold.tip())).unwrap();
    assert_eq!(file.len(), most);
    assert_eq!(block_on(file.read(&fetcher, most - 3, 9)).unwrap(), b"\0\0x"[..]);
}
