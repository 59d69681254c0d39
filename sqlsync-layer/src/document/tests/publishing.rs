//! Branches that become volumes: what is in them, and that nothing is lost wherever it stops.

use std::time::Duration;

use bytes::Bytes;
use graft::fork::ForkError;
use graft::remote::Faulty;
use graft::store::{Batch, Durability, ReplicaStore, Space};
use graft::volume::{Change, push};

use super::*;
use crate::document::replica::publishing::{self, branch_name};
use crate::document::{BRANCH_NAMES, BranchError, Document, Options as DocumentOptions, Publication};
use crate::payload::{Op, Payload};

fn forking() -> Config {
    Config { policy: Policy::Fork, ..Config::default() }
}

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

impl World {
    /// A document of another volume of this store.
    fn other(&self, volume: VolumeId) -> (Replica, Vec<Payload>) {
        let options = Options::default();
        let opened = block_on(Volume::open(&*self.remote, volume, options.clone())).unwrap();
        let own = opened.heads.iter().filter(|head| head.volume == volume);
        let payloads = own.map(|head| Payload::decode(head).unwrap()).collect();
        let fetch = Arc::new(RemoteFetch::new(self.remote.clone()));
        let client = ClientId::new("reader").unwrap();
        let replica =
            Replica::open(opened, &options, fetch, Arc::new(TestModules), client, Config::default()).unwrap();
        (replica, payloads)
    }

    fn publish(&self, document: &mut Replica, number: u64, to: &str) -> Result<Publication, BranchError> {
        let child = VolumeId(self.id().0);
        let publication = document.begin_publication(number, &name(to), child, 5_000)?;
        let result = block_on(publishing::publish(&*self.remote, &publication));
        document.publication_ended(&publication, &result).unwrap();
        result.map(|_| publication)
    }

    /// What was committed to a volume in its own log.
    fn own_commits(&self, volume: VolumeId) -> usize {
        self.other(volume).1.len()
    }
}

/// Documents with `Policy::Fork` that conflict as they like. Each mutation that was taken ends either in
/// the volume's log or in exactly one published fork, and each fork is the volume at its LSN with the
/// branch's commits on it.
#[test]
fn every_mutation_is_in_the_volume_or_in_exactly_one_published_fork() {
    let (mut forks_made, mut won) = (0, 0);
    for seed in 0..30 {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = World::deployed();
        let mut documents: Vec<Replica> =
            ["a", "b", "c"].iter().map(|client| world.document(client, forking())).collect();
        // Each mutation writes a row of its own: its effect can be told from all others.
        let (mut made, mut found) = (0, std::collections::BTreeMap::<i64, usize>::new());
        let mut forks = Vec::new();
        for step in 0..40 {
            let which = rng.random_range(0..documents.len());
            let document = &mut documents[which];
            match rng.random_range(0..4) {
                0 | 1 => {
                    made += 1;
                    sql(document, &format!("insert into t values({made}, {step})")).unwrap();
                }
                2 => drop(world.push(document)),
                _ => {
                    world.pull(document);
                    let numbers: Vec<u64> = document.branches().keys().copied().collect();
                    for number in numbers {
                        let branch = document.branch(number).unwrap().clone();
                        let to = format!("t-{which}-{step}-{number}");
                        let publication = world.publish(document, number, &to).unwrap();
                        assert_eq!((publication.number, publication.name.as_str()), (number, to.as_str()));
                        assert!(document.branch(number).is_none(), "seed {seed}");
                        forks.push((publication.volume, branch));
                    }
                }
            }
        }
        for document in &mut documents {
            world.sync(document);
            let numbers: Vec<u64> = document.branches().keys().copied().collect();
            for number in numbers {
                let branch = document.branch(number).unwrap().clone();
                let to = format!("t-last-{}-{number}", forks.len());
                forks.push((world.publish(document, number, &to).unwrap().volume, branch));
            }
        }
        let (base, _) = world.other(VOLUME);
        for row in rows(&base, "select id from t") {
            let Value::Integer(id) = row[0] else { panic!("{row:?}") };
            *found.entry(id).or_default() += 1;
            won += 1;
        }
        for (fork, branch) in &forks {
            let (child, payloads) = world.other(*fork);
            dump(&child);
            // What it was made on, as the log says.
            let at = graft::time::At::Lsn(graft::Lsn(branch.base));
            let before = block_on(Volume::open_at(&*world.remote, VOLUME, at, 1 << 20)).unwrap();
            let fetch = Arc::new(RemoteFetch::new(world.remote.clone()));
            let past = crate::vfs::Database::new(Arc::new(before.volume), fetch);
            let (past, _) = past.connect_read_only().unwrap();
            let count: i64 = past.query_row("select count(*) from t", [], |row| row.get(0)).unwrap();
            let had: std::collections::BTreeSet<i64> = past
                .prepare("select id from t")
                .unwrap()
                .query_map([], |row| row.get(0))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            let added = branch.commits().len() as i64;
            assert_eq!(number(&child, "select count(*) from t"), count + added, "seed {seed}");
            // Its log has the mutations themselves, each with its outcome.
            let records: Vec<_> = payloads.iter().flat_map(|payload| &payload.records).collect();
            assert_eq!(records.len() as i64, added, "seed {seed}");
            assert!(records.iter().all(|record| matches!(record.op, Op::Mutation(_))), "seed {seed}");
            for row in rows(&child, "select id from t") {
                let Value::Integer(id) = row[0] else { panic!("{row:?}") };
                if !had.contains(&id) {
                    *found.entry(id).or_default() += 1;
                }
            }
        }
        let expected: Vec<(i64, usize)> = (1..=made).map(|id| (id, 1)).collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected, "seed {seed}");
        forks_made += forks.len();
    }
    println!("{forks_made} forks, {won} mutations won");
    assert!(forks_made > 30 && won > 100, "{forks_made}, {won}");
}

