use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::store::memory::MemoryFile;

const VOLUME: VolumeId = VolumeId([9; 16]);

fn version(page: u32, lsn: u64) -> Version {
    (PageIdx::new(page).unwrap(), Lsn(lsn))
}

fn content(version: Version, page_size: PageSize) -> Bytes {
    crate::fetch::tests::content(version.0.get(), version.1.0, page_size.bytes())
}

fn hash(version: Version, page_size: PageSize) -> PageHash {
    PageHash::of(version.0, &content(version, page_size))
}

fn open(file: &Arc<MemoryFile>, page_size: PageSize, budget: u64) -> PageFile {
    PageFile::open(file.clone(), VOLUME, page_size, budget).unwrap().unwrap()
}

/// Whatever is put, read, demoted, damaged, cut off and reopened: a page is read as it was put or not
/// at all, and the file never grows beyond its budget.
#[test]
fn a_page_file_gives_what_was_put_or_nothing_within_its_budget() {
    for seed in 0..30 {
        let mut rng = StdRng::seed_from_u64(seed);
        let page_size = PageSize::new(512 << rng.random_range(0..4)).unwrap();
        let mut budget = rng.random_range(12 << 10..3 << 20);
        let bytes = Arc::new(MemoryFile::default());
        let mut file = open(&bytes, page_size, budget);
        let (mut put, mut found) = (0, 0);
        for step in 0..300 {
            match rng.random_range(0..20) {
                0..8 => {
                    let first = rng.random_range(1..2000);
                    let lsn = rng.random_range(1..4);
                    let pages: Vec<_> = (first..first + rng.random_range(1..65))
                        .map(|page| (version(page, lsn), content(version(page, lsn), page_size)))
                        .collect();
                    put += pages.len();
                    let evicted = file.put(&pages).unwrap();
                    for gone in evicted {
                        assert!(!file.contains(gone) || pages.iter().any(|(v, _)| *v == gone));
                    }
                }
                8..17 => {
                    let v = version(rng.random_range(1..2064), rng.random_range(1..4));
                    if let Some(page) = file.get(v, hash(v, page_size)).unwrap() {
                        assert!(page == content(v, page_size), "seed {seed}, step {step}, {v:?}");
                        found += 1;
                    }
                }
                17 => file.demote([version(rng.random_range(1..2064), 1)].into_iter()),
                18 => {
                    if rng.random() {
                        budget = rng.random_range(12 << 10..3 << 20);
                    }
                    file = open(&bytes, page_size, budget);
                }
                _ => {
                    let len = bytes.len().unwrap();
                    if rng.random() {
                        bytes.set_len(rng.random_range(len / 2..=len)).unwrap();
                    } else {
                        let at = rng.random_range(0..len);
                        bytes.write(at, &[rng.random()]).unwrap();
                    }
                }
            }
            assert!(bytes.len().unwrap() <= budget, "seed {seed}, step {step}");
            assert!(file.len() <= file.capacity());
        }
        assert!(put > 100 && found > 0, "seed {seed}: {put} put, {found} found");
    }
}

#[test]
fn pages_outlive_their_handle_and_no_other_volume_gets_them() {
    let bytes = Arc::new(MemoryFile::default());
    let page_size = PageSize::DEFAULT;
    let pages: Vec<_> = (1..=300).map(|p| (version(p, 7), content(version(p, 7), page_size))).collect();
    open(&bytes, page_size, 4 << 20).put(&pages).unwrap();
    let again = open(&bytes, page_size, 4 << 20);
    assert_eq!(again.len(), 300);
    for (version, page) in &pages {
        assert_eq!(again.get(*version, hash(*version, page_size)).unwrap().as_ref(), Some(page));
    }
    let other = PageFile::open(bytes.clone(), VolumeId([1; 16]), page_size, 4 << 20).unwrap().unwrap();
    assert_eq!(other.len(), 0, "it began anew");
}

