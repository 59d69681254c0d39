//! Objects over HTTP: the whole conformance suite through a coordinator, what is cached, what is
//! refused, and SQL on a volume whose reader knows nothing but the coordinator's address.

mod common;

use std::sync::Arc;

use common::*;
use coordinator::Running;
use graft::fetch::RemoteFetch;
use graft::format::meta::Meta;
use graft::remote::http::errors;
use graft::remote::{
    Counting, DirectoryRemote, Fault, Faulty, HttpRemote, MemoryRemote, Remote, RemoteError, Request,
    SharedRemote, Tag, conformance,
};
use graft::volume::{Options, Volume};
use graft::{PageSize, VolumeName, catalog};
use sqlsync_layer::vfs::Database;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const DOC: &str = include_str!("../../docs/protocol.md");
/// A key that is served.
const KEY: &str = "volumes/0123456789abcdef0123456789abcdef/segments/a";
const ROOT: &str = "volumes/0123456789abcdef0123456789abcdef/segments/";

async fn writable(store: SharedRemote) -> (Running, HttpRemote) {
    let running = start_with(store, |config| config.remote_writes = true).await;
    let remote = HttpRemote::open(&running.url()).unwrap();
    (running, remote)
}

/// One raw request: its status, its headers in lower case, and the body.
async fn raw(running: &Running, request: &str) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(running.addr()).await.unwrap();
    let (first, rest) = request.split_once("\r\n").unwrap_or((request, ""));
    let rest = if rest.is_empty() { String::new() } else { format!("{rest}\r\n") };
    let text = format!("{first} HTTP/1.1\r\nhost: {}\r\n{rest}connection: close\r\n\r\n", running.addr());
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, answer[end + 4..].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinators_objects_conform() {
    let folder = tempfile::tempdir().unwrap();
    let directory = DirectoryRemote::open(folder.path()).unwrap();
    for store in [memory(), Arc::new(directory) as SharedRemote] {
        let (running, remote) = writable(store).await;
        conformance::check(&remote, ROOT).await;
        running.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_go_on_after_a_page() {
    let memory = Arc::new(MemoryRemote::new());
    let (running, remote) = writable(memory.clone()).await;
    memory.set_now_ms(1_795_316_645_678);
    for i in 0..2_345 {
        memory.create(&format!("{ROOT}{i:05}"), "x".into()).await.unwrap();
    }
    let counting = Counting::new(Arc::new(remote));
    let rows = counting.list(ROOT, None, 5_000).await.unwrap();
    assert_eq!(rows, memory.list(ROOT, None, 5_000).await.unwrap(), "times and sizes, too");
    assert_eq!(rows[0].modified_ms, 1_795_316_645_678);
    assert_eq!(counting.list(ROOT, None, 2_000).await.unwrap().len(), 2_000);
    running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_flag_nothing_is_written() {
    let memory = Arc::new(MemoryRemote::new());
    let running = start(memory.clone()).await;
    memory.create(KEY, "here".into()).await.unwrap();
    let before = memory.objects();
    let remote = graft::remote::open(&running.url()).unwrap();
    assert_eq!(remote.url(), running.url());
    let new = format!("{ROOT}new");
    let tag = memory.get_tagged(KEY).await.unwrap().1;
    for refused in [
        remote.create(&new, "x".into()).await.unwrap_err(),
        remote.put(KEY, "x".into()).await.unwrap_err(),
        remote.update(KEY, "x".into(), &tag).await.unwrap_err(),
        remote.delete(KEY).await.unwrap_err(),
    ] {
        assert!(matches!(refused, RemoteError::Refused { .. }), "{refused:?}");
        assert!(refused.to_string().contains("--allow-remote-writes"), "{refused}");
    }
    // Large enough that the answer comes while it is being sent.
    for _ in 0..5 {
        let refused = remote.create(&new, vec![7; 16 << 20].into()).await.unwrap_err();
        assert!(refused.to_string().contains("--allow-remote-writes"), "{refused}");
    }
    assert_eq!(memory.objects(), before);
    assert_eq!(remote.get(KEY).await.unwrap(), "here");
    running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_changes_is_cached_for_ever_and_nothing_else_at_all() {
    let memory = Arc::new(MemoryRemote::new());
    let (running, _) = writable(memory.clone()).await;
    let owner = "volumes/0123456789abcdef0123456789abcdef/owner";
    for key in [KEY, owner, "names/todo"] {
        memory.put(key, "0123456789".into()).await.unwrap();
    }
    let for_ever = "cache-control: public, max-age=31536000, immutable";
    let never = "cache-control: no-store";

    let (status, head, body) = raw(&running, &format!("GET /v1/objects/{KEY}")).await;
    assert_eq!((status, body.as_slice()), (200, b"0123456789".as_slice()));
    assert!(head.contains(for_ever) && head.contains("etag: \"only\""), "{head}");
    let (status, head, body) = raw(&running, &format!("GET /v1/objects/{KEY}\r\nrange: bytes=2-4")).await;
    assert_eq!((status, body.as_slice()), (206, b"234".as_slice()));
    assert!(head.contains(for_ever) && head.contains("content-range: bytes 2-4/*"), "{head}");
    let (status, head, body) =
        raw(&running, &format!("GET /v1/objects/{KEY}\r\nif-none-match: \"x\", \"only\"")).await;
    assert_eq!((status, body.len()), (304, 0), "{head}");

    for path in [owner, "names/todo"] {
        let (status, head, _) =
            raw(&running, &format!("GET /v1/objects/{path}\r\nif-none-match: \"only\"")).await;
        assert!(status == 200 && head.contains(never) && !head.contains("etag"), "{head}");
    }
    for (path, expected) in [
        (format!("GET /v1/objects/{ROOT}missing"), 404),
        (format!("GET /v1/objects/{KEY}\r\nrange: bytes=10-11"), 416),
        (format!("GET /v1/objects/{KEY}\r\nrange: bytes=5-"), 400),
        (format!("GET /v1/objects?prefix={ROOT}"), 200),
        (format!("PUT /v1/objects/{ROOT}missing\r\nif-match: \"00\"\r\ncontent-length: 0"), 412),
        (format!("PUT /v1/objects/{KEY}\r\nif-none-match: *\r\ncontent-length: 0"), 412),
        (format!("PUT /v1/objects/{KEY}\r\nif-none-match: \"x\"\r\ncontent-length: 0"), 400),
        (format!("PUT /v1/objects/{KEY}\r\nif-match: unquoted\r\ncontent-length: 0"), 400),
        (format!("PUT /v1/objects/{KEY}\r\ncontent-length: 268435457"), 413),
    ] {
        let (status, head, _) = raw(&running, &path).await;
        assert!(status == expected && head.contains(never), "{path}: {head}");
    }
    running.shutdown().await;
}

/// Whatever a path spells, only keys of ours reach the store; the answer says so as JSON.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_paths_are_refused_before_the_store() {
    let counting = Counting::new(memory());
    let (running, _) = writable(counting.clone()).await;
    counting.reset();
    let id = "0123456789abcdef0123456789abcdef";
    for path in [
        "/v1/objects/secrets",
        "/v1/objects/secrets/key",
        "/v1/objects/names/..%2fmodules",
        "/v1/objects/names/%2e%2e/x",
        "/v1/objects/names/../volumes",
        "/v1/objects//names/todo",
        "/v1/objects/%2fetc%2fpasswd",
        "/v1/objects/..%2f..%2fetc/passwd",
        "/v1/objects/names/%00",
        "/v1/objects/names/%0a",
        "/v1/objects/names/%ff",
        "/v1/objects/.graft-tmp/locks/00",
        "/v1/objects/modules/short",
        &format!("/v1/objects/volumes/{id}/unknown"),
        &format!("/v1/objects/volumes/{id}/log/"),
        &format!("/v1/objects/volumes/{id}/log/..%2f..%2fx"),
        &format!("/v1/objects/volumes/{id}/log/{}", "x".repeat(300)),
        "/v1/objects",
        "/v1/objects?prefix=",
        "/v1/objects?prefix=volumes/",
        "/v1/objects?prefix=names",
        "/v1/objects?prefix=../",
        "/v1/objects?prefix=names/&limit=-1",
        "/v1/objects?prefix=names/&other=1",
    ] {
        for method in ["GET", "PUT", "DELETE"] {
            if method != "GET" && (path.contains('?') || path == "/v1/objects") {
                continue;
            }
            let (status, head, body) = raw(&running, &format!("{method} {path}\r\ncontent-length: 0")).await;
            assert_eq!(status, 400, "{method} {path}: {head}");
            assert!(head.contains(&format!("graft-error: {}", errors::BAD_KEY)), "{method} {path}: {head}");
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["error"]["code"], errors::BAD_KEY, "{method} {path}");
        }
    }
    assert_eq!(counting.snapshot().requests(), 0, "none of them reached the store");
    running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stores_failures_keep_their_meaning() {
    let faulty = Faulty::new(memory(), 1);
    let (running, remote) = writable(faulty.clone()).await;
    for (request, fault) in [(Request::Create, Fault::FailAfter), (Request::Get, Fault::FailBefore)] {
        faulty.fail_next(request, fault);
        let failed = match request {
            Request::Create => remote.create(KEY, "x".into()).await,
            _ => remote.get(KEY).await.map(drop),
        };
        assert!(matches!(failed, Err(RemoteError::Unavailable { .. })), "{failed:?}");
    }
    // It had happened; and now it is told as it is.
    let again = remote.create(KEY, "x".into()).await;
    assert!(matches!(again, Err(RemoteError::AlreadyExists { .. })), "{again:?}");
    let changed = remote.update(KEY, "y".into(), &Tag::new("another")).await;
    assert!(matches!(changed, Err(RemoteError::Changed { .. })), "{changed:?}");
    running.shutdown().await;
    let gone = remote.get(KEY).await;
    assert!(matches!(gone, Err(RemoteError::Unavailable { .. })), "{gone:?}");
}

/// A server that answers every request with these bytes.
async fn answering(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            // The client may have gone.
            let _sent = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

/// Only a coordinator's word counts as one about the object. Else a proxy's 404 would read as "this
/// LSN is free", and a page's 200 as an object.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_coordinator_is_not_believed() {
    for (status, expected) in [
        ("404 Not Found", "Refused"),
        ("412 Precondition Failed", "Refused"),
        ("301 Moved", "Refused"),
        ("502 Bad Gateway", "Unavailable"),
        ("429 Slow", "Unavailable"),
        ("416 Range", "Refused"),
    ] {
        let remote = HttpRemote::open(&answering(answer(status, "location: /\r\n", "<html>")).await).unwrap();
        for failed in [
            remote.get(KEY).await.map(drop),
            remote.get_range(KEY, 0..10).await.map(drop),
            remote.create(KEY, "x".into()).await,
            remote.update(KEY, "x".into(), &Tag::new("t")).await.map(drop),
            remote.delete(KEY).await,
            remote.list(ROOT, None, 1).await.map(drop),
        ] {
            let failed = failed.expect_err(status);
            assert!(format!("{failed:?}").starts_with(expected), "{status}: {failed:?}");
        }
    }
    // A login page says so of everything, and has stored nothing.
    for status in ["200 OK", "201 Created", "206 Partial Content"] {
        for said in ["<html> page", ""] {
            let page = answer(status, "content-type: text/html\r\n", said);
            let page = HttpRemote::open(&answering(page).await).unwrap();
            for failed in [
                page.get(KEY).await.map(drop),
                page.get_tagged(KEY).await.map(drop),
                page.get_range(KEY, 0..20).await.map(drop),
                page.get_range(KEY, 0..0).await.map(drop),
                page.create(KEY, "x".into()).await,
                page.put(KEY, "x".into()).await,
                page.update(KEY, "x".into(), &Tag::new("t")).await.map(drop),
                page.delete(KEY).await,
                page.list(ROOT, None, 9).await.map(drop),
            ] {
                assert!(matches!(failed, Err(RemoteError::Unavailable { .. })), "{status}: {failed:?}");
            }
        }
    }
    // Another part than was asked for, or less than it says, or it does not say which.
    for said in ["bytes 5-9/*", "bytes 0-9/*", "bytes 0-3/*", "bytes */10", "items 0-4/*"] {
        let headers = format!("content-range: {said}\r\n");
        let part =
            HttpRemote::open(&answering(answer("206 Partial Content", &headers, "01234")).await).unwrap();
        let failed = part.get_range(KEY, 0..10).await;
        assert!(matches!(failed, Err(RemoteError::Unavailable { .. })), "{said}: {failed:?}");
    }
    let part = answer("206 Partial Content", "content-range: bytes 3-7/8\r\n", "01234");
    let part = HttpRemote::open(&answering(part).await).unwrap();
    assert_eq!(part.get_range(KEY, 3..10).await.unwrap(), "01234", "the object ends there");
    // Longer than what was asked for.
    let flood = answer("206 Partial Content", "", &"x".repeat(11));
    let flood = HttpRemote::open(&answering(flood).await).unwrap();
    let failed = flood.get_range(KEY, 0..10).await;
    assert!(matches!(failed, Err(RemoteError::Unavailable { .. })), "{failed:?}");
    // Out of order, outside the prefix, not numbers, more than asked for.
    for listing in [
        "1 1 volumes/x/b\n",
        &format!("1 1 {ROOT}b\n1 1 {ROOT}a\n"),
        &format!("1 x {ROOT}b\n"),
        &format!("1 1 {ROOT}a\n1 1 {ROOT}b\n1 1 {ROOT}c\n"),
    ] {
        let liar =
            HttpRemote::open(&answering(answer("200 OK", "content-type: text/plain\r\n", listing)).await)
                .unwrap();
        let failed = liar.list(ROOT, None, 2).await;
        assert!(matches!(failed, Err(RemoteError::Unavailable { .. })), "{listing}: {failed:?}");
    }
}

#[test]
fn urls_that_are_no_coordinators_say_what_to_write() {
    for url in ["http://", "http://user:hush@host", "http://host?x=1", "http://host#x", "https://"] {
        let error = graft::remote::open(url).expect_err(url).to_string();
        assert!(error.contains("http://HOST:PORT") && !error.contains("hush"), "{error}");
    }
    assert_eq!(graft::remote::open("https://host:1/below/").unwrap().url(), "https://host:1/below");
}

/// Keys and prefixes of the engine's that were not served made `graft volume gc` and `verify` fail through
/// a coordinator, and `rm` in the middle, where the name was gone already.
#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_the_engine_is_served() {
    use graft::{CommitId, Epoch, LeaseId, Lsn, ModuleHash, Seq, VolumeId, key};
    let store = memory();
    let (running, remote) = writable(store.clone()).await;
    let (volume, child) = (VolumeId([1; 16]), VolumeId([2; 16]));
    let keys = [
        key::meta(volume),
        key::log(volume, Lsn(7)),
        key::segment(volume, Lsn(7), CommitId([3; 16]), 0),
        key::compacted_segment(volume, Epoch(2), CommitId([3; 16]), 0),
        key::checkpoint(volume, Seq(1)),
        key::horizon(volume, Lsn(7), Seq(1)),
        key::closed(volume, 9),
        key::fork_pin(volume, child),
        key::pin(volume, child, Seq(1)),
        key::reader(volume, LeaseId([4; 16])),
        format!("volumes/{volume}/owner"),
        key::name(&"todo".parse().unwrap()),
        key::module(ModuleHash([5; 32])),
    ];
    for key in keys {
        remote.create(&key, "x".into()).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(remote.get(&key).await.unwrap(), "x", "{key}");
        // Modules are asked for by name alone.
        for (end, _) in key.match_indices('/').skip(usize::from(key.starts_with("volumes/"))) {
            let prefix = &key[..=end];
            if prefix != "modules/" {
                let rows = remote.list(prefix, None, 100).await.unwrap_or_else(|error| panic!("{error}"));
                assert!(rows.iter().any(|row| row.key == key), "{prefix}: {rows:?}");
            }
        }
    }
    // Of a volume, all that is served, and nothing that somebody else put there.
    let prefix = key::volume_prefix(volume);
    let before = store.list(&prefix, None, 100).await.unwrap();
    store.create(&format!("{prefix}notes.txt"), "x".into()).await.unwrap();
    let listed = remote.list(&prefix, None, 100).await.unwrap();
    assert_eq!(listed, before);
    assert_eq!(listed.len(), 11);
    running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_removed_whole_through_a_coordinator() {
    let store = memory();
    let (running, remote) = writable(store.clone()).await;
    let name: VolumeName = "todo".parse().unwrap();
    let (id, meta) = (graft::VolumeId([1; 16]), Meta { page_size: PageSize::DEFAULT, parent: None });
    catalog::create(&remote, &name, id, meta).await.unwrap();
    remote.create(&graft::key::log(id, graft::Lsn(1)), "x".into()).await.unwrap();
    catalog::remove(&remote, &name, 1).await.unwrap();
    let left = store.list("", None, 100).await.unwrap();
    assert!(left.iter().all(|row| row.key.starts_with("probe/")), "{left:?}");
    running.shutdown().await;
}

/// `graft sql NAME --store http://…`: only what the question needs comes over.
#[tokio::test(flavor = "multi_thread")]
async fn sql_pulls_its_pages_through_a_coordinator() {
    let running = start_todo(memory(), |_| {}).await;
    let client = client(&running).await;
    for i in 0..20 {
        add(&client, &format!("t{i:02}"), "Buy milk").await;
    }
    client.close().await;

    let counting = Counting::new(graft::remote::open(&running.url()).unwrap());
    let remote: SharedRemote = counting.clone();
    let name: VolumeName = "todo".parse().unwrap();
    let id = catalog::resolve(&*remote, &name).await.unwrap();
    let volume = Arc::new(Volume::open(&*remote, id, Options::default()).await.unwrap().volume);
    let opened = counting.reset();
    let database = Database::new(volume.clone(), Arc::new(RemoteFetch::new(remote)));
    let rows = tokio::task::spawn_blocking(move || {
        let (connection, _control) = database.connect_read_only().unwrap();
        connection.query_row("SELECT count(*) FROM tasks", (), |row| row.get::<_, i64>(0)).unwrap()
    })
    .await
    .unwrap();
    assert_eq!(rows, 20);
    let read = counting.snapshot();
    assert!(read.ranges > 0 && read.lists == 0 && read.creates == 0, "{read:?} after {opened:?}");
    running.shutdown().await;
}

/// What implementers read is what is sent.
#[test]
fn the_documented_words_are_the_ones_used() {
    for word in [
        errors::NO_SUCH_OBJECT,
        errors::OBJECT_EXISTS,
        errors::OBJECT_CHANGED,
        errors::RANGE_PAST_END,
        errors::BAD_KEY,
        errors::READ_ONLY,
        errors::BAD_OBJECT,
        errors::STORE_UNAVAILABLE,
        errors::STORE_REFUSED,
        graft::remote::http::ERROR_HEADER,
        graft::remote::http::TAG_HEADER,
        "/v1/objects/{key}",
        "--allow-remote-writes",
    ] {
        assert!(DOC.contains(&format!("`{word}`")), "{word}");
    }
    let row = DOC.split("```text object-row\n").nth(1).unwrap().lines().next().unwrap();
    let parsed = graft::remote::http::parse_row(row).unwrap();
    assert_eq!(graft::remote::http::format_row(&parsed).trim_end(), row);
}
