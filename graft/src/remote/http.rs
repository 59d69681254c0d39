//! A coordinator's object routes as a [`Remote`]: a replica without the bucket's credentials pulls
//! lazily through a coordinator, and through whatever cache stands before it.
//!
//! | request | is |
//! | --- | --- |
//! | `GET /v1/objects/{key}` | [`Remote::get`] and, by the answer's `graft-tag`, [`Remote::get_tagged`] |
//! | the same with `Range: bytes=A-B` | [`Remote::get_range`] |
//! | `PUT` with `If-None-Match: *` | [`Remote::create`] |
//! | `PUT` with `If-Match: "TAG"` | [`Remote::update`] |
//! | `PUT` with neither | [`Remote::put`] |
//! | `DELETE` | [`Remote::delete`] |
//! | `GET /v1/objects?prefix=…&after=…&limit=…` | [`Remote::list`]: lines of `BYTES MODIFIED_MS KEY` |
//!
//! `docs/protocol.md` says the same for implementers. A coordinator takes writes only where it was
//! started with `--allow-remote-writes`; else they are [`RemoteError::Refused`].
//!
//! Invariants: only what the coordinator says of an object (header [`ERROR_HEADER`]) is believed to
//! be about the object. A 404 without it, from a proxy or from a server of another kind, never
//! reads as "this key is free". Nor is a success believed that is not as a coordinator says it: the page of
//! a login portal is no object and no listing, and its "200 OK" to a PUT stored nothing. What a server sends
//! is hostile: bodies are cut off at what was asked, and a part of an object must say which part it is.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH, RANGE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use url::Url;

use super::{Listed, OpenRemoteError, Remote, RemoteError, Tag, check_key, check_prefix, slice};

/// In an answer that is no success: one of [`errors`], by which a client knows that the coordinator
/// speaks of the object.
pub const ERROR_HEADER: &str = "graft-error";
/// In an answer with a whole object, and in that to a write: the object's tag, as hex of its bytes.
pub const TAG_HEADER: &str = "graft-tag";
/// The most rows that one listing brings.
pub const LIST_ROWS_MAX: usize = 1000;
/// The largest object that goes through, in bytes; a commit's payload is at most 64 MiB.
pub const OBJECT_BYTES_MAX: usize = 256 << 20;

/// What [`ERROR_HEADER`] says.
pub mod errors {
    /// Nothing has the key.
    pub const NO_SUCH_OBJECT: &str = "no_such_object";
    /// A create found the key taken.
    pub const OBJECT_EXISTS: &str = "object_exists";
    /// An update found another object.
    pub const OBJECT_CHANGED: &str = "object_changed";
    /// The object ends before the range that was asked for.
    pub const RANGE_PAST_END: &str = "range_past_end";
    /// The key or prefix is none that is served.
    pub const BAD_KEY: &str = "bad_key";
    /// The coordinator takes no writes of objects.
    pub const READ_ONLY: &str = "read_only";
    /// The body is over the limit, or did not arrive.
    pub const BAD_OBJECT: &str = "bad_object";
    /// The coordinator's store did not answer; the request may have happened.
    pub const STORE_UNAVAILABLE: &str = "store_unavailable";
    /// The coordinator's store refuses.
    pub const STORE_REFUSED: &str = "store_refused";
}

/// No answer in this time and the request counts as failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of one line of a listing at most: two numbers and a key, percent-encoded.
const ROW_BYTES_MAX: usize = 3000;

/// The objects of a coordinator's store. Clones of its handle share connections.
#[derive(Debug)]
pub struct HttpRemote {
    client: Client,
    /// Ends in `/v1/objects`.
    objects: Url,
    url: String,
}

impl HttpRemote {
    /// The store of the coordinator at `url` (`http://HOST:PORT`, or https). Sends nothing.
    ///
    /// # Errors
    ///
    /// [`OpenRemoteError::Malformed`] where `url` has credentials, a query or no host.
    pub fn open(url: &str) -> Result<HttpRemote, OpenRemoteError> {
        HttpRemote::open_shown(url, super::without_credentials(url))
    }

