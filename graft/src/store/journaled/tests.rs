use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::super::{SharedStore, conformance};
use super::simulated::{Later, Machine, On};
use super::*;

/// Sixteen blocks: a record of three goes to the table alone.
const HALF: u64 = 16 * 4096;

type Store = JournaledStore<On, On>;

fn open(machine: &On, background: &Later, salt: u64) -> Result<Store, StoreError> {
    let background = Box::new(background.clone());
    JournaledStore::open("simulated".into(), machine.clone(), HALF, machine.clone(), background, salt)
}

#[test]
fn journal_and_table_conform() {
    let mut machines = BTreeMap::new();
    let mut salt = 0;
    let mut open = |name: &str| -> Result<SharedStore, StoreError> {
        let machine =
            machines.entry(name.to_owned()).or_insert_with(|| On(Arc::new(Mutex::new(Machine::new(1)))));
        salt += 1;
        let background = Box::<Threads>::default();
        Ok(Arc::new(JournaledStore::open(
            name.into(),
            machine.clone(),
            HALF,
            machine.clone(),
            background,
            salt,
        )?))
    };
    conformance::check(&mut open);
    conformance::check_reopen(&mut open);
}

type Rows = BTreeMap<(Space, Vec<u8>), Bytes>;

/// What was written, and what must be there.
struct Model {
    /// The state after each batch, in order; the first is the empty one.
    states: Vec<Rows>,
    /// Of these, the last that must survive a power cut.
    durable: usize,
    /// A batch of unknown outcome, to come after them.
    doubtful: Option<Rows>,
    batches: u64,
}

impl Model {
    fn last(&self) -> &Rows {
        self.states.last().expect("the empty one at least")
    }

    /// Checks what is there after reopening, and goes on from it.
    fn check_reopened(&mut self, found: Rows, power_was_lost: bool, context: &str) {
        let must = if power_was_lost { self.durable } else { self.states.len() - 1 };
        self.states.extend(self.doubtful.take());
        let at = (must..self.states.len()).rev().find(|at| self.states[*at] == found);
        let at = at.unwrap_or_else(|| {
            let number = |rows: &Rows| rows.get(&(Space::State, b"number".to_vec())).map(|found| found[0]);
            panic!(
                "{context}: what is there is no state from {must} to {}: batch {:?}, for {:?}",
                self.states.len() - 1,
                number(&found),
                self.states.iter().map(number).collect::<Vec<_>>()
            )
        });
        self.states.truncate(at + 1);
        if power_was_lost {
            // It was read from the disk.
            self.durable = at;
        }
    }
}

fn random_batch(random: &mut StdRng, model: &mut Model) -> (Batch, Rows) {
    let mut rows = model.last().clone();
    let mut batch = Batch::default();
    model.batches += 1;
    let mut put = |space, key: Vec<u8>, value: Option<Vec<u8>>| {
        let value = value.map(Bytes::from);
        match value.clone() {
            Some(value) => drop(rows.insert((space, key.clone()), value)),
            None => drop(rows.remove(&(space, key.clone()))),
        }
        batch.changes.push((space, key.into(), value));
    };
    put(Space::State, b"number".to_vec(), Some(model.batches.to_le_bytes().to_vec()));
    for _ in 0..random.random_range(0..6) {
        let space = Space::ALL[random.random_range(0..3)];
        let key = vec![random.random_range(0..12_u8)];
        let value = random.random_ratio(2, 3).then(|| {
            let len = if random.random_ratio(1, 12) { 12_000 } else { 2_500 };
            vec![random.random(); random.random_range(0..len)]
        });
        put(space, key, value);
    }
    (batch, rows)
}

fn dump(store: &Store) -> Rows {
    let mut rows = Rows::new();
    for space in Space::ALL {
        for (key, value) in store.scan(space, b"").expect("scan") {
            rows.insert((space, key.to_vec()), value);
        }
    }
    rows
}

