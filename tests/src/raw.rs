//! Talking to a server by hand: bytes of HTTP, frames of a WebSocket, and whether it is still well.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value as Json, json};
use sqlsync_layer::client::{Client, ClientConfig};
use sqlsync_layer::protocol::ServerMessage;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::process::PATIENCE;

/// Waits for something that is to happen.
///
/// # Panics
///
/// If it does not in time.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Sends one HTTP/1.1 request whose first line and headers are `head` (without `Host` and length); the
/// answer's status and JSON body.
///
/// # Panics
///
/// If the answer is not one of this server's.
pub async fn request(address: &str, head: &str, body: &[u8]) -> (u16, Json) {
    let head =
        format!("{head}\r\nhost: {address}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let answer = exchange(address, &[head.as_bytes(), body].concat()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer but {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status in {head:?}"));
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {status} {body:?}")))
}

/// Sends bytes and reads until the server closes.
///
/// # Panics
///
/// If it does not close in time.
pub async fn exchange(address: &str, bytes: &[u8]) -> String {
    let stream = TcpStream::connect(address).await;
    let mut stream = stream.unwrap_or_else(|error| panic!("{address}: {error}"));
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    // The server may answer and hang up before it has read all of what it refuses.
    let (_written, _read) =
        soon("an answer", async { tokio::join!(writer.write_all(bytes), reader.read_to_end(&mut answer)) })
            .await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A WebSocket without a client behind it.
#[derive(Debug)]
pub struct Raw(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Raw {
    /// Opens a socket to a volume; nothing is said yet.
    ///
    /// # Panics
    ///
    /// If the server declines.
    pub async fn dial(address: &str, volume: &str) -> Raw {
        let url = format!("ws://{address}/v1/volumes/{volume}/sync");
        let dialled = soon("a socket", tokio_tungstenite::connect_async(&url)).await;
        Raw(dialled.unwrap_or_else(|error| panic!("{url}: {error}")).0)
    }

    /// Opens a socket and is welcomed as `client`.
    ///
    /// # Panics
    ///
    /// If it is not.
    pub async fn connect(address: &str, volume: &str, client: &str) -> Raw {
        let mut raw = Raw::dial(address, volume).await;
        raw.say(json!({ "type": "hello", "protocols": [1], "client": client })).await;
        match raw.hear().await {
            ServerMessage::Welcome { .. } => raw,
            other => panic!("no welcome but {other:?}"),
        }
    }

    /// Sends a text frame. A server that hung up already is no fault of the test.
    pub async fn send(&mut self, text: impl Into<String>) {
        drop(soon("a frame sent", self.0.send(Message::text(text.into()))).await);
    }

    /// Sends a binary frame.
    pub async fn send_binary(&mut self, bytes: Vec<u8>) {
        drop(soon("a frame sent", self.0.send(Message::binary(bytes))).await);
    }

    /// Sends a message.
    pub async fn say(&mut self, message: Json) {
        self.send(message.to_string()).await;
    }

    /// The next message; `None` once the server has closed.
    ///
    /// # Panics
    ///
    /// If a frame is not a message.
    pub async fn next(&mut self) -> Option<ServerMessage> {
        loop {
            match soon("a message", self.0.next()).await {
                Some(Ok(Message::Text(text))) => {
                    let message = ServerMessage::from_json(&text);
                    return Some(message.unwrap_or_else(|error| panic!("{error}: {text}")));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                None | Some(Ok(Message::Close(_))) => return None,
                Some(Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed)) => {
                    return None;
                }
                // The server may hang up before it has read all of what it refuses.
                Some(Err(tungstenite::Error::Io(_) | tungstenite::Error::Protocol(_))) => return None,
                Some(other) => panic!("{other:?}"),
            }
        }
    }

    /// The next message.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub async fn hear(&mut self) -> ServerMessage {
        self.next().await.unwrap_or_else(|| panic!("the server hung up"))
    }

    /// Reads the final `error` and the end of the connection; the error's code.
    ///
    /// # Panics
    ///
    /// If the server says something else.
    pub async fn refused(mut self, why: &str) -> String {
        match self.next().await {
            Some(ServerMessage::Error { reason }) => {
                assert!(reason.message.len() > 10 && reason.message.len() < 1000, "{why}: {reason}");
                assert_eq!(self.next().await, None, "{why}: something after the error");
                reason.code
            }
            other => panic!("{why}: {other:?} instead of an error"),
        }
    }
}

/// Someone well-behaved on the same server: does it still serve?
#[derive(Debug)]
pub struct Bystander {
    address: String,
    client: Client,
    tasks: u64,
}

impl Bystander {
    /// Connects to the volume `todo`, which has a list `home`.
    ///
    /// # Panics
    ///
    /// If it cannot.
    pub async fn connect(address: &str) -> Bystander {
        let mut config = ClientConfig::new(format!("http://{address}"), "todo");
        config.connect_timeout = Some(PATIENCE);
        config.session.backoff_max = Duration::from_millis(200);
        let client = Client::connect(config).await.unwrap_or_else(|error| panic!("{error}"));
        Bystander { address: address.into(), client, tasks: 0 }
    }

    /// The server is healthy, and a good mutation becomes durable.
    ///
    /// # Panics
    ///
    /// If not; `after` says after what.
    pub async fn check(&mut self, after: &str) {
        let (status, health) = request(&self.address, "GET /v1/health HTTP/1.1", b"").await;
        assert_eq!((status, &health["status"]), (200, &json!("ok")), "after {after}");
        self.tasks += 1;
        let args =
            json!({ "id": format!("{}-{}", self.client.id(), self.tasks), "list": "home", "title": "good" });
        let mutation = self.client.mutate("add_task", args).await;
        let mutation = mutation.unwrap_or_else(|error| panic!("after {after}: {error}"));
        let durable = soon(after, mutation.durable()).await;
        assert!(durable.is_ok(), "after {after}: {durable:?}");
    }
}
