//! An object store in memory that speaks S3, delays every request by a fixed time, and counts.
//!
//! Every system of the storage benchmark talks to this one, ours too. It does what they need of S3 and no
//! more: objects with `If-None-Match`, `If-Match` and `Range`, both listings, multipart uploads, deletes.
//! It checks no signature. What it does not know it refuses with 501 and counts as [`Counts::refused`], so
//! that nothing fails unseen.
//!
//! Invariants: a request waits its delay, however many are under way; an object is replaced whole.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, LAST_MODIFIED, RANGE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;

/// The bucket that exists. Every other does too.
pub const BUCKET: &str = "bench";
/// What objects were last modified at: nobody's result may hang on the clock.
const MODIFIED: &str = "Sun, 01 Jan 2023 00:00:00 GMT";
const MODIFIED_ISO: &str = "2023-01-01T00:00:00.000Z";
const LIST_MAX: usize = 1000;

/// Requests and bytes since the last [`Store::take`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// GET and HEAD of objects.
    pub gets: u64,
    /// PUT, POST and DELETE.
    pub puts: u64,
    /// Listings.
    pub lists: u64,
    /// Bytes of bodies sent to the client.
    pub down: u64,
    /// Bytes of bodies received.
    pub up: u64,
    /// Requests that this store does not know.
    pub refused: u64,
}

impl Counts {
    /// All requests.
    pub fn requests(self) -> u64 {
        self.gets + self.puts + self.lists
    }
}

struct Object {
    body: Bytes,
    tag: String,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, BTreeMap<u32, Bytes>>,
    made: u64,
    counts: Counts,
}

/// The store, served until it is dropped.
pub struct Store {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    delay_us: AtomicU64,
}

impl Drop for Store {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Store {
    /// Serves an empty one on a free port of loopback, without delay.
    pub async fn start() -> anyhow::Result<Store> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { state: Mutex::default(), delay_us: AtomicU64::new(0) });
        let serving = shared.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { return };
                // A packet waits for nothing; the delay is ours alone.
                if socket.set_nodelay(true).is_err() {
                    continue;
                }
                let shared = serving.clone();
                let answer = service_fn(move |request| {
                    let shared = shared.clone();
                    async move { Ok::<_, Infallible>(shared.answer(request).await) }
                });
                // A client that hangs up is none of our errors.
                tokio::spawn(async move {
                    drop(http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await)
                });
            }
        });
        Ok(Store { shared, address, accepting })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What every request waits from now on.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// What was counted since the last time.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut self.shared.state.lock().counts)
    }

    /// Bytes of all objects under `prefix`, and how many there are.
    pub fn stored(&self, prefix: &str) -> (u64, usize) {
        let state = self.shared.state.lock();
        let under = state.objects.iter().filter(|(key, _)| key.starts_with(prefix));
        under.fold((0, 0), |(bytes, count), (_, object)| (bytes + object.body.len() as u64, count + 1))
    }

    /// Removes all objects under `prefix`.
    pub fn clear(&self, prefix: &str) {
        self.shared.state.lock().objects.retain(|key, _| !key.starts_with(prefix));
    }
}

type Answer = Response<Full<Bytes>>;