/// What a run came across, so that a test can say that it was worth running.
#[derive(Debug, Default)]
struct Seen {
    power_cuts: u32,
    kills: u32,
    unknown: u32,
    refused: u32,
    lost: usize,
    failures: u32,
    torn: u32,
}

/// Writes, checkpoints, kills, power cuts and failures in random order, beside a model.
fn run(seed: u64, failures: u32, steps: u32, seen: &mut Seen) {
    let mut random = StdRng::seed_from_u64(seed);
    let machine = On(Arc::new(Mutex::new(Machine::new(seed))));
    let background = Later::default();
    let mut model = Model { states: vec![Rows::new()], durable: 0, doubtful: None, batches: 0 };
    let mut store = open(&machine, &background, 0).expect("empty");
    // Some runs are nearly all buffered, some nearly all durable.
    let sync = random.random_range(0..100);
    for step in 0..steps {
        let context = format!("seed {seed}, failures {failures}, step {step}");
        machine.0.lock().failures = failures;
        match random.random_range(0..40) {
            0..33 => {
                let (batch, rows) = random_batch(&mut random, &mut model);
                let durability =
                    if random.random_range(0..100) < sync { Durability::Sync } else { Durability::Buffered };
                match store.write(batch, durability) {
                    Ok(()) => {
                        model.states.push(rows);
                        if durability == Durability::Sync {
                            model.durable = model.states.len() - 1;
                        }
                    }
                    Err(StoreError::Unknown { .. }) => {
                        seen.unknown += 1;
                        model.doubtful = Some(rows);
                    }
                    Err(StoreError::Failed { .. } | StoreError::Stopped { .. }) => seen.refused += 1,
                    Err(error) => panic!("{context}: {error}"),
                }
                machine.0.lock().failures = 0;
                if random.random_ratio(1, 4) {
                    // A batch of unknown outcome may be seen already, or not.
                    let found = dump(&store);
                    assert!(
                        found == *model.last() || Some(&found) == model.doubtful.as_ref(),
                        "{context}: it reads like its model"
                    );
                }
            }
            33 => {
                if store.write(Batch::default(), Durability::Sync).is_ok() {
                    model.durable = model.states.len() - 1;
                }
            }
            34..37 => background.finish(),
            what => {
                let power = what == 37;
                if random.random_ratio(1, 2) {
                    background.forget();
                }
                machine.0.lock().failures = 0;
                drop(store);
                machine.0.lock().failures = failures;
                let mut lost = power;
                loop {
                    if power || (lost && random.random_ratio(1, 2)) {
                        seen.power_cuts += 1;
                        machine.0.lock().lose_power();
                        lost = true;
                    } else {
                        seen.kills += 1;
                        machine.0.lock().restart();
                    }
                    match open(&machine, &background, random.random()) {
                        Ok(opened) => {
                            store = opened;
                            break;
                        }
                        Err(StoreError::Failed { .. }) if failures > 0 => {
                            background.forget();
                            machine.0.lock().failures *= 2;
                        }
                        Err(error) => panic!("{context}: {error}"),
                    }
                }
                machine.0.lock().failures = 0;
                let before = model.states.len();
                model.check_reopened(dump(&store), lost, &context);
                seen.lost += before.saturating_sub(model.states.len());
            }
        }
    }
    let machine = machine.0.lock();
    (seen.failures, seen.torn) = (seen.failures + machine.failed, seen.torn + machine.cuts);
}

/// A power cut leaves what was acknowledged as durable and a beginning of what came after; a kill
/// leaves all that was acknowledged. Batches are whole.
#[test]
fn any_history_of_crashes_keeps_what_it_acknowledged() {
    let mut seen = Seen::default();
    for seed in 0..800 {
        run(seed, 0, 120, &mut seen);
    }
    assert!(seen.power_cuts > 500 && seen.kills > 500 && seen.lost > 500 && seen.torn > 40, "{seen:?}");
    assert_eq!((seen.unknown, seen.refused), (0, 0), "nothing failed: {seen:?}");
}

