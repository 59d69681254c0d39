//! The client against a scripted server on loopback. Nothing here waits by sleeping.

use futures::{SinkExt as _, StreamExt as _};
use graft::VolumeId;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::protocol::{At, Changes, ClientMessage, ServerMessage, codes};

struct Server {
    listener: TcpListener,
}

impl Server {
    async fn bind() -> Server {
        Server { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }
    fn url(&self) -> String {
        format!("http://{}", self.listener.local_addr().unwrap())
    }
    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new(self.url(), "todo");
        config.session.backoff_min = Duration::from_millis(1);
        config
    }
    async fn accept(&self) -> Peer {
        let (stream, _) = self.listener.accept().await.unwrap();
        Peer { socket: tokio_tungstenite::accept_async(stream).await.unwrap() }
    }
    /// Accepts, reads the hello and welcomes at `seq`.
    async fn welcome(&self, seq: u64) -> Peer {
        let mut peer = self.accept().await;
        let hello = peer.receive().await;
        assert!(matches!(&hello, ClientMessage::Hello { protocols, .. } if protocols == &[1]), "{hello:?}");
        let volume = VolumeId([1; 16]);
        let at = at(seq);
        peer.send(ServerMessage::Welcome { protocol: 1, volume, at, module: None, max_in_flight: 64 }).await;
        peer
    }
    /// A connected client and the server's end of it.
    async fn connected(&self) -> (Client, Peer) {
        let (client, peer) = tokio::join!(Client::connect(self.config()), self.welcome(0));
        (client.unwrap(), peer)
    }
}

struct Peer {
    socket: WebSocketStream<TcpStream>,
}

