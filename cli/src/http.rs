//! `graft deploy`: one POST. And what else is asked of a server without a socket.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use coordinator::http::{ErrorBody, VolumeInfo};
use graft::VolumeName;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlsync_layer::actor::Deployed;
use url::Url;

use crate::args::Deploy;
use crate::{Outcome, codegen, output};

#[derive(Serialize)]
struct DeployedLine<'a> {
    volume: &'a str,
    #[serde(flatten)]
    deployed: &'a Deployed,
}

pub async fn deploy(args: Deploy) -> anyhow::Result<Outcome> {
    let file = args.module.display();
    let module = codegen::read_module(&args.module)?;
    let name: VolumeName = args.target.volume.parse()?;
    let deployed = deploy_module(&args.target.url, &name, module, args.target.connect_timeout)
        .await
        .with_context(|| format!("cannot deploy `{file}` to volume `{name}`"))?;
    if args.json {
        output::json(&DeployedLine { volume: name.as_str(), deployed: &deployed })?;
    } else {
        output::line(&deployed_text(&name, &deployed))?;
    }
    Ok(Outcome::Done)
}

/// What a deploy did, for a person.
pub fn deployed_text(name: &VolumeName, deployed: &Deployed) -> String {
    format!(
        "deployed {} to {name}: schema {} ({} run), lsn {}",
        &deployed.module.to_string()[..12],
        deployed.schema,
        output::count(deployed.migrations_run as usize, "migration"),
        deployed.lsn
    )
}

/// Puts a module in force. `connect_timeout` is in seconds.
pub async fn deploy_module(
    url: &str,
    name: &VolumeName,
    module: Vec<u8>,
    connect_timeout: u64,
) -> anyhow::Result<Deployed> {
    let path = format!("/v1/volumes/{name}/modules");
    request(url, Method::POST, &path, module.into(), connect_timeout).await
}

/// How a volume stands, and what its reducers take. `connect_timeout` is in seconds.
pub async fn volume_info(url: &str, name: &VolumeName, connect_timeout: u64) -> anyhow::Result<VolumeInfo> {
    request(url, Method::GET, &format!("/v1/volumes/{name}"), Bytes::new(), connect_timeout).await
}

/// The server's words, or the status where it had none.
fn why(status: StatusCode, body: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => body.error.to_string(),
        Err(_) => format!("the server answered HTTP {status}; is it a graft server?"),
    }
}

/// One request whose answer is JSON.
async fn request<T: DeserializeOwned>(
    base: &str,
    method: Method,
    path: &str,
    body: Bytes,
    connect_timeout: u64,
) -> anyhow::Result<T> {
    let (status, body) = exchange(base, method, path, body, Duration::from_secs(connect_timeout)).await?;
    if status != StatusCode::OK {
        bail!(why(status, &body));
    }
    serde_json::from_slice(&body)
        .with_context(|| format!("{base} answered something else; is it a graft server?"))
}

async fn exchange(
    base: &str,
    method: Method,
    path: &str,
    body: Bytes,
    patience: Duration,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let url = Url::parse(base)
        .with_context(|| format!("`{base}` is not a URL; give one like http://127.0.0.1:4600"))?;
    let (Some(host), "http") = (url.host_str(), url.scheme()) else {
        bail!("`{base}` is not a server's address; give one like http://127.0.0.1:4600");
    };
    let port = url.port_or_known_default().unwrap_or(80);
    let address = format!("{host}:{port}");
    let unreachable = || format!("no connection to {base}; check that `graft serve` runs there");
    let stream = tokio::time::timeout(patience, tokio::net::TcpStream::connect(&address))
        .await
        .with_context(unreachable)?
        .with_context(unreachable)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = format!("{}{path}", url.path().trim_end_matches('/'));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, address)
        .header(header::CONTENT_TYPE, "application/wasm")
        .body(Full::new(body))?;
    let lost = || format!("the connection to {base} was lost during the request");
    let response = sender.send_request(request).await.with_context(lost)?;
    let status = response.status();
    let body = response.into_body().collect().await.with_context(lost)?.to_bytes();
    connection.abort();
    Ok((status, body))
}
