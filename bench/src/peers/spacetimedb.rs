//! SpacetimeDB 1.2.0: its standalone server as its own process, and clients of its WebSocket protocol.
//!
//! The server comes from crates.io; building it takes half an hour, so it is never built unasked. The
//! module is `bench/peers/spacetimedb`, which `cargo xtask bench` builds.

mod wire;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use futures::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use self::wire::{Args, ServerMessage};
use super::Install;
use crate::process::{Process, finish, free_port};
use crate::server::{built, scratch};

const VERSION: &str = "1.2.0";

/// Where `cargo install` puts the server: GRAFT_BENCH_PEERS, else `~/.cache/graft/peers`.
fn root() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("GRAFT_BENCH_PEERS").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/graft/peers"));
    named.or(home).context("neither GRAFT_BENCH_PEERS nor HOME is set")
}

fn program() -> anyhow::Result<PathBuf> {
    Ok(root()?.join("bin/spacetimedb-standalone"))
}

fn module() -> PathBuf {
    built("GRAFT_BENCH_MODULES", "target/bench-modules").join("spacetimedb.wasm")
}

/// Finds the server, or builds it where that was asked for in so many words.
///
/// # Errors
///
/// It is not here or cannot be built, or its module was not: the message says what to do.
pub async fn find_or_install(install: Install) -> anyhow::Result<()> {
    let program = program()?;
    if !program.is_file() {
        if !install.spacetimedb {
            bail!(
                "{} is not there; building it takes half an hour: `cargo xtask bench --install-spacetimedb`",
                program.display()
            );
        }
        println!("building spacetimedb-standalone {VERSION}: half an hour");
        let root = root()?;
        let mut cargo = Command::new("cargo");
        cargo
            .args(["install", "spacetimedb-standalone", "--version", VERSION, "--locked", "--root"])
            .arg(root);
        finish(cargo).await?;
    }
    if !module().is_file() {
        bail!("its module was not built: {} is not there", module().display());
    }
    Ok(())
}

/// A running server with the module published as the database `bench`.
pub struct SpacetimeDb {
    port: u16,
    _process: Process,
    _dir: tempfile::TempDir,
}