fn answer(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

fn xml(body: String) -> Answer {
    let mut response = answer(StatusCode::OK, format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

fn fault(status: StatusCode, code: &str) -> Answer {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    );
    let mut response = answer(status, text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return fault(StatusCode::BAD_REQUEST, "IncompleteBody") };
        let body = body.to_bytes();
        let up = body.len() as u64;
        let delay = Duration::from_micros(self.delay_us.load(Ordering::Relaxed));
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let body = match unchunked(&head.headers, body) {
            Some(body) => body,
            None => return fault(StatusCode::BAD_REQUEST, "MalformedChunks"),
        };
        let path = decoded(head.uri.path());
        let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
        let query = Query::of(head.uri.query().unwrap_or(""));
        let mut state = self.state.lock();
        let method = &head.method;
        let listing = *method == Method::GET && key.is_empty();
        if listing {
            state.counts.lists += 1;
        } else if *method == Method::GET || *method == Method::HEAD {
            state.counts.gets += 1;
        } else {
            state.counts.puts += 1;
        }
        let response = if listing {
            state.bucket(&query)
        } else {
            state.object(method, key, &query, &head.headers, body)
        };
        if response.status() == StatusCode::NOT_IMPLEMENTED {
            state.counts.refused += 1;
        }
        state.counts.up += up;
        if *method != Method::HEAD {
            state.counts.down += hyper::body::Body::size_hint(response.body()).exact().unwrap_or(0);
        }
        response
    }
}

impl State {
    fn object(
        &mut self,
        method: &Method,
        key: &str,
        query: &Query,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Answer {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        match (method.as_str(), query.get("uploadId"), query.get("partNumber")) {
            ("HEAD", _, _) if key.is_empty() => answer(StatusCode::OK, ""),
            ("GET" | "HEAD", None, None) => self.read(method, key, headers),
            ("PUT", None, None) if header("x-amz-copy-source").is_none() => {
                let found = self.objects.get(key);
                if header("if-none-match").is_some() && found.is_some() {
                    return fault(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
                }
                if let Some(tag) = header("if-match")
                    && found.is_none_or(|found| found.tag.trim_matches('"') != tag.trim_matches('"'))
                {
                    return fault(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
                }
                let mut response = answer(StatusCode::OK, "");
                let tag = self.keep(key, body);
                response.headers_mut().insert(ETAG, value(&tag));
                response
            }
            ("POST", None, None) if query.get("delete").is_some() => {
                let text = String::from_utf8_lossy(&body).into_owned();
                let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
                keys.for_each(|key| drop(self.objects.remove(key)));
                xml("<DeleteResult/>".into())
            }
            ("POST", None, None) if query.get("uploads").is_some() => {
                self.made += 1;
                let id = format!("upload-{}", self.made);
                self.uploads.insert(id.clone(), BTreeMap::new());
                let text =
                    format!("<Bucket>{BUCKET}</Bucket><Key>{}</Key><UploadId>{id}</UploadId>", escaped(key));
                xml(format!("<InitiateMultipartUploadResult>{text}</InitiateMultipartUploadResult>"))
            }
            ("PUT", Some(id), Some(part)) => {
                let Some(parts) = self.uploads.get_mut(id) else {
                    return fault(StatusCode::NOT_FOUND, "NoSuchUpload");
                };
                let Ok(part) = part.parse() else { return fault(StatusCode::BAD_REQUEST, "InvalidPart") };
                parts.insert(part, body);
                let mut response = answer(StatusCode::OK, "");
                response.headers_mut().insert(ETAG, value(&format!("\"{part:032x}\"")));
                response
            }
            ("POST", Some(id), None) => {
                let Some(parts) = self.uploads.remove(id) else {
                    return fault(StatusCode::NOT_FOUND, "NoSuchUpload");
                };
                let whole: Vec<u8> = parts.values().flat_map(|part| part.iter().copied()).collect();
                let tag = escaped(&self.keep(key, whole.into()));
                let text = format!("<Bucket>{BUCKET}</Bucket><Key>{}</Key><ETag>{tag}</ETag>", escaped(key));
                xml(format!("<CompleteMultipartUploadResult>{text}</CompleteMultipartUploadResult>"))
            }
            ("DELETE", Some(id), _) => {
                self.uploads.remove(id);
                answer(StatusCode::NO_CONTENT, "")
            }
            ("DELETE", None, _) => {
                self.objects.remove(key);
                answer(StatusCode::NO_CONTENT, "")
            }
            _ => fault(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
        }
    }

    fn keep(&mut self, key: &str, body: Bytes) -> String {
        self.made += 1;
        let tag = format!("\"{:032x}\"", self.made);
        self.objects.insert(key.into(), Object { body, tag: tag.clone() });
        tag
    }

    fn read(&self, method: &Method, key: &str, headers: &HeaderMap) -> Answer {
        let Some(object) = self.objects.get(key) else { return fault(StatusCode::NOT_FOUND, "NoSuchKey") };
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if header("if-none-match").is_some_and(|tag| tag == object.tag) {
            return answer(StatusCode::NOT_MODIFIED, "");
        }
        let total = object.body.len();
        let range = match headers.get(RANGE).and_then(|value| value.to_str().ok()) {
            None => None,
            Some(text) => match range_of(text, total) {
                Some(range) => Some(range),
                None => return fault(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange"),
            },
        };
        let (status, body) = match &range {
            Some(range) => (StatusCode::PARTIAL_CONTENT, object.body.slice(range.clone())),
            None => (StatusCode::OK, object.body.clone()),
        };
        let length = body.len();
        // To a HEAD the server sends the headers alone.
        let mut response = answer(status, if *method == Method::HEAD { Bytes::new() } else { body });
        let out = response.headers_mut();
        out.insert(CONTENT_LENGTH, HeaderValue::from(length));
        out.insert(ETAG, value(&object.tag));
        out.insert(LAST_MODIFIED, HeaderValue::from_static(MODIFIED));
        if let Some(range) = range {
            out.insert(CONTENT_RANGE, value(&format!("bytes {}-{}/{total}", range.start, range.end - 1)));
        }
        response
    }

    /// A listing, or another question about the bucket.
    fn bucket(&self, query: &Query) -> Answer {
        if query.get("location").is_some() {
            return xml("<LocationConstraint>us-east-1</LocationConstraint>".into());
        }
        if query.get("uploads").is_some() || query.get("versioning").is_some() {
            return fault(StatusCode::NOT_IMPLEMENTED, "NotImplemented");
        }
        let prefix = query.get("prefix").unwrap_or("");
        let delimiter = query.get("delimiter").unwrap_or("");
        let two = query.get("list-type") == Some("2");
        let after = if two {
            query.get("continuation-token").or(query.get("start-after"))
        } else {
            query.get("marker")
        };
        let max = query.get("max-keys").and_then(|text| text.parse().ok()).unwrap_or(LIST_MAX).min(LIST_MAX);
        let (mut rows, mut groups, mut last, mut more) =
            (String::new(), Vec::<String>::new(), String::new(), false);
        let mut count = 0;
        for (key, object) in self.objects.range(prefix.to_string()..) {
            let Some(rest) = key.strip_prefix(prefix) else { break };
            let group = if delimiter.is_empty() { None } else { rest.find(delimiter) };
            let group = group.map(|at| format!("{prefix}{}", &rest[..at + delimiter.len()]));
            if after.is_some_and(|after| {
                key.as_str() <= after || group.as_ref().is_some_and(|group| after.starts_with(group))
            }) {
                continue;
            }
            if group.is_some() && groups.last() == group.as_ref() {
                continue;
            }
            if count == max {
                more = true;
                break;
            }
            count += 1;
            last.clone_from(group.as_ref().unwrap_or(key));
            match group {
                Some(group) => groups.push(group),
                None => rows.push_str(&format!(
                    "<Contents><Key>{}</Key><LastModified>{MODIFIED_ISO}</LastModified><ETag>{}</ETag><Size>{}</Size>\
                     <StorageClass>STANDARD</StorageClass></Contents>",
                    escaped(key),
                    escaped(&object.tag),
                    object.body.len()
                )),
            }
        }
        for group in &groups {
            rows.push_str(&format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(group)));
        }
        let next = if more {
            let name = if two { "NextContinuationToken" } else { "NextMarker" };
            format!("<{name}>{}</{name}>", escaped(&last))
        } else {
            String::new()
        };
        xml(format!(
            "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{BUCKET}</Name><Prefix>{}</Prefix>\
             <KeyCount>{count}</KeyCount><MaxKeys>{max}</MaxKeys><IsTruncated>{more}</IsTruncated>{next}{rows}</ListBucketResult>",
            escaped(prefix)
        ))
    }
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// `bytes=a-b`, `bytes=a-` or `bytes=-n` of an object of `total` bytes.
fn range_of(text: &str, total: usize) -> Option<std::ops::Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first, last) {
        ("", tail) => total.saturating_sub(tail.parse().ok()?)..total,
        (first, "") => first.parse().ok()?..total,
        (first, last) => first.parse().ok()?..last.parse::<usize>().ok()?.checked_add(1)?.min(total),
    };
    (range.start < range.end).then_some(range)
}

/// The body of an upload in signed chunks: `SIZE;…\r\n`, that many bytes, `\r\n`, and so on until size 0.
fn unchunked(headers: &HeaderMap, body: Bytes) -> Option<Bytes> {
    let is = |name: &str, text: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|found| found.contains(text))
    };
    if !is("content-encoding", "aws-chunked") && !is("x-amz-content-sha256", "STREAMING-") {
        return Some(body);
    }
    let mut out = Vec::with_capacity(body.len());
    let mut rest = &body[..];
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let line = std::str::from_utf8(&rest[..end]).ok()?;
        let size = usize::from_str_radix(line.split(';').next()?, 16).ok()?;
        if size == 0 {
            return Some(out.into());
        }
        let from = end + 2;
        out.extend_from_slice(rest.get(from..from.checked_add(size)?)?);
        rest = rest.get(from + size + 2..)?;
    }
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = || std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok();
        match (bytes[at] == b'%').then(|| hex().and_then(|hex| u8::from_str_radix(hex, 16).ok())).flatten() {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

struct Query(BTreeMap<String, String>);

impl Query {
    fn of(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(&value.replace('+', " ")))
        };
        Query(pairs.map(pair).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_of_the_object() {
        for (text, range) in [
            ("bytes=0-3", Some(0..4)),
            ("bytes=8-", Some(8..10)),
            ("bytes=-4", Some(6..10)),
            ("bytes=4-99", Some(4..10)),
        ] {
            assert_eq!(range_of(text, 10), range, "{text}");
        }
        for wrong in ["bytes=10-12", "bytes=4-3", "0-3", "bytes=a-b"] {
            assert_eq!(range_of(wrong, 10), None, "{wrong}");
        }
    }

    #[test]
    fn signed_chunks_are_taken_apart() {
        let mut headers = HeaderMap::new();
        headers.insert("content-encoding", HeaderValue::from_static("aws-chunked"));
        let body =
            Bytes::from_static(b"3;chunk-signature=x\r\nabc\r\n2\r\nde\r\n0\r\nx-amz-checksum:1\r\n\r\n");
        assert_eq!(unchunked(&headers, body.clone()).unwrap(), "abcde");
        assert_eq!(unchunked(&HeaderMap::new(), body.clone()).unwrap(), body);
        assert_eq!(unchunked(&headers, Bytes::from_static(b"9\r\nabc\r\n0\r\n")), None);
    }

    #[test]
    fn a_listing_has_groups_and_pages() {
        let mut state = State::default();
        for key in ["a/1", "a/2", "b", "c/1"] {
            state.keep(key, Bytes::new());
        }
        let text = |query: &str| {
            let body = state.bucket(&Query::of(query)).into_body().collect();
            let body = futures::executor::block_on(body).unwrap().to_bytes();
            String::from_utf8(body.to_vec()).unwrap()
        };
        let all = text("list-type=2&delimiter=%2F");
        assert!(
            all.contains("<Prefix>a/</Prefix>")
                && all.contains("<Key>b</Key>")
                && all.contains("<KeyCount>3<"),
            "{all}"
        );
        let first = text("list-type=2&max-keys=1&prefix=a%2F");
        assert!(first.contains("<Key>a/1</Key>") && first.contains("<IsTruncated>true<"), "{first}");
        let rest = text("list-type=2&prefix=a%2F&continuation-token=a%2F1");
        assert!(
            !rest.contains("a/1</Key>")
                && rest.contains("<Key>a/2</Key>")
                && rest.contains("<IsTruncated>false<"),
            "{rest}"
        );
    }
}
