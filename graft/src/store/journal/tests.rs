use xxhash_rust::xxh3::xxh3_128;

use super::super::memory::MemoryFile;
use super::*;

impl JournalFile for MemoryFile {
    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

fn batch() -> Batch {
    let mut batch = Batch::default();
    batch.put(Space::Local, &b"key"[..], &b"value"[..]);
    batch.remove(Space::State, &b"gone"[..]);
    batch
}

/// The bytes are those of the table in the module's head.
#[test]
fn the_layout_is_the_documented_one() {
    let (mut journal, found) = Journal::open(MemoryFile::default(), 4 * BLOCK, 0, 0x1122).unwrap();
    assert!(found.batches.is_empty());
    let mut first = [0; 16];
    for number in 1..=2_u64 {
        let mut record = Record::encode(&batch());
        assert_eq!((record.bytes(), record_bytes(&batch())), (BLOCK, BLOCK));
        journal.make_room(record.bytes()).unwrap();
        journal.append(&mut record).unwrap();
        journal.sync().unwrap();
        let mut block = vec![0; BLOCK as usize];
        journal.file.read(number * BLOCK, &mut block).unwrap();
        let body = b"\x02\0\0\0\x02\x03\0\x05\0\0\0keyvalue\x01\x04\0\xff\xff\xff\xffgone";
        let mut expected = [&b"GJR1"[..], &(body.len() as u32).to_le_bytes(), &number.to_le_bytes()].concat();
        expected.extend_from_slice(&(number - 1).to_le_bytes());
        expected.extend_from_slice(&0x1122_u64.to_le_bytes());
        expected.extend_from_slice(&first);
        expected.extend_from_slice(&xxh3_128(body).to_le_bytes());
        first = xxh3_128(&expected).to_le_bytes();
        expected.extend_from_slice(&first);
        expected.extend_from_slice(body);
        expected.resize(BLOCK as usize, 0);
        assert_eq!(block, expected, "record {number}");
    }
    journal.withdraw(2).unwrap();
    let mut block = vec![0; BLOCK as usize];
    journal.file.read(0, &mut block).unwrap();
    let mut expected = [&b"GJW1\0\0\0\0"[..], &2_u64.to_le_bytes(), &0x1122_u64.to_le_bytes()].concat();
    let sealed = xxh3_128(&expected);
    expected.extend_from_slice(&sealed.to_le_bytes());
    expected.resize(BLOCK as usize, 0);
    assert_eq!(block, expected);
    let (journal, found) = Journal::open(journal.file, 4 * BLOCK, 0, 2).unwrap();
    assert_eq!((journal.last(), found.batches.len()), (1, 1), "the second one is withdrawn");
}

/// Whatever the file holds, opening answers.
#[test]
fn any_bytes_open_or_are_refused() {
    let (mut journal, _) = Journal::open(MemoryFile::default(), 8 * BLOCK, 0, 1).unwrap();
    for _ in 0..6 {
        let mut record = Record::encode(&batch());
        journal.make_room(record.bytes()).unwrap();
        journal.append(&mut record).unwrap();
        journal.sync().unwrap();
    }
    let mut whole = vec![0; journal.file.len().unwrap() as usize];
    journal.file.read(0, &mut whole).unwrap();
    let open = |bytes: &[u8], applied| {
        let file = MemoryFile::default();
        file.write(0, bytes).unwrap();
        Journal::open(file, 8 * BLOCK, applied, 2)
    };
    let mut refused = 0;
    for at in 0..7 * BLOCK as usize {
        if at % BLOCK as usize >= 140 {
            continue;
        }
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        match open(&bytes, 0) {
            // The last record, or what no check covers.
            Ok((journal, found)) => {
                assert!(journal.last() >= 5 && found.batches.len() as u64 == journal.last())
            }
            Err(JournalError::Lost(number)) => {
                refused += 1;
                assert!((1..=5).contains(&number));
            }
            Err(error) => panic!("{at}: {error:?}"),
        }
    }
    assert!(refused > 5 * 80, "{refused}");
    for cut in (0..whole.len()).step_by(1000) {
        assert!(open(&whole[..cut], 6).is_ok(), "the table has it all");
    }
    assert!(
        matches!(open(&whole, 6), Ok((journal, found)) if found.batches.is_empty() && journal.last() == 6)
    );
    // A body that its checks cover and that makes no sense.
    let mut record = Record::encode(&batch());
    record.bytes[HEADER..HEADER + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let body = HEADER..HEADER + body_bytes(&batch());
    let hash = check(&record.bytes[body]);
    record.bytes[48..64].copy_from_slice(&hash);
    record.seal(1, 0, 1, &[0; 16]);
    let bytes = [&[0; BLOCK as usize], &record.bytes[..]].concat();
    assert!(matches!(open(&bytes, 0), Err(JournalError::Malformed(1))));
}
