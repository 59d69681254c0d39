//! Objects of the store, for replicas without the bucket's credentials: the server's half of
//! [`graft::remote::http`], whose table lists the requests.
//!
//! | keys that are served | cached |
//! | --- | --- |
//! | `volumes/{id}/meta`, `…/log/…`, `…/segments/…`, `…/checkpoints/…` | for ever |
//! | `modules/{sha256}` | for ever |
//! | `volumes/{id}/owner`, `…/forks/…`, `…/pins/…`, `…/readers/…`, `…/horizon/…`, `…/bottom/…` | never |
//! | `names/{name}`, `removals/{name}`, `probe/…` | never |
//!
//! For ever is right for a log or checkpoint key too, although gc later puts a tombstone there: what
//! was read stays the commit that this LSN is, and its tombstone says no more.
//!
//! Invariants: no other key leaves or enters the store, whatever the path says; without
//! `--allow-remote-writes` no request writes; an answer that says that an object is not there, and any
//! error, is never cached.

use std::ops::Range;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Json, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::BytesMut;
use futures::StreamExt as _;
use graft::remote::http::{
    ERROR_HEADER, LIST_ROWS_MAX, OBJECT_BYTES_MAX, TAG_HEADER, errors, format_row, format_tag, parse_tag,
};
use graft::remote::{RemoteError, SharedRemote, check_key};
use graft::{ModuleHash, VolumeId, VolumeName};
use serde::Deserialize;
use sqlsync_layer::protocol::Reason;

use super::ErrorBody;

/// What the routes need.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    remote: SharedRemote,
    writes: bool,
}

/// The routes. They write where `writes`.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(remote: SharedRemote, writes: bool) -> Router<S> {
    Router::new()
        .route("/v1/objects", get(list))
        .route("/v1/objects/{*key}", get(read).put(write).delete(delete))
        .with_state(Objects { remote, writes })
}

/// Why a request for an object was not served.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ObjectError {
    /// What the path or the query says is nothing that is served.
    #[error("{0}")]
    Key(String),
    /// A header is not one that this route takes.
    #[error("{0}")]
    Header(&'static str),
    /// Writes are not allowed here.
    #[error(
        "this server takes no writes of objects; start it with --allow-remote-writes, or write to the bucket"
    )]
    ReadOnly,
    /// The body is too large or did not come.
    #[error("the object was not received: {message}; at most {OBJECT_BYTES_MAX} bytes are accepted")]
    Body {
        /// What went wrong.
        message: String,
        /// Whether it is too large.
        too_large: bool,
    },
    /// The object ends before the range.
    #[error("the object ends before the range")]
    PastEnd,
    /// The store's answer.
    #[error(transparent)]
    Store(#[from] RemoteError),
}

impl ObjectError {
    fn answer(&self) -> (StatusCode, &'static str) {
        match self {
            ObjectError::Key(_) | ObjectError::Header(_) => (StatusCode::BAD_REQUEST, errors::BAD_KEY),
            ObjectError::ReadOnly => (StatusCode::FORBIDDEN, errors::READ_ONLY),
            ObjectError::Body { too_large: true, .. } => (StatusCode::PAYLOAD_TOO_LARGE, errors::BAD_OBJECT),
            ObjectError::Body { too_large: false, .. } => (StatusCode::BAD_REQUEST, errors::BAD_OBJECT),
            ObjectError::PastEnd => (StatusCode::RANGE_NOT_SATISFIABLE, errors::RANGE_PAST_END),
            ObjectError::Store(RemoteError::NotFound { .. }) => {
                (StatusCode::NOT_FOUND, errors::NO_SUCH_OBJECT)
            }
            ObjectError::Store(RemoteError::AlreadyExists { .. }) => {
                (StatusCode::PRECONDITION_FAILED, errors::OBJECT_EXISTS)
            }
            ObjectError::Store(RemoteError::Changed { .. }) => {
                (StatusCode::PRECONDITION_FAILED, errors::OBJECT_CHANGED)
            }
            ObjectError::Store(RemoteError::Refused { .. }) => {
                (StatusCode::BAD_GATEWAY, errors::STORE_REFUSED)
            }
            // Also what a store will be able to say in a later version.
            ObjectError::Store(RemoteError::Unavailable { .. } | _) => {
                (StatusCode::SERVICE_UNAVAILABLE, errors::STORE_UNAVAILABLE)
            }
        }
    }
}