impl Peer {
    async fn send(&mut self, message: ServerMessage) {
        self.socket.send(Message::text(message.to_json())).await.unwrap();
    }
    async fn receive(&mut self) -> ClientMessage {
        loop {
            match self.socket.next().await.expect("the client hung up").unwrap() {
                Message::Text(text) => return ClientMessage::from_json(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other @ (Message::Binary(_) | Message::Close(_) | Message::Frame(_)) => panic!("{other:?}"),
            }
        }
    }
    /// Reads until the client's end is closed.
    async fn closed(mut self) {
        while let Some(Ok(_)) = self.socket.next().await {}
    }
}

fn at(seq: u64) -> At {
    At { epoch: 0, lsn: Lsn(1), seq }
}
fn snapshot(sub: u64, rows: usize) -> ServerMessage {
    let rows = (0..rows).map(|n| vec![json!(n)]).collect();
    ServerMessage::Snapshot { sub, at: at(0), columns: vec!["n".into()], key: vec!["n".into()], rows }
}

#[tokio::test]
async fn a_mutation_is_accepted_then_durable_or_rejected() {
    let server = Server::bind().await;
    let (client, mut peer) = server.connected().await;
    let handle = client.mutate("add", json!({ "id": "a" })).await.unwrap();
    let sent = peer.receive().await;
    assert!(
        matches!(&sent, ClientMessage::Mutate { seq: 1, reducer, clock: Some(_), seed: Some(_), .. } if reducer == "add"),
        "{sent:?}"
    );
    peer.send(ServerMessage::Accepted { seq: 1, lsn: Lsn(7) }).await;
    assert_eq!(handle.accepted().await, Ok(Lsn(7)));
    peer.send(ServerMessage::Durable { seq: 1, lsn: Lsn(8) }).await;
    assert_eq!(handle.durable().await, Ok(Lsn(8)));
    assert_eq!(handle.accepted().await, Ok(Lsn(8)), "durable is accepted too");

    let handle = client.mutate("add", json!({})).await.unwrap();
    let reason = Reason::new(codes::REFUSED, "empty title");
    peer.send(ServerMessage::Rejected { seq: 2, lsn: Lsn(9), reason: reason.clone() }).await;
    let rejected = Err(MutationError::Rejected { reason, lsn: Lsn(9) });
    assert_eq!((handle.accepted().await, handle.durable().await), (rejected.clone(), rejected));

    let not_object = client.mutate("add", json!([1])).await.unwrap_err();
    assert_eq!(not_object, CallError::Arguments { found: "an array" });
    client.close().await;
    peer.closed().await;
}

#[tokio::test]
async fn a_lost_connection_is_dialled_again_and_everything_open_resent() {
    let server = Server::bind().await;
    let (client, mut peer) = server.connected().await;
    let handle = client.mutate("add", json!({ "id": "a" })).await.unwrap();
    let mutation = peer.receive().await;
    let mut rows = client.subscribe("SELECT n", Params::default(), None).await.unwrap();
    let subscribe = peer.receive().await;
    let asking = {
        let client = client.clone();
        tokio::spawn(async move { client.query("SELECT 1", Params::default()).await })
    };
    let query = peer.receive().await;
    peer.send(snapshot(1, 2)).await;
    assert_eq!(rows.next().await, Ok(SubscriptionEvent::Snapshot));
    drop(peer);

    let mut peer = server.welcome(1).await;
    assert_eq!(peer.receive().await, mutation);
    assert_eq!(peer.receive().await, subscribe);
    assert_eq!(peer.receive().await, query);
    assert_eq!(rows.rows().rows().len(), 2, "rows stay readable meanwhile");
    peer.send(ServerMessage::Durable { seq: 1, lsn: Lsn(3) }).await;
    peer.send(snapshot(1, 3)).await;
    let ClientMessage::Query { id, .. } = query else { panic!("{query:?}") };
    peer.send(ServerMessage::Rows { id, at: at(1), columns: vec!["1".into()], rows: vec![vec![json!(1)]] })
        .await;
    assert_eq!(handle.durable().await, Ok(Lsn(3)));
    assert_eq!(rows.next().await, Ok(SubscriptionEvent::Snapshot));
    assert_eq!(rows.rows().rows().len(), 3);
    assert_eq!(asking.await.unwrap().unwrap().rows(), [vec![json!(1)]]);
    assert!(matches!(*client.status().borrow(), Status::Live { .. }));
}

#[tokio::test]
async fn deltas_arrive_and_dropping_the_subscription_closes_it() {
    let server = Server::bind().await;
    let (client, mut peer) = server.connected().await;
    let mut rows = client.subscribe("SELECT n", Params::default(), Some(vec!["n".into()])).await.unwrap();
    let ClientMessage::Subscribe { sub, key: Some(_), .. } = peer.receive().await else { panic!() };
    peer.send(snapshot(sub, 1)).await;
    let changes = Changes { delete: vec![0], insert: vec![(0, vec![json!(5)])], update: vec![] };
    peer.send(ServerMessage::Delta { sub, at: at(4), changes: changes.clone() }).await;
    loop {
        match rows.next().await.unwrap() {
            // The delta may have been folded into the snapshot before it was read.
            SubscriptionEvent::Snapshot if rows.rows().at().seq == 0 => {}
            SubscriptionEvent::Snapshot => break,
            SubscriptionEvent::Delta(found) => {
                assert_eq!(found, changes);
                break;
            }
        }
    }
    assert_eq!(rows.rows().rows(), [vec![json!(5)]]);
    drop(rows);
    assert_eq!(peer.receive().await, ClientMessage::Unsubscribe { sub });

    let mut refused = client.subscribe("DROP TABLE x", Params::default(), None).await.unwrap();
    let ClientMessage::Subscribe { sub, .. } = peer.receive().await else { panic!() };
    let reason = Reason::new(codes::BAD_QUERY, "not a read");
    peer.send(ServerMessage::SubscriptionError { sub, reason: reason.clone() }).await;
    assert_eq!(refused.next().await, Err(SubscriptionEnd::Failed(reason)));
}

/// The server writes megabytes before it reads, the client too: neither waits for the other.
#[tokio::test]
async fn full_pipes_both_ways_do_not_deadlock() {
    const MESSAGES: usize = 64;
    let server = Server::bind().await;
    let (client, mut peer) = server.connected().await;
    let long = format!("SELECT '{}'", "x".repeat(200_000));
    let asking: Vec<_> = (0..MESSAGES)
        .map(|_| {
            let (client, long) = (client.clone(), long.clone());
            tokio::spawn(async move { client.query(&long, Params::default()).await })
        })
        .collect();
    let big = ServerMessage::Rows {
        id: u64::MAX,
        at: at(0),
        columns: vec!["t".into()],
        rows: vec![vec![json!("y".repeat(200_000))]],
    };
    for _ in 0..MESSAGES {
        peer.send(big.clone()).await;
    }
    for _ in 0..MESSAGES {
        let ClientMessage::Query { id, .. } = peer.receive().await else { panic!() };
        peer.send(ServerMessage::Rows { id, at: at(0), columns: vec![], rows: vec![] }).await;
    }
    for answer in asking {
        answer.await.unwrap().unwrap();
    }
}

/// Answers one connection with this HTTP response.
async fn answer_http(listener: &TcpListener, response: String) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(response.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_unknown_volume_fails_at_once_with_the_servers_words() {
    let server = Server::bind().await;
    let body = r#"{"error":{"code":"unknown_volume","message":"there is no volume `todo`"}}"#;
    let response = format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let (connected, ()) =
        tokio::join!(Client::connect(server.config()), answer_http(&server.listener, response));
    let error = connected.unwrap_err();
    assert!(matches!(&error, ConnectError::Ended(SessionEnd::Declined(_))), "{error:?}");
    assert_eq!(error.to_string(), "there is no volume `todo` (unknown_volume)");
}

#[tokio::test]
async fn a_failing_server_is_tried_again() {
    let server = Server::bind().await;
    let response = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned();
    let (connected, _peer) = tokio::join!(Client::connect(server.config()), async {
        answer_http(&server.listener, response).await;
        server.welcome(0).await
    });
    connected.unwrap();
}

#[tokio::test]
async fn nobody_listening_is_a_readable_error_after_the_time_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let config = ClientConfig {
        connect_timeout: Some(Duration::from_millis(300)),
        ..ClientConfig::new(url.clone(), "todo")
    };
    let error = Client::connect(config).await.unwrap_err().to_string();
    assert!(error.contains("refused") && error.contains("graft serve"), "{error}");

    let error = Client::connect(ClientConfig::new(url, "../x")).await.unwrap_err().to_string();
    assert!(error.contains("`../x`"), "{error}");
}

#[tokio::test]
async fn what_is_open_ends_with_the_client() {
    let server = Server::bind().await;
    let (client, peer) = server.connected().await;
    let handle = client.mutate("add", json!({})).await.unwrap();
    let mut rows = client.subscribe("SELECT 1", Params::default(), None).await.unwrap();
    let (answered, ()) = tokio::join!(client.query("SELECT 1", Params::default()), client.close());
    assert!(matches!(answered, Err(QueryError::Call(CallError::Ended(SessionEnd::Closed)))), "{answered:?}");
    assert_eq!(handle.durable().await, Err(MutationError::Closed(SessionEnd::Closed)));
    assert_eq!(rows.next().await, Err(SubscriptionEnd::Closed(SessionEnd::Closed)));
    assert_eq!(client.mutate("add", json!({})).await.unwrap_err(), CallError::Ended(SessionEnd::Closed));
    peer.closed().await;

    let (client, peer) = server.connected().await;
    drop(client);
    peer.closed().await;
}

#[tokio::test]
async fn a_continued_id_goes_on_after_the_servers_seq() {
    let server = Server::bind().await;
    let config = ClientConfig { client_id: ClientId::new("fixed"), ..server.config() };
    let (client, mut peer) = tokio::join!(Client::connect(config), server.welcome(41));
    let client = client.unwrap();
    assert_eq!(client.mutate("add", json!({})).await.unwrap().seq(), 42);
    assert!(matches!(peer.receive().await, ClientMessage::Mutate { seq: 42, .. }));
}
