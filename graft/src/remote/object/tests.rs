use object_store::memory::InMemory;

use super::*;

type Cause = Box<dyn std::error::Error + Send + Sync>;

fn remote() -> ObjectRemote {
    ObjectRemote::new(Arc::new(InMemory::new()), "pre", "test:".into())
}

/// What each answer of a store means to a writer; a 409 in particular is not "taken".
#[test]
fn answers_mean_what_a_writer_must_do() {
    let (path, cause) = (|| "p".to_string(), |text: &str| Cause::from(text.to_string()));
    let conflict = "Server returned non-2xx status code: 409 Conflict: ConditionalRequestConflict";
    let taken = || Error::Precondition { path: path(), source: cause("412") };
    for (error, expected) in [
        (Error::AlreadyExists { path: path(), source: cause(conflict) }, "Unavailable"),
        (Error::AlreadyExists { path: path(), source: Box::new(taken()) }, "AlreadyExists"),
        (Error::AlreadyExists { path: path(), source: cause("in the map") }, "AlreadyExists"),
        (taken(), "AlreadyExists"),
        (Error::NotFound { path: path(), source: cause("404: NoSuchKey") }, "NotFound"),
        (Error::NotFound { path: path(), source: cause("404 names/NoSuchBucket") }, "NotFound"),
        (Error::NotFound { path: path(), source: cause("404: <Code>NoSuchBucket</Code>") }, "Refused"),
        (Error::PermissionDenied { path: path(), source: cause("403") }, "Refused"),
        (Error::Unauthenticated { path: path(), source: cause("401") }, "Refused"),
        (Error::NotSupported { source: cause("no") }, "Refused"),
        (Error::Generic { store: "S3", source: cause("503 SlowDown") }, "Unavailable"),
        (Error::Generic { store: "S3", source: cause("status code: 403 Forbidden: x") }, "Refused"),
        (Error::Generic { store: "S3", source: cause("404: <Code>NoSuchBucket</Code>") }, "Refused"),
        (Error::Generic { store: "S3", source: cause("Received redirect without LOCATION") }, "Refused"),
    ] {
        let told = format!("{error:?}");
        let meant = remote().failure("the/key", error);
        assert!(format!("{meant:?}").starts_with(expected), "{told} became {meant:?}");
        assert_eq!(meant.key(), "the/key");
    }
    let denied =
        remote().failure("k", Error::PermissionDenied { path: path(), source: cause("403 Forbidden") });
    let text = denied.to_string();
    assert!(
        text.contains("403") && text.contains("AWS_SECRET_ACCESS_KEY") && text.contains("test:"),
        "{text}"
    );
}

/// A store of one page per request that ignores the offset and may be out of order.
#[derive(Debug)]
struct Pages {
    keys: Vec<&'static str>,
    asked: parking_lot::Mutex<Vec<Option<usize>>>,
}

#[async_trait]
impl PaginatedListStore for Pages {
    async fn list_paginated(
        &self,
        prefix: Option<&str>,
        options: PaginatedListOptions,
    ) -> object_store::Result<object_store::list::PaginatedListResult> {
        self.asked.lock().push(options.max_keys);
        let from: usize = options.page_token.map_or(0, |token| token.parse().unwrap());
        let keys = self.keys.iter().filter(|key| key.starts_with(prefix.unwrap_or("")));
        let rows = keys.skip(from).take(options.max_keys.unwrap_or(1000));
        let objects: Vec<_> = rows
            .map(|key| object_store::ObjectMeta {
                location: Path::parse(key).unwrap(),
                last_modified: Default::default(),
                size: 1,
                e_tag: None,
                version: None,
            })
            .collect();
        let next = from + objects.len();
        Ok(object_store::list::PaginatedListResult {
            result: object_store::ListResult {
                common_prefixes: Vec::new(),
                objects,
                extensions: Default::default(),
            },
            page_token: (next < self.keys.len()).then(|| next.to_string()),
        })
    }
}