    pub(super) fn open_shown(url: &str, shown: String) -> Result<HttpRemote, OpenRemoteError> {
        let malformed = |message: String| OpenRemoteError::Malformed { url: shown.clone(), message };
        let mut objects = Url::parse(url).map_err(|e| malformed(format!("{e}; write http://HOST:PORT")))?;
        if !objects.username().is_empty() || objects.password().is_some() {
            return Err(malformed("credentials do not belong in a URL; write http://HOST:PORT".into()));
        }
        if objects.query().is_some() || objects.fragment().is_some() {
            return Err(malformed("a query or fragment means nothing here; write http://HOST:PORT".into()));
        }
        match objects.path_segments_mut() {
            Ok(mut path) => path.pop_if_empty().extend(["v1", "objects"]),
            Err(()) => return Err(malformed("no host: write http://HOST:PORT".into())),
        };
        super::install_tls();
        let client = Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            // A redirect would turn a PUT into a GET of something else.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| malformed(format!("no HTTP client: {}", chain(&e))))?;
        Ok(HttpRemote { client, objects, url: shown.trim_end_matches('/').into() })
    }

    fn request(&self, method: Method, key: &str) -> Result<RequestBuilder, RemoteError> {
        check_key(key)?;
        let mut url = self.objects.clone();
        match url.path_segments_mut() {
            Ok(mut path) => path.extend(key.split('/')),
            Err(()) => return Err(RemoteError::unavailable(key, "the URL has no path")),
        };
        Ok(self.client.request(method, url))
    }

    /// Sends, and reads what the answer's head says of the object.
    async fn send(&self, key: &str, request: RequestBuilder, kind: Kind) -> Result<Response, RemoteError> {
        let answer = request.send().await.map_err(|e| RemoteError::unavailable(key, chain(&e)))?;
        let expected = match kind {
            Kind::Read => StatusCode::OK,
            Kind::Create | Kind::Update | Kind::Overwrite => StatusCode::NO_CONTENT,
        };
        match answer.status() {
            status if status == expected => Ok(answer),
            status if status.is_success() => Err(self.strange(key, &format!("{status}"))),
            _ => Err(self.failure(key, answer, kind).await),
        }
    }

    /// A success that no coordinator answers. Whether anything happened is not known.
    fn strange(&self, key: &str, what: &str) -> RemoteError {
        let message = format!(
            "{} answered as no coordinator does ({what}): is there a proxy or a login page between?",
            self.url
        );
        RemoteError::unavailable(key, message)
    }

    /// The whole object.
    async fn whole(&self, key: &str, answer: Response) -> Result<(Bytes, Tag), RemoteError> {
        let tag = tag(answer.headers()).ok_or_else(|| self.strange(key, &no_tag()))?;
        Ok((body(key, answer, OBJECT_BYTES_MAX).await?, tag))
    }

