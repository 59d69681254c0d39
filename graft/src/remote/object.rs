//! Any store of the crate `object_store` as a [`Remote`].
//!
//! What the adapter adds is meaning: which answers say "taken", which say "ask again" and which
//! say "never". Every error names our key, not the store's path.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutResult,
    UpdateVersion,
};

use super::{Listed, Remote, RemoteError, Tag, check_key, check_prefix};

/// The most rows that one request of a listing brings.
const ROWS_PER_REQUEST: usize = 1000;

/// An `object_store` below a prefix.
pub struct ObjectRemote {
    store: Arc<dyn ObjectStore>,
    pages: Option<Arc<dyn PaginatedListStore>>,
    /// Empty, or ends in `/`.
    prefix: String,
    url: String,
    place: String,
    /// How this store wants the etag in `If-Match`: [`UNKNOWN`], [`QUOTED`] or [`BARE`].
    quotes: AtomicU8,
}

/// Nothing was updated yet.
const UNKNOWN: u8 = 0;
/// In quotes, as HTTP says.
const QUOTED: u8 = 1;
/// Without them: Ceph's gateway hands out quoted etags and compares with bare ones.
const BARE: u8 = 2;

impl ObjectRemote {
    /// Wraps `store`, with all keys below `prefix`; `url` is what messages call it.
    ///
    /// Listings stream: the store fetches pages of its own size, usually 1,000 rows, and we stop
    /// after the last one needed.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str, url: String) -> ObjectRemote {
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let place = url.clone();
        ObjectRemote { store, pages: None, prefix, url, place, quotes: AtomicU8::new(UNKNOWN) }
    }

    /// Names the server as well: two of them may have a bucket of one name. See [`Remote::place`].
    #[must_use]
    pub fn with_place(self, place: String) -> ObjectRemote {
        ObjectRemote { place, ..self }
    }

    /// Lists by single requests that carry the limit, so that the newest commit's key costs one
    /// row, not a thousand.
    #[must_use]
    pub fn with_pages(self, pages: Arc<dyn PaginatedListStore>) -> ObjectRemote {
        ObjectRemote { pages: Some(pages), ..self }
    }

    fn path(&self, key: &str) -> Result<Path, RemoteError> {
        check_key(key)?;
        self.parse(key, &format!("{}{key}", self.prefix))
    }

    fn parse(&self, key: &str, path: &str) -> Result<Path, RemoteError> {
        Path::parse(path).map_err(|e| RemoteError::Refused {
            key: key.into(),
            message: format!("not a key for this store: {e}"),
        })
    }

    /// One more row, in order and below `prefix`, or the reason why not.
    fn push(&self, prefix: &str, row: &ObjectMeta, rows: &mut Vec<Listed>) -> Result<(), RemoteError> {
        let path = &row.location;
        let key = path.as_ref().strip_prefix(&self.prefix).filter(|key| key.starts_with(prefix));
        let in_order = key.filter(|key| rows.last().is_none_or(|last| last.key.as_str() < *key));
        match in_order {
            Some(key) => rows.push(Listed {
                key: key.into(),
                bytes: row.size,
                modified_ms: row.last_modified.timestamp_millis(),
            }),
            None => {
                return Err(RemoteError::Refused {
                    key: prefix.into(),
                    message: format!(
                        "`{}` lists `{path}` out of key order (S3 directory buckets do); use a store that \
                         lists in order",
                        self.url
                    ),
                });
            }
        }
        Ok(())
    }

    async fn list_pages(
        &self,
        pages: &dyn PaginatedListStore,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        let full = format!("{}{prefix}", self.prefix);
        let full = (!full.is_empty()).then_some(full.as_str());
        let offset = after.map(|after| format!("{}{after}", self.prefix));
        let (mut rows, mut page_token) = (Vec::new(), None);
        while rows.len() < limit {
            let options = PaginatedListOptions {
                offset: offset.clone(),
                max_keys: Some((limit - rows.len()).min(ROWS_PER_REQUEST)),
                page_token,
                ..PaginatedListOptions::default()
            };
            let page = pages.list_paginated(full, options).await.map_err(|e| self.failure(prefix, e))?;
            for row in page.result.objects {
                // A store may take the offset as inclusive, or not at all.
                let skip = offset.as_ref().is_some_and(|offset| row.location.as_ref() <= offset.as_str());
                if !skip && rows.len() < limit {
                    self.push(prefix, &row, &mut rows)?;
                }
            }
            page_token = page.page_token;
            if page_token.is_none() {
                break;
            }
        }
        Ok(rows)
    }

    async fn list_stream(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        let full = self.parse(prefix, &format!("{}{prefix}", self.prefix))?;
        // An offset that is no path of theirs cannot be handed over; then skip here.
        let offset = after.and_then(|after| Path::parse(format!("{}{after}", self.prefix)).ok());
        let mut found = match &offset {
            Some(offset) => self.store.list_with_offset(Some(&full), offset),
            None => self.store.list(Some(&full)),
        };
        let mut rows = Vec::new();
        while rows.len() < limit
            && let Some(row) = found.try_next().await.map_err(|e| self.failure(prefix, e))?
        {
            let key = row.location.as_ref().strip_prefix(&self.prefix);
            if after.is_none_or(|after| key.is_none_or(|key| key > after)) {
                self.push(prefix, &row, &mut rows)?;
            }
        }
        Ok(rows)
    }

    /// The tag that the store gave an object.
    fn tag(&self, key: &str, etag: Option<String>) -> Result<Tag, RemoteError> {
        etag.map(Tag).ok_or_else(|| RemoteError::Refused {
            key: key.into(),
            message: format!(
                "`{}` gives objects no ETag, so none can be updated; use another store",
                self.url
            ),
        })
    }

    async fn put_if(&self, path: &Path, body: Bytes, etag: String) -> Result<PutResult, Error> {
        let unchanged = UpdateVersion { e_tag: Some(etag), version: None };
        self.store.put_opts(path, body.into(), PutMode::Update(unchanged).into()).await
    }

    /// Whether an update was refused for its etag's quotes: the object still has that very etag.
    async fn is_quotes_fault(&self, path: &Path, tag: &Tag) -> bool {
        let found = self.store.head(path).await;
        found.is_ok_and(|found| found.e_tag.as_deref() == Some(tag.as_str()))
    }

    fn failure(&self, key: &str, error: Error) -> RemoteError {
        let key = key.to_string();
        // Error codes are looked for with their tags: a key, which is a person's choice, has none.
        let text = chain(&error);
        let refused =
            |next: &str| RemoteError::Refused { key: key.clone(), message: format!("{text}; {next}") };
        match &error {
            Error::NotFound { .. } if text.contains("<Code>NoSuchBucket</Code>") => self.no_bucket(key),
            Error::NotFound { .. } => RemoteError::NotFound { key },
            Error::AlreadyExists { source, .. } if is_conflict(source.as_ref()) => RemoteError::Unavailable {
                key,
                message: "409, another create of this key is in flight".into(),
            },
            Error::AlreadyExists { .. } | Error::Precondition { .. } => RemoteError::AlreadyExists { key },
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                refused(&self.check_credentials())
            }
            Error::InvalidPath { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::UnknownConfigurationKey { .. } => refused("use another store"),
            // The answers to some requests, listings above all, come without a kind of their own.
            _ if text.contains("<Code>NoSuchBucket</Code>") => self.no_bucket(key),
            _ if ["status code: 401", "status code: 403"].iter().any(|status| text.contains(status)) => {
                refused(&self.check_credentials())
            }
            _ if [
                "redirect without LOCATION",
                "<Code>AuthorizationHeaderMalformed<",
                "<Code>PermanentRedirect<",
            ]
            .iter()
            .any(|sign| text.contains(sign)) =>
            {
                refused("check AWS_REGION and AWS_ENDPOINT_URL: the bucket is elsewhere")
            }
            _ => RemoteError::Unavailable { key, message: text },
        }
    }

    fn no_bucket(&self, key: String) -> RemoteError {
        let message = format!("the bucket of `{}` does not exist; create it, or correct the URL", self.url);
        RemoteError::Refused { key, message }
    }

    fn check_credentials(&self) -> String {
        format!(
            "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and that they may read, list, \
             write and delete in `{}`",
            self.url
        )
    }
}

