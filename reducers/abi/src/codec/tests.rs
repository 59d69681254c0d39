use super::*;
use crate::{Call, Description, Entry, Failure, Param, Reducer, Rows, SqlError, Type, Value};

/// splitmix64; the seed of a failing case is in its message.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> usize {
        (self.next() % n) as usize
    }
    fn text(&mut self) -> String {
        let letters = ['a', 'é', '字', '😀', '\0', '%', '"', '\n'];
        (0..self.below(9)).map(|_| letters[self.below(8)]).collect()
    }
    fn value(&mut self) -> Value {
        match self.below(7) {
            0 => Value::Null,
            1 => Value::Integer(self.next() as i64),
            2 => Value::Real(self.next() as f64 / 3.0),
            3 => Value::Real([0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, 5e-324][self.below(5)]),
            4 => Value::Text(self.text()),
            5 => Value::Integer([i64::MIN, i64::MAX, 0, -1][self.below(4)]),
            _ => Value::Blob((0..self.below(40)).map(|b| b as u8).collect()),
        }
    }
    fn values(&mut self) -> Vec<Value> {
        (0..self.below(6)).map(|_| self.value()).collect()
    }
    fn error(&mut self) -> SqlError {
        SqlError { code: self.next() as i32, message: self.text() }
    }
    fn rows(&mut self) -> Rows {
        let columns: Vec<String> = (0..self.below(4)).map(|_| self.text()).collect();
        let count = if columns.is_empty() { 0 } else { self.below(5) };
        let rows = (0..count).map(|_| columns.iter().map(|_| self.value()).collect()).collect();
        Rows { columns, rows }
    }
    fn description(&mut self) -> Description {
        const TYPES: [Type; 6] =
            [Type::Text, Type::Integer, Type::Real, Type::Boolean, Type::Blob, Type::Json];
        let reducers = (0..self.below(4))
            .map(|_| Reducer {
                name: self.text(),
                doc: self.text(),
                params: (0..self.below(4))
                    .map(|_| Param {
                        name: self.text(),
                        ty: TYPES[self.below(6)],
                        optional: self.below(2) == 1,
                    })
                    .collect(),
            })
            .collect();
        Description { reducers, migrations: (0..self.below(4)).map(|_| self.next() as u32).collect() }
    }
}

/// Every message comes back as it was sent.
#[test]
fn messages_come_back_equal() {
    for seed in 0..2_000 {
        let mut rng = Rng(seed);
        let values = rng.values();
        assert_eq!(decode_values(&encode_values(&values)).unwrap(), values, "seed {seed}");

        let description = rng.description();
        assert_eq!(
            decode_description(&encode_description(&description)).unwrap(),
            description,
            "seed {seed}"
        );

        let (name, user) = (rng.text(), rng.text());
        let entry = match rng.below(2) {
            0 => Entry::Reducer { name: &name, args: &values },
            _ => Entry::Migration { version: rng.next() as u32 },
        };
        let call = Call { entry, user: &user, now_ms: rng.next() as i64, seed: rng.next() };
        assert_eq!(decode_call(&encode_call(&call)).unwrap().as_call(), call, "seed {seed}");

        for rows in [Ok(rng.rows()), Err(rng.error())] {
            assert_eq!(decode_rows(&encode_rows(&rows)).unwrap(), rows, "seed {seed}");
        }
        for changes in [Ok(rng.next()), Err(rng.error())] {
            assert_eq!(decode_changes(&encode_changes(&changes)).unwrap(), changes, "seed {seed}");
        }
        for outcome in [
            Ok(()),
            Err(Failure::Refused { message: rng.text() }),
            Err(Failure::Unknown { entry: rng.text() }),
        ] {
            assert_eq!(decode_outcome(&encode_outcome(&outcome)).unwrap(), outcome, "seed {seed}");
        }
    }
}