    async fn failure(&self, key: &str, answer: Response, kind: Kind) -> RemoteError {
        let (status, owned) = (answer.status(), key.to_string());
        let code = code(&answer).map(str::to_owned);
        // For people. A body that does not come adds nothing.
        let said = body(key, answer, 2000).await.unwrap_or_default();
        let said: String =
            String::from_utf8_lossy(&said).chars().filter(|c| !c.is_control()).take(500).collect();
        let refused = |message: String| RemoteError::Refused { key: owned.clone(), message };
        match (code.as_deref(), kind) {
            (Some(errors::NO_SUCH_OBJECT), Kind::Read) => RemoteError::not_found(key),
            (Some(errors::OBJECT_EXISTS), Kind::Create) => RemoteError::already_exists(key),
            (Some(errors::OBJECT_CHANGED), Kind::Update) => RemoteError::changed(key),
            (Some(errors::READ_ONLY), _) => refused(format!(
                "the coordinator at {} takes no writes; start it with --allow-remote-writes, or give the bucket \
                 itself as the store",
                self.url
            )),
            (Some(errors::STORE_UNAVAILABLE), _) => RemoteError::unavailable(key, said),
            _ if status.is_server_error() && code.is_none()
                || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status) =>
            {
                RemoteError::unavailable(key, format!("{status}: {said}"))
            }
            (Some(_), _) => refused(format!("{} answered {status}: {said}", self.url)),
            (None, _) => refused(format!(
                "{} answered {status} without `{ERROR_HEADER}`, so it is no coordinator or one that serves no \
                 objects; check the URL and the server's version",
                self.url
            )),
        }
    }

    async fn write(
        &self,
        key: &str,
        body: Bytes,
        kind: Kind,
        tag: Option<&Tag>,
    ) -> Result<Response, RemoteError> {
        let mut request = self.request(Method::PUT, key)?;
        if body.len() > OBJECT_BYTES_MAX {
            let message = format!("an object of {} bytes; at most {OBJECT_BYTES_MAX} go through", body.len());
            return Err(RemoteError::Refused { key: key.into(), message });
        }
        match kind {
            Kind::Create => request = request.header(IF_NONE_MATCH, HeaderValue::from_static("*")),
            Kind::Update | Kind::Read | Kind::Overwrite => {}
        }
        if let Some(tag) = tag {
            request = request.header(IF_MATCH, format!("\"{}\"", hex::encode(tag.as_str())));
        }
        self.send(key, request.body(body), kind).await
    }

    async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        let mut url = self.objects.clone();
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("prefix", prefix).append_pair("limit", &limit.to_string());
            if let Some(after) = after {
                query.append_pair("after", after);
            }
        }
        let answer = self.send(prefix, self.client.get(url), Kind::Read).await?;
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/plain") {
            return Err(self.strange(prefix, &format!("a listing of type `{}`", kind.escape_debug())));
        }
        let text = body(prefix, answer, limit.saturating_mul(ROW_BYTES_MAX)).await?;
        let malformed =
            || RemoteError::unavailable(prefix, format!("{} sent a listing that is none", self.url));
        let text = std::str::from_utf8(&text).map_err(|_| malformed())?;
        let mut rows: Vec<Listed> = Vec::new();
        for line in text.lines() {
            let row = parse_row(line).ok_or_else(malformed)?;
            let last = rows.last().map(|row| row.key.as_str()).or(after);
            if !row.key.starts_with(prefix)
                || last.is_some_and(|last| last >= row.key.as_str())
                || rows.len() >= limit
            {
                return Err(malformed());
            }
            rows.push(row);
        }
        Ok(rows)
    }
}

/// What a request is, for what its errors mean.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Read,
    Create,
    Update,
    Overwrite,
}

/// One line of a listing.
pub fn format_row(row: &Listed) -> String {
    format!("{} {} {}\n", row.bytes, row.modified_ms, row.key)
}

/// What [`format_row`] wrote, without its line end.
pub fn parse_row(line: &str) -> Option<Listed> {
    let (bytes, rest) = line.split_once(' ')?;
    let (modified_ms, key) = rest.split_once(' ')?;
    check_key(key).ok()?;
    Some(Listed { key: key.into(), bytes: bytes.parse().ok()?, modified_ms: modified_ms.parse().ok()? })
}

/// A tag as [`TAG_HEADER`] carries it.
pub fn format_tag(tag: &Tag) -> String {
    hex::encode(tag.as_str())
}

/// What [`format_tag`] wrote.
pub fn parse_tag(text: &str) -> Option<Tag> {
    String::from_utf8(hex::decode(text).ok()?).ok().map(Tag::new)
}

/// The body, or an error where it is longer than `max` bytes or ends too soon.
async fn body(key: &str, mut answer: Response, max: usize) -> Result<Bytes, RemoteError> {
    let mut body = BytesMut::new();
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= max => body.extend_from_slice(&chunk),
            Ok(Some(_)) => {
                return Err(RemoteError::unavailable(key, format!("more than {max} bytes were sent")));
            }
            Ok(None) => return Ok(body.freeze()),
            Err(e) => return Err(RemoteError::unavailable(key, chain(&e))),
        }
    }
}