/// The error and its causes, for people: some of their messages leave out the cause.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// S3 answers 409 while another create of the key is under way; `object_store` calls that taken
/// too. A true "taken" is a 412, which it wraps as `Precondition`.
fn is_conflict(source: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    source.downcast_ref::<Error>().is_none() && source.to_string().contains("status code: 409")
}

impl fmt::Debug for ObjectRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectRemote({})", self.url)
    }
}

#[async_trait]
impl Remote for ObjectRemote {
    async fn get(&self, key: &str) -> Result<Bytes, RemoteError> {
        let path = self.path(key)?;
        let found = self.store.get(&path).await.map_err(|e| self.failure(key, e))?;
        found.bytes().await.map_err(|e| self.failure(key, e))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        let path = self.path(key)?;
        if range.is_empty() {
            // No store has a request for nothing; still say when the object is not there.
            return match self.store.head(&path).await {
                Ok(_) => Ok(Bytes::new()),
                Err(e) => Err(self.failure(key, e)),
            };
        }
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let error = match self.store.get_opts(&path, options).await {
            Ok(found) => match found.bytes().await {
                Ok(body) => return Ok(body),
                Err(e) => e,
            },
            Err(e) => e,
        };
        // A range past the end is an error to them (HTTP 416) of no kind of its own. Only then does
        // it cost a second request: the object's length decides.
        let text = chain(&error);
        if (text.contains("416") || text.contains("Wanted range"))
            && let Ok(found) = self.store.head(&path).await
            && found.size <= range.start
        {
            return Ok(Bytes::new());
        }
        Err(self.failure(key, error))
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        let path = self.path(key)?;
        match self.store.put_opts(&path, body.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            Err(e) => Err(self.failure(key, e)),
        }
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        let path = self.path(key)?;
        match self.store.put_opts(&path, body.into(), PutMode::Overwrite.into()).await {
            Ok(_) => Ok(()),
            Err(e) => Err(self.failure(key, e)),
        }
    }

