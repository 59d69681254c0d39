//! A coordinator on loopback, and clients of every manner.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coordinator::{Config, Coordinator, Running};
use futures::{SinkExt as _, StreamExt as _};
use graft::remote::{MemoryRemote, SharedRemote};
use serde_json::Value;
use sqlsync_layer::client::{Client, ClientConfig};
use sqlsync_layer::protocol::ServerMessage;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

pub const HELLO: &str = r#"{"type":"hello","protocols":[1],"client":"raw"}"#;

pub fn memory() -> SharedRemote {
    Arc::new(MemoryRemote::new())
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

pub async fn start(store: SharedRemote) -> Running {
    start_with(store, |_| {}).await
}

pub async fn start_with(store: SharedRemote, change: impl FnOnce(&mut Config)) -> Running {
    let mut config = Config::new(store, loopback(0));
    change(&mut config);
    Coordinator::start(config).await.unwrap()
}

/// The todo module, as `cargo xtask build` leaves it.
pub fn todo_wasm() -> Vec<u8> {
    let folder = std::env::var_os("GRAFT_REDUCERS").map(PathBuf::from);
    let folder =
        folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/reducers"));
    let path = folder.join("todo.wasm");
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; run `cargo xtask build`, or set GRAFT_REDUCERS to its folder", path.display())
    })
}

/// A coordinator with a volume `todo` and one list in it.
pub async fn start_todo(store: SharedRemote, change: impl FnOnce(&mut Config)) -> Running {
    let running = start_with(store, change).await;
    let (status, body) = post(&running, "/v1/volumes/todo/modules", &todo_wasm()).await;
    assert_eq!(status, 200, "{body}");
    let client = client(&running).await;
    let list = client.mutate("create_list", serde_json::json!({ "id": "l", "name": "L" })).await.unwrap();
    list.durable().await.unwrap();
    client.close().await;
    running
}

pub fn client_config(running: &Running) -> ClientConfig {
    let mut config = ClientConfig::new(running.url(), "todo");
    config.session.backoff_min = Duration::from_millis(5);
    config.session.backoff_max = Duration::from_millis(50);
    config
}

pub async fn client(running: &Running) -> Client {
    Client::connect(client_config(running)).await.unwrap()
}

pub async fn add(client: &Client, id: &str, title: &str) {
    let args = serde_json::json!({ "id": id, "list": "l", "title": title });
    client.mutate("add_task", args).await.unwrap().durable().await.unwrap();
}

/// One HTTP/1.1 request; the answer's status and JSON body.
pub async fn request(running: &Running, head: &str, body: &[u8]) -> (u16, Value) {
    let mut stream = TcpStream::connect(running.addr()).await.unwrap();
    let head = format!("{head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer and hang up before it has read all of a body that it refuses.
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let (_written, _read) = tokio::join!(writer.write_all(body), reader.read_to_end(&mut answer));
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer but {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    (status, body)
}

pub async fn get(running: &Running, path: &str) -> (u16, Value) {
    request(running, &format!("GET {path} HTTP/1.1\r\nhost: {}", running.addr()), b"").await
}

pub async fn post(running: &Running, path: &str, body: &[u8]) -> (u16, Value) {
    request(running, &format!("POST {path} HTTP/1.1\r\nhost: {}", running.addr()), body).await
}

/// A WebSocket without a client behind it.
pub struct Raw(pub WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Raw {
    pub async fn dial(running: &Running, volume: &str) -> Result<Raw, tungstenite::Error> {
        let url = format!("ws://{}/v1/volumes/{volume}/sync", running.addr());
        tokio_tungstenite::connect_async(url).await.map(|(socket, _)| Raw(socket))
    }

    /// Dialled and welcomed.
    pub async fn connect(running: &Running, client: &str) -> Raw {
        Raw::dial(running, "todo").await.unwrap().welcomed(client).await
    }

    /// Dialled with a receive buffer so small that little is under way while nobody reads.
    pub async fn connect_narrow(running: &Running, client: &str) -> Raw {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(running.addr()).await.unwrap();
        let url = format!("ws://{}/v1/volumes/todo/sync", running.addr());
        let dialled = tokio_tungstenite::client_async(url, MaybeTlsStream::Plain(stream)).await;
        Raw(dialled.unwrap().0).welcomed(client).await
    }

    async fn welcomed(self, client: &str) -> Raw {
        let mut raw = self;
        raw.send(&HELLO.replace("raw", client)).await;
        let welcome = raw.receive().await;
        assert!(matches!(welcome, ServerMessage::Welcome { .. }), "{welcome:?}");
        raw
    }

    pub async fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    pub async fn receive(&mut self) -> ServerMessage {
        loop {
            match self.0.next().await.expect("the server hung up").unwrap() {
                Message::Text(text) => return ServerMessage::from_json(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other @ (Message::Binary(_) | Message::Close(_) | Message::Frame(_)) => panic!("{other:?}"),
            }
        }
    }

    /// Reads the final `error` and the end; answers its code.
    pub async fn refused(mut self) -> String {
        let code = match self.receive().await {
            ServerMessage::Error { reason } => reason.code,
            other => panic!("{other:?}"),
        };
        while let Some(Ok(message)) = self.0.next().await {
            assert!(matches!(message, Message::Close(_)), "{message:?} after the error");
        }
        code
    }
}