/// A document with a branch of two commits, the store it is kept in, and what the branch's fork must hold.
fn conflicted(world: &World) -> (SharedStore, Vec<String>) {
    let store: SharedStore = Arc::new(MemoryStore::default());
    let mut a = world.open("a", forking(), Some(store.clone())).unwrap();
    let mut b = world.document("b", Config::default());
    bump(&mut a, 1);
    a.execute("insert into t values(1, 'plain')").unwrap();
    let wanted = dump(&a);
    bump(&mut b, 1);
    world.sync(&mut b);
    world.sync(&mut a);
    assert_eq!((a.branches().len(), a.status().ahead), (1, 0));
    (store, wanted)
}

/// The store fails at its nth request, or does what it was asked and does not answer; the process ends
/// there. Opened again from its directory, the document still has the branch, and publishing it again
/// makes the one fork, with everything once.
#[test]
fn publishing_that_stops_anywhere_leaves_the_branch_or_the_fork_and_a_repeat_ends_it() {
    let mut stops = 0;
    for stop in 0i64.. {
        let world = World::deployed();
        let (store, wanted) = conflicted(&world);

        let mut a = world.open("a", forking(), Some(store.clone())).unwrap();
        let child = VolumeId([77; 16]);
        let publication = a.begin_publication(1, &name("kept"), child, 5_000).unwrap();
        let cut = Cut { inner: world.remote.clone(), left: AtomicI64::new(stop / 2), done: stop % 2 == 1 };
        let stopped = block_on(publishing::publish(&cut, &publication));
        // The process ends before it says how it went, also where it went well.
        drop(a);
        let mut a = world.open("a", forking(), Some(store.clone())).unwrap();
        assert_eq!(a.branches().len(), 1, "stop {stop}");
        // Asked under another name, it goes on under the one that it began with.
        let again = world.publish(&mut a, 1, "other").unwrap();
        assert_eq!((again.volume, again.name.as_str()), (child, "kept"), "stop {stop}");
        drop(a);
        let mut a = world.open("a", forking(), Some(store)).unwrap();
        assert!(a.branches().is_empty());
        assert!(matches!(world.publish(&mut a, 1, "kept"), Err(BranchError::NoSuchBranch { number: 1 })));
        assert_eq!(block_on(catalog::resolve(&*world.remote, &name("kept"))).unwrap(), child);
        let names = block_on(catalog::list(&*world.remote)).unwrap();
        assert_eq!(names, [name("kept"), name("t")], "stop {stop}");
        let (fork, _) = world.other(child);
        assert_eq!(dump(&fork), wanted, "stop {stop}");
        assert_eq!(world.own_commits(child), 1, "stop {stop}");
        if stopped.is_ok() {
            break;
        }
        stops += 1;
    }
    println!("stopped at {stops} requests");
    assert!(stops >= 10, "{stops}");
}

