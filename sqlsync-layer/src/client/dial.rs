//! From a server's address to an open WebSocket.

use std::time::Duration;

use graft::VolumeName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{self, http, protocol::WebSocketConfig};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use url::Url;

use super::ConnectError;
use crate::protocol::{Reason, SERVER_FRAME_BYTES_MAX, codes};

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How long one try may take.
const DIAL_MAX: Duration = Duration::from_secs(10);

/// Why a socket did not open.
pub(super) enum DialError {
    /// The server answered that it will not (a 4xx).
    Declined(Reason),
    /// Anything else; it may pass.
    Failed(String),
}

/// The `sync` address of a volume.
pub(super) fn target(base: &str, volume: &VolumeName) -> Result<Url, ConnectError> {
    let wrong = |message: &str| ConnectError::Url { url: base.into(), message: message.into() };
    let mut url = Url::parse(base).map_err(|error| wrong(&error.to_string()))?;
    let scheme = match url.scheme() {
        "http" | "ws" => "ws",
        "https" | "wss" => return Err(wrong("TLS is not built into this client yet")),
        _other => return Err(wrong("it must begin with http:// or ws://")),
    };
    if url.host_str().is_none_or(str::is_empty) {
        return Err(wrong("it names no host"));
    }
    url.set_scheme(scheme).map_err(|()| wrong("it must begin with http:// or ws://"))?;
    let path = format!("{}/v1/volumes/{volume}/sync", url.path().trim_end_matches('/'));
    url.set_path(&path);
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

/// Opens a socket to `target`.
pub(super) async fn dial(target: Url) -> Result<Socket, DialError> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(SERVER_FRAME_BYTES_MAX))
        .max_frame_size(Some(SERVER_FRAME_BYTES_MAX));
    let dialled = connect_async_with_config(target.as_str(), Some(config), true);
    match tokio::time::timeout(DIAL_MAX, dialled).await {
        Ok(Ok((socket, _response))) => Ok(socket),
        Ok(Err(tungstenite::Error::Http(response))) => Err(declined(&response)),
        Ok(Err(error)) => Err(DialError::Failed(error.to_string())),
        Err(_elapsed) => Err(DialError::Failed(format!("no answer within {DIAL_MAX:?}"))),
    }
}

fn declined(response: &http::Response<Option<Vec<u8>>>) -> DialError {
    #[derive(Deserialize)]
    struct Body {
        error: Reason,
    }
    let status = response.status();
    let body: Option<Body> = response.body().as_deref().and_then(|body| serde_json::from_slice(body).ok());
    let reason = match body {
        Some(body) => body.error,
        // Not our server, or its answer came in pieces.
        None => Reason::new(
            codes::UNAVAILABLE,
            format!("the server answered HTTP {status} instead of a WebSocket"),
        ),
    };
    if status.is_client_error() { DialError::Declined(reason) } else { DialError::Failed(reason.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_sync_urls_or_readable_errors() {
        let todo: VolumeName = "todo".parse().unwrap();
        for (base, url) in [
            ("http://127.0.0.1:4600", "ws://127.0.0.1:4600/v1/volumes/todo/sync"),
            ("http://localhost:1/", "ws://localhost:1/v1/volumes/todo/sync"),
            ("ws://[::1]:9/under/?a#b", "ws://[::1]:9/under/v1/volumes/todo/sync"),
        ] {
            assert_eq!(target(base, &todo).unwrap().as_str(), url, "{base}");
        }
        for base in ["", "127.0.0.1:4600", "file:///x", "https://x", "http://", "%s"] {
            let error = target(base, &todo).unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:4600"), "{error}");
        }
    }
}