fn tag(headers: &HeaderMap) -> Option<Tag> {
    headers.get(TAG_HEADER).and_then(|tag| tag.to_str().ok()).and_then(parse_tag)
}

fn no_tag() -> String {
    format!("no `{TAG_HEADER}`")
}

/// The bytes that an answer says it has of an object: `bytes FIRST-LAST/…`.
fn part(headers: &HeaderMap) -> Option<Range<u64>> {
    let (covered, _length) =
        headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = covered.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?)
}

fn code(answer: &Response) -> Option<&str> {
    answer.headers().get(ERROR_HEADER)?.to_str().ok()
}

/// The error and its causes: reqwest's own text leaves them out.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[async_trait]
impl Remote for HttpRemote {
    async fn get(&self, key: &str) -> Result<Bytes, RemoteError> {
        let answer = self.send(key, self.request(Method::GET, key)?, Kind::Read).await?;
        Ok(self.whole(key, answer).await?.0)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        // HTTP has no range of nothing; one byte tells whether the object is there.
        let asked = if range.is_empty() { range.start..range.start.saturating_add(1) } else { range.clone() };
        let value = format!("bytes={}-{}", asked.start, asked.end - 1);
        let request = self.request(Method::GET, key)?.header(RANGE, value);
        let answer = request.send().await.map_err(|e| RemoteError::unavailable(key, chain(&e)))?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let max =
                    usize::try_from(asked.end - asked.start).unwrap_or(usize::MAX).min(OBJECT_BYTES_MAX);
                let part = part(answer.headers());
                let found = body(key, answer, max).await?;
                if part != Some(asked.start..asked.start.saturating_add(found.len() as u64)) {
                    let what = format!("{} bytes for {asked:?}, said to be {part:?}", found.len());
                    return Err(self.strange(key, &what));
                }
                Ok(if range.is_empty() { Bytes::new() } else { found })
            }
            StatusCode::RANGE_NOT_SATISFIABLE if code(&answer) == Some(errors::RANGE_PAST_END) => {
                Ok(Bytes::new())
            }
            // A cache between may answer with the whole object.
            StatusCode::OK => Ok(slice(&self.whole(key, answer).await?.0, range)),
            status if status.is_success() => Err(self.strange(key, &format!("{status}"))),
            _ => Err(self.failure(key, answer, Kind::Read).await),
        }
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.write(key, body, Kind::Create, None).await.map(drop)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.write(key, body, Kind::Overwrite, None).await.map(drop)
    }

    async fn get_tagged(&self, key: &str) -> Result<(Bytes, Tag), RemoteError> {
        let answer = self.send(key, self.request(Method::GET, key)?, Kind::Read).await?;
        self.whole(key, answer).await
    }

    async fn update(&self, key: &str, body: Bytes, unchanged: &Tag) -> Result<Tag, RemoteError> {
        let answer = self.write(key, body, Kind::Update, Some(unchanged)).await?;
        tag(answer.headers()).ok_or_else(|| self.strange(key, &no_tag()))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        check_prefix(prefix)?;
        let mut rows: Vec<Listed> = Vec::new();
        while rows.len() < limit {
            let asked = (limit - rows.len()).min(LIST_ROWS_MAX);
            let last = rows.last().map(|row| row.key.clone());
            let page = self.list_page(prefix, last.as_deref().or(after), asked).await?;
            let more = page.len() == asked;
            rows.extend(page);
            if !more {
                break;
            }
        }
        Ok(rows)
    }

    async fn delete(&self, key: &str) -> Result<(), RemoteError> {
        self.send(key, self.request(Method::DELETE, key)?, Kind::Overwrite).await.map(drop)
    }

    fn url(&self) -> String {
        self.url.clone()
    }
}