/// A copy of what a store holds.
fn copied(store: &dyn ReplicaStore) -> SharedStore {
    let copy = MemoryStore::default();
    let mut batch = Batch::default();
    for space in Space::ALL {
        for (key, value) in store.scan(space, b"").unwrap() {
            batch.put(space, key, value);
        }
    }
    copy.write(batch, Durability::Sync).unwrap();
    Arc::new(copy)
}

/// A copy of the objects in a store.
fn copied_remote(remote: &MemoryRemote) -> Arc<MemoryRemote> {
    let copy = MemoryRemote::new();
    for (key, bytes) in remote.objects() {
        block_on(copy.put(&key, bytes)).unwrap();
    }
    Arc::new(copy)
}

/// A branch with more mutations than one commit takes, and more pages than ride inside one, becomes a
/// fork of two commits with segments. Wherever that stops, also between the two, a repeat ends it, with
/// the same commits and no object twice.
#[test]
fn a_branch_of_many_megabytes_becomes_several_commits_wherever_it_stops() {
    /// Text of a mutation: five of them are more than the 16 MiB of arguments that a commit takes.
    const TEXT_BYTES: usize = 4_500_000;
    const MUTATIONS: i64 = 5;
    let first = Arc::new(MemoryRemote::new());
    let first_store: SharedStore = Arc::new(MemoryStore::default());
    let mut wanted = Vec::new();
    {
        let world = World::with(first.clone());
        let mut deployer = world.document("deployer", Config::default());
        deployer.deploy(MODULE, 1, 1).unwrap();
        world.sync(&mut deployer);
        let mut a = world.open("a", forking(), Some(first_store.clone())).unwrap();
        let mut b = world.document("b", Config::default());
        for id in 1..=MUTATIONS {
            let mut bytes = vec![0; TEXT_BYTES / 2];
            StdRng::seed_from_u64(id as u64).fill(&mut bytes[..]);
            let text = hex::encode(&bytes);
            let both =
                format!("update counter set n = n + 1 where id = 1; insert into t values({id}, '{text}')");
            sql(&mut a, &both).unwrap();
            wanted.push((id, text));
        }
        bump(&mut b, 1);
        world.sync(&mut b);
        world.sync(&mut a);
        assert_eq!((a.branches().len(), a.status().ahead), (1, 0));
        assert_eq!(a.branch(1).unwrap().commits().len() as i64, MUTATIONS);
    }
    let child = VolumeId([77; 16]);
    // How many requests it takes; those before the first segment are stopped at by the test above.
    let requests = {
        let world = World { remote: copied_remote(&first), ids: std::cell::Cell::new(1 << 32) };
        let mut a = world.open("a", forking(), Some(copied(&*first_store))).unwrap();
        let publication = a.begin_publication(1, &name("kept"), child, 5_000).unwrap();
        let cut = Cut { inner: world.remote.clone(), left: AtomicI64::new(1000), done: false };
        block_on(publishing::publish(&cut, &publication)).unwrap();
        1000 - cut.left.into_inner()
    };
    let (mut between, mut objects) = (0, None);
    for stop in requests - 5..=requests {
        let remote = copied_remote(&first);
        let world = World { remote: remote.clone(), ids: std::cell::Cell::new(1 << 32) };
        let store = copied(&*first_store);
        let mut a = world.open("a", forking(), Some(store.clone())).unwrap();
        let publication = a.begin_publication(1, &name("kept"), child, 5_000).unwrap();
        let cut = Cut { inner: world.remote.clone(), left: AtomicI64::new(stop), done: stop % 2 == 1 };
        let stopped = block_on(publishing::publish(&cut, &publication));
        drop(a);
        let log = |lsn| remote.objects().iter().any(|(key, _)| *key == graft::key::log(child, lsn));
        let base = publication_base(&world, child);
        if let Some(base) = base {
            between += usize::from(log(base.next()) && !log(base.next().next()));
        }
        let mut a = world.open("a", forking(), Some(store.clone())).unwrap();
        assert_eq!(world.publish(&mut a, 1, "kept").unwrap().volume, child, "stop {stop}");
        assert!(a.branches().is_empty());
        let (fork, payloads) = world.other(child);
        let counts: Vec<usize> = payloads.iter().map(|payload| payload.records.len()).collect();
        assert_eq!(counts, [4, 1], "stop {stop}");
        assert_eq!(number(&fork, "select n from counter where id = 1"), MUTATIONS);
        // Longer than what a query may answer.
        let (connection, _) = fork.database().connect().unwrap();
        for (id, text) in &wanted {
            let row: String =
                connection.query_row("select v from t where id = ?1", [id], |row| row.get(0)).unwrap();
            assert!(row == *text, "stop {stop}, row {id}");
        }
        // The same objects, byte for byte, whatever stopped.
        let of_child = |(key, _): &(String, Bytes)| key.contains(&child.to_string());
        let made: Vec<(String, Bytes)> = remote.objects().into_iter().filter(of_child).collect();
        let segments = made.iter().filter(|(key, _)| key.contains("/segments/")).count();
        assert!(segments >= 2, "{segments}");
        assert!(*objects.get_or_insert_with(|| made.clone()) == made, "stop {stop}: other objects");
        assert_eq!(stopped.is_ok(), stop == requests, "stop {stop}");
    }
    println!("stopped at the last of {requests} requests, {between} times between the commits");
    assert!(between >= 2, "{between}");
}