fn list(
    keys: &[&'static str],
    after: Option<&str>,
    limit: usize,
) -> (Result<Vec<String>, RemoteError>, usize) {
    let pages = Arc::new(Pages { keys: keys.to_vec(), asked: Default::default() });
    let paged = remote().with_pages(pages.clone());
    let rows = futures::executor::block_on(paged.list("a/", after, limit));
    let asked = pages.asked.lock().clone();
    assert!(asked.iter().all(|max| max.is_some_and(|max| max <= limit.min(ROWS_PER_REQUEST))), "{asked:?}");
    (rows.map(|rows| rows.into_iter().map(|row| row.key).collect()), asked.len())
}

#[test]
fn a_limited_listing_asks_for_no_more_than_its_limit() {
    let keys = ["pre/a/1", "pre/a/2", "pre/a/3"];
    let (rows, requests) = list(&keys, None, 1);
    assert_eq!(
        (rows.unwrap(), requests),
        (vec!["a/1".to_string()], 1),
        "the head probe is one request of one row"
    );
    let (rows, requests) = list(&keys, None, 3);
    assert_eq!((rows.unwrap().len(), requests), (3, 1));
    let (rows, _) = list(&keys, Some("a/1"), 1);
    assert_eq!(rows.unwrap(), ["a/2"], "also where the store ignores the offset");
}

#[test]
fn a_store_that_lists_out_of_order_is_refused() {
    let (rows, _) = list(&["pre/a/2", "pre/a/1"], None, 10);
    let error = rows.expect_err("out of order").to_string();
    assert!(error.contains("out of key order") && error.contains("test:"), "{error}");
}

/// Hands etags out in quotes and compares them without, as Ceph's gateway does.
#[derive(Debug, Default)]
struct Unquotes {
    inner: InMemory,
    /// Updates and heads asked for.
    asked: parking_lot::Mutex<Vec<&'static str>>,
}

impl fmt::Display for Unquotes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unquotes")
    }
}

#[async_trait]
impl ObjectStore for Unquotes {
    async fn put_opts(
        &self,
        path: &Path,
        body: object_store::PutPayload,
        mut options: object_store::PutOptions,
    ) -> object_store::Result<PutResult> {
        if let PutMode::Update(version) = &mut options.mode {
            self.asked.lock().push("update");
            let etag = version.e_tag.take().unwrap();
            if etag.contains('"') {
                let source = Cause::from("412 Precondition Failed");
                return Err(Error::Precondition { path: path.to_string(), source });
            }
            version.e_tag = Some(format!("\"{etag}\""));
        }
        self.inner.put_opts(path, body, options).await
    }
    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: object_store::PutMultipartOptions,
    ) -> object_store::Result<Box<dyn object_store::MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }
    async fn get_opts(
        &self,
        path: &Path,
        options: GetOptions,
    ) -> object_store::Result<object_store::GetResult> {
        if options.head {
            self.asked.lock().push("head");
        }
        self.inner.get_opts(path, options).await
    }
    fn delete_stream(
        &self,
        paths: futures::stream::BoxStream<'static, object_store::Result<Path>>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }
    fn list(
        &self,
        prefix: Option<&Path>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(
        &self,
        prefix: Option<&Path>,
    ) -> object_store::Result<object_store::ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: object_store::CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The first update finds out that the quotes are unwelcome, and the next ones know.
#[test]
fn a_store_that_compares_bare_etags_is_found_out_once() {
    let store = Arc::new(Unquotes::default());
    let remote = ObjectRemote::new(store.clone(), "", "unquotes:".into());
    let asked = || std::mem::take(&mut *store.asked.lock()).join(" ");
    futures::executor::block_on(async {
        remote.create("owner", "1".into()).await.unwrap();
        let (_, first) = remote.get_tagged("owner").await.unwrap();
        // A lost race before anything is known costs a look, and teaches nothing.
        remote.put("owner", "2".into()).await.unwrap();
        let lost = remote.update("owner", "3".into(), &first).await;
        assert!(matches!(lost, Err(RemoteError::Changed { .. })), "{lost:?}");
        assert_eq!(asked(), "update head");
        let (_, second) = remote.get_tagged("owner").await.unwrap();
        let third = remote.update("owner", "3".into(), &second).await.unwrap();
        assert_eq!(asked(), "update head update");
        remote.update("owner", "4".into(), &third).await.unwrap();
        let lost = remote.update("owner", "5".into(), &third).await;
        assert!(matches!(lost, Err(RemoteError::Changed { .. })), "{lost:?}");
        assert_eq!(asked(), "update update", "one request each, from now on");
        assert_eq!(remote.get("owner").await.unwrap(), "4");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_compares_bare_etags_conforms() {
    let remote = ObjectRemote::new(Arc::new(Unquotes::default()), "pre", "unquotes:".into());
    super::super::conformance::check(&remote, "").await;
}