/// The same where files and the table fail too: a batch that was answered with `Failed` is never there.
#[test]
fn any_history_of_failures_and_crashes_keeps_its_word() {
    let mut seen = Seen::default();
    for seed in 10_000..10_600 {
        run(seed, 12, 120, &mut seen);
        run(seed, 60, 120, &mut seen);
    }
    assert!(seen.unknown > 100 && seen.refused > 500 && seen.failures > 500, "{seen:?}");
}

fn put(store: &Store, key: u8, durability: Durability) {
    let mut batch = Batch::default();
    batch.put(Space::State, vec![key], vec![key; 100]);
    store.write(batch, durability).expect("write");
}

/// What was synced and is not there any more is said, not passed over; only at the very end damage
/// looks like a write that the power cut off.
#[test]
fn damage_to_what_was_synced_is_an_error() {
    for (damaged, records, lost) in [(0, 3, true), (1, 3, true), (2, 3, false), (0, 1, false)] {
        let machine = On(Arc::new(Mutex::new(Machine::new(1))));
        let background = Later::default();
        let store = open(&machine, &background, 1).expect("empty");
        (0..records).for_each(|key| put(&store, key, Durability::Sync));
        drop(store);
        // In the body of that record: each has a block of its own.
        machine.0.lock().flip(4096 + damaged * 4096 + 120);
        match open(&machine, &background, 2) {
            Ok(store) => {
                assert!(!lost, "record {damaged} of {records}");
                assert_eq!(dump(&store).len(), damaged, "what is before it is there");
            }
            Err(error) => {
                assert!(lost, "{error}");
                let said = format!("batch {} was on disk", damaged + 1);
                assert!(
                    matches!(&error, StoreError::Damaged { message, .. } if message.contains(&said)),
                    "{error}"
                );
            }
        }
    }
}

/// What a push removes in time never comes to the table.
#[test]
fn what_is_removed_again_stays_out_of_the_table() {
    let machine = On(Arc::new(Mutex::new(Machine::new(1))));
    let background = Later::default();
    let store = open(&machine, &background, 1).expect("empty");
    for key in 0..40 {
        put(&store, key, Durability::Sync);
        let mut batch = Batch::default();
        batch.remove(Space::State, vec![key]);
        store.write(batch, Durability::Buffered).expect("write");
    }
    background.finish();
    let machine = machine.0.lock();
    let (number, rows) = machine.last_version();
    assert!(*number >= 40, "the journal went round: {number}");
    assert!(rows.len() <= 1, "{rows:?}");
    assert_eq!(machine.file().len(), 4096 + 2 * HALF as usize, "and is no longer than it may be");
}

/// A store that stopped goes on reading, says what to do, and takes writes when it is opened again.
#[test]
fn a_failed_sync_stops_writing_until_the_next_opening() {
    let machine = On(Arc::new(Mutex::new(Machine::new(1))));
    let background = Later::default();
    let store = open(&machine, &background, 1).expect("empty");
    put(&store, 1, Durability::Sync);
    machine.0.lock().fail_next_sync = true;
    let mut batch = Batch::default();
    batch.put(Space::State, vec![2], vec![2]);
    let error = store.write(batch.clone(), Durability::Sync).expect_err("its sync fails");
    assert!(matches!(&error, StoreError::Failed { .. }), "{error}");
    let error = store.write(batch.clone(), Durability::Buffered).expect_err("stopped");
    assert!(
        matches!(&error, StoreError::Stopped { .. })
            && error.to_string().contains("open the directory again")
    );
    assert_eq!(dump(&store).len(), 1);
    drop(store);
    let store = open(&machine, &background, 2).expect("open");
    assert_eq!(dump(&store).len(), 1, "the refused batch is not there");
    store.write(batch, Durability::Sync).expect("write");
    drop(store);
    machine.0.lock().lose_power();
    assert_eq!(dump(&open(&machine, &background, 3).expect("open")).len(), 2);
}