    async fn get_tagged(&self, key: &str) -> Result<(Bytes, Tag), RemoteError> {
        let path = self.path(key)?;
        let found = self.store.get(&path).await.map_err(|e| self.failure(key, e))?;
        let tag = self.tag(key, found.meta.e_tag.clone())?;
        let body = found.bytes().await.map_err(|e| self.failure(key, e))?;
        Ok((body, tag))
    }

    /// One request, once the store has shown whether it wants the etag's quotes; until then up to
    /// three where it refuses.
    async fn update(&self, key: &str, body: Bytes, tag: &Tag) -> Result<Tag, RemoteError> {
        let path = self.path(key)?;
        let (quoted, bare) = (tag.as_str(), tag.as_str().trim_matches('"'));
        let known = self.quotes.load(Ordering::Relaxed);
        let first = if known == BARE { bare } else { quoted };
        let mut sent_bare = known == BARE;
        let mut answer = self.put_if(&path, body.clone(), first.into()).await;
        if matches!(answer, Err(Error::Precondition { .. }))
            && known == UNKNOWN
            && quoted != bare
            && self.is_quotes_fault(&path, tag).await
        {
            // As conditional as the first: nothing is lost if this guess is wrong.
            sent_bare = true;
            answer = self.put_if(&path, body, bare.into()).await;
        }
        match answer {
            Ok(written) => {
                self.quotes.store(if sent_bare { BARE } else { QUOTED }, Ordering::Relaxed);
                self.tag(key, written.e_tag)
            }
            Err(Error::Precondition { source, .. } | Error::NotFound { source, .. })
                if !source.to_string().contains("<Code>NoSuchBucket</Code>") =>
            {
                Err(RemoteError::changed(key))
            }
            // Another writer of this key is in flight, and was for as long as the client asked again.
            Err(Error::AlreadyExists { source, .. }) => Err(RemoteError::unavailable(key, source)),
            Err(e) => Err(self.failure(key, e)),
        }
    }

    /// One request for each 1,000 rows wanted where the store pages; else as many as its stream
    /// needs for them.
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        check_prefix(prefix)?;
        match &self.pages {
            Some(pages) => self.list_pages(pages.as_ref(), prefix, after, limit).await,
            None => self.list_stream(prefix, after, limit).await,
        }
    }

    async fn delete(&self, key: &str) -> Result<(), RemoteError> {
        let path = self.path(key)?;
        match self.store.delete(&path).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failure(key, e)),
        }
    }

    fn url(&self) -> String {
        self.url.clone()
    }

    fn place(&self) -> String {
        self.place.clone()
    }
}

#[cfg(test)]
mod tests;