impl IntoResponse for ObjectError {
    fn into_response(self) -> Response {
        let (status, code) = self.answer();
        if status.is_server_error() {
            tracing::warn!(code, error = %self, "request for an object failed");
        }
        let headers = [(ERROR_HEADER, code), (header::CACHE_CONTROL.as_str(), "no-store")];
        (status, headers, Json(ErrorBody { error: Reason::new(code, self.to_string()) })).into_response()
    }
}

/// Whether an object, once there, is the same for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Immutable,
    Mutable,
}

/// Which objects a path may name; the table above.
fn kind(key: &str) -> Option<Kind> {
    check_key(key).ok()?;
    let (family, rest) = key.split_once('/')?;
    match family {
        "volumes" => {
            let (id, object) = rest.split_once('/')?;
            let id_is_exact = id.parse::<VolumeId>().is_ok_and(|parsed| parsed.to_string() == id);
            let kind = match object.split_once('/') {
                None if object == "meta" => Kind::Immutable,
                None if object == "owner" => Kind::Mutable,
                Some(("log" | "segments" | "checkpoints", _)) => Kind::Immutable,
                Some(("forks" | "pins" | "readers" | "horizon" | "bottom", _)) => Kind::Mutable,
                None | Some(_) => return None,
            };
            id_is_exact.then_some(kind)
        }
        "names" | "removals" => rest.parse::<VolumeName>().is_ok().then_some(Kind::Mutable),
        "modules" => {
            rest.parse::<ModuleHash>().is_ok_and(|hash| hash.to_string() == rest).then_some(Kind::Immutable)
        }
        "probe" => Some(Kind::Mutable),
        _other => None,
    }
}

fn named(path: Result<Path<String>, PathRejection>) -> Result<(String, Kind), ObjectError> {
    let Path(key) =
        path.map_err(|_| ObjectError::Key("the path is not UTF-8 after percent-decoding".into()))?;
    let shown: String = key.chars().take(200).collect();
    let unknown = || {
        ObjectError::Key(format!(
            "`{}` is not the key of an object that is served; see docs/protocol.md for those that are",
            shown.escape_debug()
        ))
    };
    let kind = kind(&key).ok_or_else(unknown)?;
    Ok((key, kind))
}

/// The validator of an object that never changes: of the only version there is.
const ONLY: &str = "\"only\"";

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