/// Decodes `bytes` as everything; answers which of the six accept it.
fn decode_as_all(bytes: &[u8]) -> [bool; 6] {
    [
        decode_values(bytes).is_ok(),
        decode_description(bytes).is_ok(),
        decode_call(bytes).is_ok(),
        decode_rows(bytes).is_ok(),
        decode_changes(bytes).is_ok(),
        decode_outcome(bytes).is_ok(),
    ]
}

/// Cut short, lengthened, flipped or made up: an error or a value, never a panic or a huge allocation.
#[test]
fn hostile_bytes_are_refused_quietly() {
    for seed in 0..3_000 {
        let mut rng = Rng(seed);
        let messages = [
            encode_values(&rng.values()),
            encode_description(&rng.description()),
            encode_call(&Call {
                entry: Entry::Reducer { name: &rng.text(), args: &rng.values() },
                user: "u",
                now_ms: 1,
                seed: 2,
            }),
            encode_rows(&Ok(rng.rows())),
            encode_changes(&Ok(3)),
            encode_outcome(&Err(Failure::Refused { message: rng.text() })),
        ];
        for (which, message) in messages.iter().enumerate() {
            assert!(decode_as_all(message)[which], "seed {seed}, message {which}");
            for cut in 0..message.len() {
                assert!(!decode_as_all(&message[..cut])[which], "seed {seed}, message {which} cut at {cut}");
            }
            let mut longer = message.clone();
            longer.push(0);
            assert!(!decode_as_all(&longer)[which], "seed {seed}, message {which} with a byte more");
            for _ in 0..8 {
                let mut flipped = message.clone();
                let at = rng.below(flipped.len() as u64);
                flipped[at] = rng.next() as u8;
                decode_as_all(&flipped);
            }
        }
        let noise: Vec<u8> = (0..rng.below(64)).map(|_| rng.next() as u8).collect();
        decode_as_all(&noise);
    }
}

/// Counts and lengths that promise more than the bytes hold are refused before memory is reserved.
#[test]
fn counts_are_checked_against_what_remains() {
    let huge = u32::MAX.to_le_bytes();
    assert!(matches!(decode_values(&huge), Err(DecodeError::TooMany { found: u32::MAX, .. })));
    assert!(matches!(decode_values(&[0xff, 0x7f, 0, 0]), Err(DecodeError::TooMany { .. })));
    assert!(matches!(decode_values(&[9, 0, 0, 0, 0]), Err(DecodeError::Truncated { offset: 0, .. })));

    let mut description = vec![ABI_VERSION];
    description.extend_from_slice(&huge);
    assert!(matches!(decode_description(&description), Err(DecodeError::Truncated { offset: 1, .. })));

    // No columns and four billion rows: nothing follows, so a naive loop would spin on empty rows.
    let mut rows = vec![0, 0, 0, 0, 0];
    rows.extend_from_slice(&huge);
    assert!(matches!(decode_rows(&rows), Err(DecodeError::TooMany { max: 0, .. })));

    let mut blob = vec![1, 0, 0, 0, 4];
    blob.extend_from_slice(&huge);
    assert!(matches!(decode_values(&blob), Err(DecodeError::Truncated { field: "blob", .. })));
}

#[test]
fn nan_becomes_null_both_ways() {
    let nan = f64::from_bits(0x7ff8_dead_beef_0001);
    assert_eq!(encode_values(&[Value::Real(nan)]), [1, 0, 0, 0, 0]);
    let mut bytes = vec![1, 0, 0, 0, 2];
    bytes.extend_from_slice(&nan.to_le_bytes());
    assert_eq!(decode_values(&bytes).unwrap(), [Value::Null]);
    assert_eq!(canonical(Value::Real(nan)), Value::Null);
    assert_eq!(canonical(Value::Real(-0.0)), Value::Real(-0.0));
}

#[test]
fn another_version_is_named() {
    let error = decode_call(&[2, 0]).unwrap_err();
    assert_eq!(error.to_string(), "version at byte 0 is 2, which ABI version 1 does not know");
    assert!(matches!(decode_description(&[0]), Err(DecodeError::Tag { field: "version", found: 0, .. })));
}