/// Where the fork `child` begins, once it is there.
fn publication_base(world: &World, child: VolumeId) -> Option<graft::Lsn> {
    let meta = block_on(catalog::meta(&*world.remote, child)).ok()?;
    meta.parent.map(|(_, lsn)| lsn)
}

/// A name that another volume has, and a fork that somebody else wrote to first: nothing of theirs is
/// touched, the branch stays, and another name makes another fork.
#[test]
fn a_taken_name_and_a_fork_that_others_wrote_to_leave_the_branch() {
    let world = World::deployed();
    let (store, wanted) = conflicted(&world);
    let mut a = world.open("a", forking(), Some(store.clone())).unwrap();
    let taken = world.publish(&mut a, 1, "t").unwrap_err();
    assert!(matches!(&taken, BranchError::NameTaken { found: VOLUME, .. }), "{taken}");
    assert_eq!(a.branches().len(), 1);

    // The fork is made, and its maker stops; another writer finds it and commits.
    let child = VolumeId([77; 16]);
    let publication = a.begin_publication(1, &name("fork"), child, 5_000).unwrap();
    let at = graft::time::At::Lsn(graft::Lsn(a.branch(1).unwrap().base));
    block_on(graft::fork::create(&*world.remote, VOLUME, at, child, &name("fork"))).unwrap();
    let theirs = block_on(Volume::open(&*world.remote, child, Options::default())).unwrap().volume;
    let tip = theirs.tip();
    theirs.commit(&tip, Change { pages: tip.pages(), ..Change::default() }).unwrap();
    block_on(push(&*world.remote, &theirs, Payload::of_locals, || world.id(), 6_000)).unwrap();
    let result = block_on(publishing::publish(&*world.remote, &publication));
    assert!(matches!(result, Err(BranchError::Overtaken { .. })), "{result:?}");
    a.publication_ended(&publication, &result).unwrap();
    drop(a);
    let mut a = world.open("a", forking(), Some(store)).unwrap();
    let made = world.publish(&mut a, 1, "other").unwrap();
    assert_ne!(made.volume, child);
    assert_eq!(dump(&world.other(made.volume).0), wanted);
    let told = a.take_events();
    let lsn = graft::Lsn(2);
    let event = Event::Published { branch: 1, to: name("other"), volume: made.volume, lsn };
    assert_eq!(told, [event]);
}