impl SpacetimeDb {
    /// Starts one on an empty data directory.
    pub async fn start() -> anyhow::Result<SpacetimeDb> {
        let dir = scratch()?;
        let port = free_port()?;
        let mut command = Command::new(program()?);
        command.args(["start", "--listen-addr", &format!("127.0.0.1:{port}"), "--data-dir"]);
        command.arg(dir.path().join("data")).arg("--jwt-key-dir").arg(dir.path().join("keys"));
        std::fs::create_dir(dir.path().join("keys"))?;
        command.env("SPACETIMEDB_DISABLE_DISK_LOGGING", "1");
        let mut process = Process::start("spacetimedb", dir.path(), command)?;
        process.ready(port).await?;
        let server = SpacetimeDb { port, _process: process, _dir: dir };
        let module = std::fs::read(module())?;
        server.http("PUT", "/v1/database/bench", "application/wasm", &module).await?;
        Ok(server)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A new client without subscriptions.
    pub async fn client(&self) -> anyhow::Result<Client> {
        // The lightest form that the server offers.
        let url =
            format!("ws://127.0.0.1:{}/v1/database/bench/subscribe?compression=None&light=true", self.port);
        let mut request = url.into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(wire::PROTOCOL));
        let (socket, _response) = tokio_tungstenite::connect_async(request).await?;
        let (mut sink, mut stream) = socket.split();
        let (out, mut outgoing) = mpsc::unbounded_channel::<Vec<u8>>();
        let calls: Arc<Mutex<HashMap<u32, Call>>> = Arc::default();
        let (notes, shown) = mpsc::unbounded_channel();
        let waiting = calls.clone();
        tokio::spawn(async move {
            while let Some(message) = outgoing.recv().await {
                sink.feed(Message::Binary(message.into())).await?;
                while let Ok(message) = outgoing.try_recv() {
                    sink.feed(Message::Binary(message.into())).await?;
                }
                sink.flush().await?;
            }
            sink.close().await
        });
        tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                let Message::Binary(bytes) = message else { continue };
                if let Err(error) = take(&bytes, &waiting, &notes) {
                    eprintln!("SpacetimeDB sent what we cannot read: {error:#}");
                    break;
                }
            }
            // Whoever waits learns it by its channel's end.
            waiting.lock().clear();
        });
        Ok(Client { out, calls, next: AtomicU32::new(1), shown: Mutex::new(Some(shown)) })
    }

    /// All accounts.
    pub async fn balances(&self) -> anyhow::Result<Vec<(usize, i64)>> {
        #[derive(serde::Deserialize)]
        struct Answer {
            rows: Vec<(usize, i64)>,
        }
        let sql = b"SELECT * FROM account";
        let body = self.http("POST", "/v1/database/bench/sql", "text/plain", sql).await?;
        let answers: Vec<Answer> = serde_json::from_slice(&body)?;
        Ok(answers.into_iter().next().context("SpacetimeDB answered nothing")?.rows)
    }

    /// One HTTP/1.1 request on a connection of its own; the body of its answer.
    async fn http(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).await?;
        socket.write_all(body).await?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        let end =
            answer.windows(4).position(|w| w == b"\r\n\r\n").context("SpacetimeDB's answer has no head")?;
        let body = answer.split_off(end + 4);
        let head = String::from_utf8_lossy(&answer);
        let status = head.split_whitespace().nth(1).unwrap_or_default();
        if !status.starts_with('2') {
            bail!("{method} {path} at SpacetimeDB: {status} {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }
}

type Call = oneshot::Sender<Result<(), String>>;

/// One connection.
pub struct Client {
    out: mpsc::UnboundedSender<Vec<u8>>,
    calls: Arc<Mutex<HashMap<u32, Call>>>,
    next: AtomicU32,
    shown: Mutex<Option<mpsc::UnboundedReceiver<String>>>,
}

impl Client {
    /// Sends a call at once; the future ends when the server has answered it.
    pub fn call(&self, reducer: &str, args: Args) -> impl Future<Output = anyhow::Result<()>> + use<> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.calls.lock().insert(request, answer);
        let sent = self.out.send(wire::call(reducer, &args, request));
        async move {
            sent.context("the connection to SpacetimeDB is closed")?;
            match answered.await.context("the connection to SpacetimeDB broke")? {
                Ok(()) => Ok(()),
                Err(why) => bail!("SpacetimeDB refused: {why}"),
            }
        }
    }

    /// Subscribes to one note: its texts, the present one first. Only once for each client.
    pub fn watch(&self, id: u32) -> anyhow::Result<mpsc::UnboundedReceiver<String>> {
        let shown = self.shown.lock().take().context("this client watches already")?;
        let sql = format!("SELECT * FROM note WHERE id = {id}");
        self.out.send(wire::subscribe(&sql, self.next.fetch_add(1, Ordering::Relaxed)))?;
        Ok(shown)
    }
}

/// Hands what the server sent to whoever waits for it.
fn take(
    bytes: &Bytes,
    calls: &Mutex<HashMap<u32, Call>>,
    notes: &mpsc::UnboundedSender<String>,
) -> anyhow::Result<()> {
    match wire::read(bytes)? {
        ServerMessage::Called { request, outcome } => {
            if let Some(call) = calls.lock().remove(&request) {
                // A caller that gave up does not want it.
                let _ = call.send(outcome);
            }
        }
        ServerMessage::Notes(texts) => {
            for text in texts {
                // Likewise.
                let _ = notes.send(text);
            }
        }
        ServerMessage::SubscriptionFailed(why) => bail!("a subscription failed: {why}"),
        ServerMessage::Other => {}
    }
    Ok(())
}

pub use self::wire::args;