/// The bytes of a small file, as the module's table says.
#[test]
fn the_layout_is_the_documented_one() {
    let bytes = Arc::new(MemoryFile::default());
    let page_size = PageSize::new(512).unwrap();
    let file = open(&bytes, page_size, 1 << 20);
    let pages: Vec<_> = (1..=258).map(|p| (version(p, 5), content(version(p, 5), page_size))).collect();
    file.put(&pages).unwrap();
    let mut all = vec![0; bytes.len().unwrap() as usize];
    bytes.read(0, &mut all).unwrap();
    assert_eq!(all[..8], *b"GPF1\0\x02\0\0");
    assert_eq!(all[8..24], VOLUME.0);
    assert_eq!(all[4096..4096 + 16], [1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(all[8192..8192 + 512], pages[0].1[..]);
    let second = 4096 + 4096 + 256 * 512;
    assert_eq!(all[second + 16..second + 20], 258u32.to_le_bytes());
    assert_eq!(all[second + 4096 + 512..second + 4096 + 1024], pages[257].1[..]);
    assert_eq!(all.len(), second + 4096 + 1024);
}

/// Bytes given to write calls by this process so far.
#[cfg(all(feature = "native", target_os = "linux"))]
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    line.parse().unwrap()
}

#[cfg(all(feature = "native", target_os = "linux"))]
fn size(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let sizes = entries.map(|entry| {
        let found = entry.metadata().unwrap();
        if found.is_dir() { size(&entry.path()) } else { found.len() }
    });
    sizes.sum()
}

/// The figures of `docs/decisions/0011-cached-pages-in-a-file-of-their-own.md`: 100 MiB of pages come in
/// frames of 16, and then newer versions of all of them, in another order. Alone in its process, since
/// it counts what that writes.
#[cfg(all(feature = "native", target_os = "linux"))]
#[test]
#[ignore = "a measurement"]
fn what_cached_pages_cost_on_disk() {
    use crate::store::{Batch, Durability, FjallStore, ReplicaStore as _, Space};

    const FRAMES: u32 = 1600;
    let page_size = PageSize::DEFAULT;
    let mut rng = StdRng::seed_from_u64(1);
    let mut rounds = Vec::new();
    for lsn in 1..=2 {
        let mut frames: Vec<u32> = (0..FRAMES).collect();
        (1..frames.len()).rev().for_each(|at| frames.swap(at, rng.random_range(0..=at)));
        rounds.push((lsn, frames));
    }
    let frame = |lsn: u64, at: u32| {
        let versions = (at * 16 + 1..=at * 16 + 16).map(move |page| version(page, lsn));
        versions.map(|v| (v, content(v, page_size))).collect::<Vec<_>>()
    };
    let live = u64::from(FRAMES) * 16 * 4096;
    let report = |name: &str, before: u64, dir: &std::path::Path| {
        let (bytes, size) = ((written() - before) as f64 / (2 * live) as f64, size(dir) as f64 / live as f64);
        println!(
            "{name}: {bytes:.2} bytes written for each byte put; the directory is {size:.2} times the pages"
        );
    };

    let dir = tempfile::tempdir().unwrap();
    let file = Arc::new(crate::store::DiskFile::open(&dir.path().join("pages")).unwrap());
    let file = PageFile::open(file, VOLUME, page_size, live + (8 << 20)).unwrap().unwrap();
    let before = written();
    for (lsn, frames) in &rounds {
        for at in frames {
            file.demote(frame(lsn - 1, *at).into_iter().map(|(version, _)| version));
            file.put(&frame(*lsn, *at)).unwrap();
        }
    }
    report("a file", before, dir.path());

    let dir = tempfile::tempdir().unwrap();
    let store = FjallStore::open(dir.path()).unwrap();
    let key = |(page, lsn): Version| [&page.get().to_be_bytes()[..], &lsn.0.to_be_bytes()[..]].concat();
    let before = written();
    for (lsn, frames) in &rounds {
        for at in frames {
            let mut batch = Batch::default();
            for (version, bytes) in frame(*lsn, *at) {
                batch.put(Space::State, key(version), bytes);
                batch.remove(Space::State, key((version.0, Lsn(lsn - 1))));
            }
            store.write(batch, Durability::Buffered).unwrap();
        }
    }
    report("fjall, at once", before, dir.path());
    drop(store);
    // Opened again it has brought its journal into its trees.
    drop(FjallStore::open(dir.path()).unwrap());
    report("fjall, reopened", before, dir.path());
}