fn cache_headers(headers: &mut HeaderMap, kind: Kind) {
    match kind {
        Kind::Immutable => {
            let for_ever = HeaderValue::from_static("public, max-age=31536000, immutable");
            headers.insert(header::CACHE_CONTROL, for_ever);
            headers.insert(header::ETAG, HeaderValue::from_static(ONLY));
        }
        Kind::Mutable => {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
    }
}

/// `bytes=A-B`, with both.
fn range(headers: &HeaderMap) -> Result<Option<Range<u64>>, ObjectError> {
    let Some(value) = headers.get(header::RANGE) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| {
        let (start, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        let (start, last): (u64, u64) = (start.parse().ok()?, last.parse().ok()?);
        (start <= last).then(|| start..last.saturating_add(1))
    });
    parsed.map(Some).ok_or(ObjectError::Header("the Range is not `bytes=FIRST-LAST`"))
}

async fn read(
    path: Result<Path<String>, PathRejection>,
    State(Objects { remote, .. }): State<Objects>,
    request: HeaderMap,
) -> Result<Response, ObjectError> {
    let (key, kind) = named(path)?;
    let mut headers = HeaderMap::new();
    cache_headers(&mut headers, kind);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let known = request.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    if kind == Kind::Immutable
        && known.is_some_and(|known| known.split(',').any(|known| known.trim() == ONLY))
    {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    let Some(range) = range(&request)? else {
        let (body, tag) = remote.get_tagged(&key).await?;
        headers.insert(TAG_HEADER, header_value(&format_tag(&tag)));
        return Ok((StatusCode::OK, headers, body).into_response());
    };
    let start = range.start;
    let body = remote.get_range(&key, range).await?;
    let Some(last) = (body.len() as u64).checked_sub(1) else { return Err(ObjectError::PastEnd) };
    // Its whole length would cost another request.
    let covered = format!("bytes {start}-{}/*", start.saturating_add(last));
    headers.insert(header::CONTENT_RANGE, header_value(&covered));
    Ok((StatusCode::PARTIAL_CONTENT, headers, body).into_response())
}

async fn write(
    path: Result<Path<String>, PathRejection>,
    State(Objects { remote, writes }): State<Objects>,
    request: Request,
) -> Result<Response, ObjectError> {
    let (request, body) = request.into_parts();
    let length = request.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length.and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > OBJECT_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let key = match named(path) {
        Ok((key, _)) if writes => Ok(key),
        Ok(_) => Err(ObjectError::ReadOnly),
        Err(error) => Err(error),
    };
    // Also what is refused is read to its end, and kept nowhere: a client that is still sending when
    // the connection closes hears no answer at all.
    let body = receive(body, key.is_ok()).await?;
    let key = key?;
    let mut headers = HeaderMap::new();
    match (request.headers.get(header::IF_NONE_MATCH), request.headers.get(header::IF_MATCH)) {
        (None, None) => remote.put(&key, body).await?,
        (Some(none), None) if none.as_bytes() == b"*" => remote.create(&key, body).await?,
        (None, Some(tag)) => {
            let tag = tag.to_str().ok().and_then(|tag| parse_tag(tag.strip_prefix('"')?.strip_suffix('"')?));
            let tag = tag.ok_or(ObjectError::Header("the If-Match is not one `graft-tag` in quotes"))?;
            let written = remote.update(&key, body, &tag).await?;
            headers.insert(TAG_HEADER, header_value(&format_tag(&written)));
        }
        (Some(_), None | Some(_)) => {
            return Err(ObjectError::Header("a PUT takes `If-None-Match: *` or one If-Match, not both"));
        }
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok((StatusCode::NO_CONTENT, headers).into_response())
}

fn too_large() -> ObjectError {
    ObjectError::Body { message: "it is larger".into(), too_large: true }
}

/// Reads a body to its end; empty unless it is kept.
async fn receive(body: Body, keep: bool) -> Result<Bytes, ObjectError> {
    let (mut stream, mut received, mut bytes) = (body.into_data_stream(), 0, BytesMut::new());
    while let Some(part) = stream.next().await {
        let part = part.map_err(|e| ObjectError::Body { message: e.to_string(), too_large: false })?;
        received += part.len();
        if received > OBJECT_BYTES_MAX {
            return Err(too_large());
        }
        if keep {
            bytes.extend_from_slice(&part);
        }
    }
    Ok(bytes.freeze())
}

async fn delete(
    path: Result<Path<String>, PathRejection>,
    State(Objects { remote, writes }): State<Objects>,
) -> Result<StatusCode, ObjectError> {
    let (key, _) = named(path)?;
    if !writes {
        return Err(ObjectError::ReadOnly);
    }
    remote.delete(&key).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The query of a listing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    prefix: String,
    after: Option<String>,
    limit: Option<usize>,
}

/// What may be listed below a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listing {
    /// Every key there can be one that is served.
    All,
    /// A whole volume, for who removes it: those keys there that are served.
    Served,
}

fn listing(prefix: &str) -> Option<Listing> {
    if !prefix.ends_with('/') {
        return None;
    }
    // `x` and `meta` stand for whatever is below.
    let is_served = |below: &str| kind(&format!("{prefix}{below}")).is_some();
    match (is_served("x"), is_served("meta")) {
        (true, _) => Some(Listing::All),
        (false, true) => Some(Listing::Served),
        (false, false) => None,
    }
}

async fn list(
    State(Objects { remote, .. }): State<Objects>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, ObjectError> {
    let Query(Wanted { prefix, after, limit }) =
        wanted.map_err(|error| ObjectError::Key(error.body_text()))?;
    let Some(listing) = listing(&prefix) else {
        let shown: String = prefix.chars().take(200).collect();
        return Err(ObjectError::Key(format!(
            "`{}` is not a prefix that is listed; see docs/protocol.md for those that are",
            shown.escape_debug()
        )));
    };
    let limit = limit.unwrap_or(LIST_ROWS_MAX).min(LIST_ROWS_MAX);
    let mut rows = remote.list(&prefix, after.as_deref(), limit).await?;
    if listing == Listing::Served {
        rows.retain(|row| kind(&row.key).is_some());
    }
    let text: String = rows.iter().map(format_row).collect();
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from(text)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn keys_that_a_store_of_ours_holds_are_served_and_nothing_else() {
        let hash = "ab".repeat(32);
        for (key, expected) in [
            (format!("volumes/{ID}/meta"), Kind::Immutable),
            (format!("volumes/{ID}/log/fffffffffffffffe"), Kind::Immutable),
            (format!("volumes/{ID}/segments/x-y-0001"), Kind::Immutable),
            (format!("volumes/{ID}/checkpoints/fffffffffffffffe"), Kind::Immutable),
            (format!("modules/{hash}"), Kind::Immutable),
            (format!("volumes/{ID}/owner"), Kind::Mutable),
            (format!("volumes/{ID}/forks/{ID}"), Kind::Mutable),
            (format!("volumes/{ID}/pins/{ID}/fffffffffffffffe"), Kind::Mutable),
            (format!("volumes/{ID}/readers/x"), Kind::Mutable),
            (format!("volumes/{ID}/horizon/fffffffffffffffe"), Kind::Mutable),
            ("names/todo".into(), Kind::Mutable),
            ("removals/todo".into(), Kind::Mutable),
            ("probe/passed-00".into(), Kind::Mutable),
        ] {
            assert_eq!(kind(&key), Some(expected), "{key}");
        }
        for key in [
            "",
            "volumes",
            "volumes/",
            "names/",
            "names/..",
            "names/a/b",
            "removals/..",
            "names/%2e%2e",
            "modules/xyz",
            "secrets/key",
            "/etc/passwd",
            "../names/todo",
            "volumes/../names/todo",
            "volumes/short/meta",
            ".graft-tmp/x",
            &format!("volumes/{ID}"),
            &format!("volumes/{ID}/"),
            &format!("volumes/{ID}/meta/x"),
            &format!("volumes/{ID}/owner/x"),
            &format!("volumes/{ID}/log"),
            &format!("volumes/{ID}/log/"),
            &format!("volumes/{ID}/log/../owner"),
            &format!("volumes/{ID}/log//x"),
            &format!("volumes/{ID}/secret/x"),
            &format!("volumes/{}/meta", ID.to_uppercase()),
            &format!("modules/{}", hash.to_uppercase()),
            &format!("volumes/{ID}/log/\0"),
            &format!("volumes/{ID}/log/{}", "x".repeat(256)),
        ] {
            assert_eq!(kind(key), None, "{key:?}");
        }
    }

    #[test]
    fn prefixes_lead_to_served_keys_alone() {
        for prefix in [
            "names/".to_string(),
            format!("volumes/{ID}/log/"),
            format!("volumes/{ID}/segments/a/"),
            "probe/".into(),
        ] {
            assert_eq!(listing(&prefix), Some(Listing::All), "{prefix}");
        }
        assert_eq!(listing(&format!("volumes/{ID}/")), Some(Listing::Served));
        for prefix in ["", "/", "volumes/", "names/a/", "names", "modules/", "volumes/short/", "../"] {
            assert_eq!(listing(prefix), None, "{prefix}");
        }
    }

    #[test]
    fn ranges_are_first_and_last() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, text.parse().unwrap());
            range(&headers)
        };
        assert_eq!(parse("bytes=0-0").unwrap(), Some(0..1));
        assert_eq!(parse("bytes=7-18446744073709551615").unwrap(), Some(7..u64::MAX));
        for bad in
            ["", "bytes=", "bytes=5-", "bytes=-5", "bytes=5-4", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(range(&HeaderMap::new()).unwrap(), None);
    }
}
