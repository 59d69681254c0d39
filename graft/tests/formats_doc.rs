//! `docs/formats.md` says what the code says, and what it writes.

use bytes::Bytes;
use graft::format::checkpoint::{NewChunk, Past, Root, assemble};
use graft::format::chunk;
use graft::format::chunk::{FrameRef, Lineage, Object, ObjectKind, Slot, encode as encode_chunk};
use graft::format::commit::{FrameEntry, Head};
use graft::format::frame::PageHash;
use graft::format::meta::Meta;
use graft::format::pin::Pin;
use graft::format::tombstone::{Of, Tombstone};
use graft::{ChainHash, CommitId, Epoch, Lsn, PageIdx, PageSet, PageSize, Seq, VolumeId};

const DOC: &str = include_str!("../../docs/formats.md");

/// A row of a table: offset and bytes where they are fixed, field.
type Row = (Option<usize>, Option<usize>, String);

/// The rows of the table under a heading, as text and parsed.
fn rows(heading: &str) -> Vec<(&'static str, Row)> {
    let (_, section) = DOC.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("{heading}"));
    let section = section.split("\n## ").next().unwrap();
    let table: Vec<&str> = section.lines().filter(|line| line.starts_with('|')).collect();
    assert!(table[0].contains("offset"), "{heading}");
    let parse = |line: &'static str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        (line, (cells[1].parse().ok(), cells[2].parse().ok(), cells[3].to_owned()))
    };
    table[2..].iter().map(|line| parse(line)).collect()
}

/// Compares each row that has an offset with what the code wrote there, and all rows with the source.
fn check(heading: &str, source: &str, written: &[u8], expected: &[(&str, Vec<u8>)]) {
    let mut end = 0;
    for (line, (offset, bytes, field)) in rows(heading) {
        assert!(source.contains(&format!("//! {line}")), "{heading}: the source has no row `{line}`");
        let (Some(offset), Some(bytes)) = (offset, bytes) else { continue };
        let known = expected.iter().find(|(name, value)| *name == field && value.len() == bytes);
        let (_, value) = known.unwrap_or_else(|| panic!("{heading}: nothing is known of `{field}`"));
        assert_eq!(value.len(), bytes, "{heading}: {field}");
        assert_eq!(&written[offset..offset + bytes], value, "{heading}: {field} at {offset}");
        assert_eq!(offset, end, "{heading}: `{field}` does not follow what is before it");
        end = offset + bytes;
    }
    assert!(end > 0 && end <= written.len(), "{heading}");
}

const VOLUME: VolumeId = VolumeId([0xa1; 16]);
const PARENT: VolumeId = VolumeId([0xb2; 16]);
const TIME: i64 = 1_795_316_645_678;