/// Two writers begin a volume that has no commit yet: the loser's work is a fork of its emptiness.
#[test]
fn a_branch_of_an_empty_volume_can_be_published() {
    let world = World::new();
    let (mut a, mut b) = (world.document("a", forking()), world.document("b", Config::default()));
    a.execute("create table mine(x); insert into mine values(1)").unwrap();
    b.execute("create table theirs(x)").unwrap();
    world.sync(&mut b);
    world.sync(&mut a);
    let made = world.publish(&mut a, 1, "mine").unwrap();
    let (fork, _) = world.other(made.volume);
    assert_eq!(number(&fork, "select x from mine"), 1);
    assert_eq!(number(&a, "select count(*) from theirs"), 0);
    assert!(fork.query("select * from theirs", &Params::default()).is_err());
}

#[test]
fn a_volume_that_is_gone_keeps_the_branch_here() {
    let world = World::deployed();
    let (store, _) = conflicted(&world);
    let mut a = world.open("a", forking(), Some(store)).unwrap();
    block_on(catalog::remove(&*world.remote, &name("t"), 1)).unwrap();
    let error = world.publish(&mut a, 1, "late").unwrap_err();
    assert!(
        matches!(
            error,
            BranchError::Fork(ForkError::At(_) | ForkError::Removed { .. } | ForkError::Catalog(_))
        ),
        "{error:?}"
    );
    assert_eq!(a.branch(1).unwrap().commits().len(), 2);
}

#[test]
fn names_of_branches_keep_the_rule_for_names() {
    let child = VolumeId([0xab; 16]);
    assert_eq!(branch_name(BRANCH_NAMES, &name("todo"), child).unwrap().as_str(), "todo-branch-abababab");
    let long = branch_name(BRANCH_NAMES, &name(&"x".repeat(100)), child).unwrap();
    assert_eq!((long.as_str().len(), long.as_str().ends_with("-branch-abababab")), (100, true));
    assert!(branch_name("{volume}/{id}", &name("todo"), child).is_err());
}

/// With a pattern for names, a document in the background makes volumes of its branches; while the store
/// is out of reach they wait here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_publishes_its_branches_by_itself_when_it_can() {
    let faulty = Faulty::new(Arc::new(MemoryRemote::new()), 1);
    let remote: SharedRemote = faulty.clone();
    let shared = remote.clone();
    let store: SharedStore = Arc::new(MemoryStore::default());
    let kept = store.clone();
    tokio::task::spawn_blocking(move || {
        let world = World::with(shared);
        let mut first = world.document("deployer", Config::default());
        first.deploy(MODULE, 1, 1).unwrap();
        world.sync(&mut first);
        let mut a = world.open("a", forking(), Some(kept)).unwrap();
        let mut b = world.document("b", Config::default());
        bump(&mut a, 1);
        bump(&mut b, 1);
        world.sync(&mut b);
    })
    .await
    .unwrap();
    let options = DocumentOptions {
        policy: Policy::Fork,
        branch_names: Some(BRANCH_NAMES.into()),
        poll: Duration::from_millis(5),
        background: false,
        ..DocumentOptions::default()
    };
    // Once by name, so that it opens offline.
    drop(
        Document::open(
            remote.clone(),
            &name("t"),
            Some(store.clone()),
            Arc::new(TestModules),
            options.clone(),
        )
        .await
        .unwrap(),
    );
    faulty.set_unreachable(true);
    let options = DocumentOptions { background: true, ..options };
    let a = Document::open(remote.clone(), &name("t"), Some(store), Arc::new(TestModules), options)
        .await
        .unwrap();
    let mut events = a.events();
    let mut status = a.status();
    status.wait_for(|status| status.error.is_some()).await.unwrap();
    assert!(catalog::list(&*remote).await.is_err());
    faulty.set_unreachable(false);
    let wait = async {
        loop {
            match events.recv().await.unwrap() {
                Event::Published { branch: 1, to, volume, .. } => return (to, volume),
                other => assert!(matches!(other, Event::Forked { to: 1, .. }), "{other:?}"),
            }
        }
    };
    let (to, volume) = tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
    assert!(to.as_str().starts_with("t-branch-"), "{to}");
    assert_eq!(catalog::resolve(&*remote, &to).await.unwrap(), volume);
    assert_eq!(a.with(|replica| replica.branches().len()).await, 0);
    a.mutate("bump", json!({"id": 2})).await.unwrap();
    a.sync().await.unwrap();
    let sum = a.query("select sum(n) from counter", Params::default()).await.unwrap();
    assert_eq!(sum.rows, [[Value::Integer(2)]]);
}
