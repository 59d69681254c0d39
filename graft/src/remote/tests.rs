use std::sync::Arc;

use futures::executor::block_on;

use super::*;

fn wrappers(inner: SharedRemote) -> [SharedRemote; 3] {
    let at_once: delayed::Sleep = Arc::new(|| Box::pin(std::future::ready(())));
    [Counting::new(inner.clone()), Faulty::new(inner.clone(), 1), Delayed::new(inner, at_once)]
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms() {
    let memory = Arc::new(MemoryRemote::new());
    conformance::check(memory.as_ref(), "").await;
    for (i, wrapped) in wrappers(memory).into_iter().enumerate() {
        conformance::check(wrapped.as_ref(), &format!("wrapped{i}/")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn object_store_conforms() {
    let store = Arc::new(object_store::memory::InMemory::new());
    for prefix in ["", "pre/fix", "/100%/"] {
        let remote = ObjectRemote::new(store.clone(), prefix, "memory-object-store:".into());
        // `InMemory` keeps all three in one map, so each works below a root of its own.
        conformance::check(&remote, &format!("root-{}/", prefix.len())).await;
    }
}

#[cfg(feature = "native")]
#[tokio::test(flavor = "multi_thread")]
async fn directory_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let directory = Arc::new(DirectoryRemote::open(folder.path()).unwrap());
    conformance::check(directory.as_ref(), "").await;
    for (i, wrapped) in wrappers(directory).into_iter().enumerate() {
        conformance::check(wrapped.as_ref(), &format!("wrapped{i}/")).await;
    }
}

#[cfg(feature = "native")]
#[test]
fn remotes_work_without_a_runtime() {
    let folder = tempfile::tempdir().unwrap();
    block_on(conformance::check(&DirectoryRemote::open(folder.path()).unwrap(), ""));
    block_on(conformance::check(&MemoryRemote::new(), ""));
}

#[test]
fn urls_open_what_they_name() {
    assert_eq!(open("memory:").unwrap().url(), "memory:");
    let (a, b) = (open("memory:").unwrap(), open("memory:").unwrap());
    block_on(a.create("k", Bytes::new())).unwrap();
    assert_eq!(block_on(b.list("", None, 10)).unwrap(), [], "every open is a new store");
}

#[cfg(feature = "native")]
#[test]
fn directories_open_by_url_and_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let spaced = folder.path().join("a b%s");
    let by_path = open(spaced.to_str().unwrap()).unwrap();
    assert!(!spaced.exists(), "opening makes nothing");
    block_on(by_path.create("x/y", Bytes::from_static(b"z"))).unwrap();
    let by_url = open(&by_path.url()).unwrap();
    assert_eq!(block_on(by_url.get("x/y")).unwrap(), "z");
    assert!(by_url.url().starts_with("file:///") && by_url.url().contains("a%20b%25s"), "{}", by_url.url());
}

#[cfg(feature = "native")]
#[test]
fn urls_that_name_nothing_say_what_to_write() {
    for (url, said) in [
        ("", "s3://BUCKET/PREFIX"),
        ("gopher://x", "s3://BUCKET/PREFIX"),
        ("memory:x", "nothing can follow"),
        ("file://host/dir", "file:///DIR"),
        ("file:///dir#1", "# as %23"),
        ("file:///dir?1", "? as %3F"),
        ("file:///dir\n1", "%0A"),
        ("file:dir", "file:///DIR"),
        ("s3://", "s3://BUCKET/PREFIX"),
        ("s3:///prefix", "BUCKET"),
        ("s3://bucket:99/x", "AWS_ENDPOINT_URL"),
        ("s3://key:hush@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("ftp://user:hush@host/x", "s3://BUCKET/PREFIX"),
    ] {
        let error = open(url).expect_err(url).to_string();
        assert!(error.contains(said), "{url}: {error}");
        assert!(!error.contains("hush"), "{error}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = open(file.path().to_str().unwrap()).expect_err("a file").to_string();
    assert!(error.contains("give a directory") && error.contains(file.path().to_str().unwrap()), "{error}");
}

/// 32 threads, so that the race is real on any executor.
#[test]
fn threads_racing_on_memory_have_one_winner() {
    let remote = MemoryRemote::new();
    for round in 0..50 {
        let key = format!("log/{round}");
        let won = std::thread::scope(|scope| {
            let race = |i: u8| {
                let (remote, key) = (&remote, &key);
                scope.spawn(move || block_on(remote.create(key, Bytes::from(vec![i]))).is_ok())
            };
            let racers: Vec<_> = (0..32).map(race).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(won, 1, "round {round}");
    }
}

#[test]
fn counting_counts_requests_and_bytes() {
    let counting = Counting::new(Arc::new(MemoryRemote::new()));
    block_on(async {
        counting.create("a/1", Bytes::from(vec![0; 100])).await.unwrap();
        counting.create("a/1", Bytes::from(vec![0; 30])).await.unwrap_err();
        counting.get("a/1").await.unwrap();
        counting.get("a/2").await.unwrap_err();
        counting.get_range("a/1", 90..200).await.unwrap();
        counting.list("a/", None, 10).await.unwrap();
        counting.delete("a/1").await.unwrap();
        counting.put("a/3", Bytes::from(vec![0; 7])).await.unwrap();
        let (_, tag) = counting.get_tagged("a/3").await.unwrap();
        counting.update("a/3", Bytes::from(vec![0; 5]), &tag).await.unwrap();
        counting.update("a/3", Bytes::from(vec![0; 10]), &tag).await.unwrap_err();
    });
    let expected = Counts {
        gets: 3,
        ranges: 1,
        creates: 2,
        puts: 1,
        updates: 2,
        lists: 1,
        deletes: 1,
        bytes_down: 117,
        bytes_up: 152,
    };
    assert_eq!(counting.snapshot(), expected);
    assert_eq!(expected.requests(), 11);
    let before = counting.snapshot();
    block_on(counting.list("", None, 10)).unwrap();
    assert_eq!(counting.snapshot() - before, Counts { lists: 1, ..Counts::default() });
    assert_eq!(counting.reset().lists, 2);
    assert_eq!(counting.snapshot(), Counts::default());
}