fn blake(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

#[test]
fn metadata() {
    let meta = Meta { page_size: PageSize::DEFAULT, parent: Some((PARENT, Lsn(77))) };
    let written = meta.encode(VOLUME);
    let expected = [
        ("magic", b"GFM1".to_vec()),
        ("page size", 4096u32.to_le_bytes().into()),
        ("parent", PARENT.0.into()),
        ("parent lsn", 77u64.to_le_bytes().into()),
        ("checksum", blake(&[&VOLUME.0, &written[..32]])[..12].into()),
    ];
    check("Metadata", include_str!("../src/format/meta.rs"), &written, &expected);
}

#[test]
fn a_commit() {
    let page = PageIdx::new(3).unwrap();
    let mut head = Head {
        volume: VOLUME,
        lsn: Lsn(5),
        id: CommitId([0xc3; 16]),
        parent: ChainHash([0xd4; 32]),
        hash: ChainHash::ZERO,
        time_ms: TIME,
        checkpoint: Lsn(4),
        pages: 9,
        set: (&PageSet::from_iter([page])).into(),
        hashes: [PageHash::of(page, b"x")].into_iter().collect(),
        frames: vec![FrameEntry { segment: 1, offset: 8, bytes: 7, pages: 1 }],
        segments: vec![15],
        payload: Bytes::from_static(b"payload"),
        encoded: Bytes::new(),
    };
    let written = head.encode();
    let set = head.set.bytes();
    let expected = [
        ("magic", b"GFC1".to_vec()),
        ("pages", 9u32.to_le_bytes().into()),
        ("lsn", 5u64.to_le_bytes().into()),
        ("volume", VOLUME.0.into()),
        ("id", [0xc3; 16].into()),
        ("parent", [0xd4; 32].into()),
        ("time", TIME.to_le_bytes().into()),
        ("checkpoint", 4u64.to_le_bytes().into()),
        ("set", (set.len() as u32).to_le_bytes().into()),
        ("frames", 1u32.to_le_bytes().into()),
        ("segments", 1u32.to_le_bytes().into()),
        ("payload", 7u32.to_le_bytes().into()),
        ("reserved", vec![0; 16]),
        ("hash", blake(&[&written[..128], &written[160..]]).into()),
    ];
    check("A commit", include_str!("../src/format/commit.rs"), &written, &expected);
    let mut rest = set.to_vec();
    rest.extend(head.hashes.bytes());
    rest.extend([1u32.to_le_bytes().to_vec(), 8u64.to_le_bytes().into()].concat());
    rest.extend([7u32.to_le_bytes(), 1u32.to_le_bytes()].concat());
    rest.extend(15u64.to_le_bytes());
    rest.extend(b"payload");
    assert_eq!(written[160..], rest);
}

#[test]
fn a_checkpoint() {
    let mut root = Root {
        volume: VOLUME,
        seq: Seq(6),
        lsn: Lsn(500),
        chain: ChainHash([0xd4; 32]),
        time_ms: TIME,
        pages: 300,
        page_size: PageSize::DEFAULT,
        lineage: Lineage::of(PARENT).fork(Lsn(77), VOLUME),
        history: vec![Past { seq: Seq(5), lsn: Lsn(400), time_ms: 12 }],
        chunks: Vec::new(),
        epoch: Epoch(3),
        hot: PageSet::from_ranges([7..=8]),
        state_bytes: 0,
        state_hash: [0; 16],
        hash: ChainHash::ZERO,
        encoded: Bytes::new(),
    };
    let written = assemble(&mut root, &[NewChunk::Fresh(1, Bytes::from_static(b"chunk"))], b"state");
    let hot = root.hot.encode();
    let end = 160 + 2 * 24 + 24 + 44 + hot.len();
    let expected = [
        ("magic", b"GFK1".to_vec()),
        ("pages", 300u32.to_le_bytes().into()),
        ("lsn", 500u64.to_le_bytes().into()),
        ("volume", VOLUME.0.into()),
        ("seq", 6u64.to_le_bytes().into()),
        ("time", TIME.to_le_bytes().into()),
        ("chain", [0xd4; 32].into()),
        ("page size", 4096u32.to_le_bytes().into()),
        ("volumes", 2u32.to_le_bytes().into()),
        ("history", 1u32.to_le_bytes().into()),
        ("chunks", 1u32.to_le_bytes().into()),
        ("state", 5u64.to_le_bytes().into()),
        ("state hash", blake(&[b"state"])[..16].into()),
        ("epoch", 3u32.to_le_bytes().into()),
        ("hot", (hot.len() as u32).to_le_bytes().into()),
        ("hash", blake(&[&written[..128], &written[160..end]]).into()),
    ];
    check("A checkpoint", include_str!("../src/format/checkpoint.rs"), &written, &expected);
    let mut rest = Vec::new();
    rest.extend(PARENT.0);
    rest.extend(77u64.to_le_bytes());
    rest.extend(VOLUME.0);
    rest.extend([u64::MAX, 5, 400, 12].map(u64::to_le_bytes).concat());
    rest.extend([1u32, 1].map(u32::to_le_bytes).concat());
    rest.extend([6, end as u64 + 5].map(u64::to_le_bytes).concat());
    rest.extend(5u32.to_le_bytes());
    rest.extend(&blake(&[&1u32.to_le_bytes(), b"chunk"])[..16]);
    rest.extend(&hot[..]);
    rest.extend(b"statechunk");
    assert_eq!(written[160..], rest);
}

#[test]
fn a_chunk() {
    let kind = ObjectKind::CompactedSegment(Epoch(6));
    let object = Object { volume: VOLUME, kind, id: CommitId([0xc3; 16]), part: 2 };
    let slot = |page: u32, slot| Slot {
        page: PageIdx::new(page).unwrap(),
        lsn: Lsn(400 + u64::from(page)),
        slot,
        hash: PageHash([page as u8; 16]),
    };
    let slots = vec![slot(257, 3), slot(266, 1)];
    let frame = FrameRef { key: object.key().into(), object, offset: 8, bytes: 7, count: 4, slots };
    let lineage = Lineage::of(PARENT).fork(Lsn(77), VOLUME);
    let stored = encode_chunk(1, &lineage, frame.slots.iter().map(|slot| (&frame, slot))).unwrap();
    let written = zstd::bulk::decompress(&stored, 1 << 20).unwrap();
    let mut present = vec![0; 32];
    (present[0], present[1]) = (0b1, 0b10);
    let expected = [
        ("objects", 1u16.to_le_bytes().to_vec()),
        ("frames", 1u16.to_le_bytes().into()),
        ("present", present),
    ];
    check("A chunk of the page table", include_str!("../src/format/chunk.rs"), &written, &expected);
    let mut rest = Vec::new();
    rest.extend(1u32.to_le_bytes());
    rest.push(2);
    rest.extend(6u64.to_le_bytes());
    rest.extend([0xc3; 16]);
    rest.extend(2u32.to_le_bytes());
    rest.extend([0u16, 4].map(u16::to_le_bytes).concat());
    rest.extend(8u64.to_le_bytes());
    rest.extend(7u32.to_le_bytes());
    rest.extend([0, 0, 3, 1]);
    rest.extend([657u64, 666].map(u64::to_le_bytes).concat());
    rest.extend([[1; 16], [10; 16]].concat());
    assert_eq!(written[36..], rest);
    assert_eq!(chunk::hash(1, &stored), blake(&[&1u32.to_le_bytes(), &stored])[..16]);
}

#[test]
fn a_tombstone() {
    let (id, hash) = (CommitId([0xc3; 16]), ChainHash([0xd4; 32]));
    let written = Tombstone { of: Of::Commit(Lsn(5)), id, hash }.encode(VOLUME);
    let expected = [
        ("magic", b"GFT1".to_vec()),
        ("kind", 1u32.to_le_bytes().into()),
        ("number", 5u64.to_le_bytes().into()),
        ("id", id.0.into()),
        ("hash", hash.0.into()),
        ("checksum", blake(&[&VOLUME.0, &written[..64]]).into()),
    ];
    check("A tombstone", include_str!("../src/format/tombstone.rs"), &written, &expected);
}

#[test]
fn a_pin() {
    let key = "volumes/a/forks/b";
    let written = Pin { lsn: Lsn(77), seq: Some(Seq(6)), until_ms: TIME }.encode(key);
    let expected = [
        ("magic", b"GFP1".to_vec()),
        ("reserved", vec![0; 4]),
        ("lsn", 77u64.to_le_bytes().into()),
        ("seq", 6u64.to_le_bytes().into()),
        ("until", TIME.to_le_bytes().into()),
        ("reserved", vec![0; 16]),
        ("checksum", blake(&[key.as_bytes(), &written[..48]]).into()),
    ];
    check("A pin", include_str!("../src/format/pin.rs"), &written, &expected);
    let newest = Pin { lsn: Lsn(77), seq: None, until_ms: Pin::FOR_EVER }.encode(key);
    assert_eq!(newest[16..32], [[0xff; 8], i64::MAX.to_le_bytes()].concat());
}

/// Every magic that the code has is on the page.
#[test]
fn every_format_is_described() {
    for magic in ["GFM1", "GFC1", "GFK1", "GFP1", "GFT1", "SP1", "SL1"] {
        assert!(DOC.contains(&format!("`{magic}`")), "{magic}");
    }
}
