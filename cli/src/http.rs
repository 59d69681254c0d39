//! `graft deploy`: one POST.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use graft::VolumeName;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use sqlsync_layer::actor::Deployed;
use sqlsync_layer::protocol::Reason;
use url::Url;

use crate::args::Deploy;
use crate::{Outcome, output};

#[derive(Serialize)]
struct DeployedLine<'a> {
    volume: &'a str,
    #[serde(flatten)]
    deployed: &'a Deployed,
}

pub async fn deploy(args: Deploy) -> anyhow::Result<Outcome> {
    let file = args.module.display();
    let module = std::fs::read(&args.module).with_context(|| {
        format!("cannot read `{file}`; `cargo build --target wasm32-unknown-unknown` makes a module")
    })?;
    let name: VolumeName = args.target.volume.parse()?;
    let path = format!("/v1/volumes/{name}/modules");
    let patience = Duration::from_secs(args.target.connect_timeout);
    let (status, body) = post(&args.target.url, &path, module.into(), patience).await?;
    if status != StatusCode::OK {
        bail!("cannot deploy `{file}` to volume `{name}`: {}", why(status, &body));
    }
    let deployed: Deployed = serde_json::from_slice(&body)
        .with_context(|| format!("{} answered something that is not a deploy's result", args.target.url))?;
    if args.json {
        output::json(&DeployedLine { volume: name.as_str(), deployed: &deployed })?;
    } else {
        let module = deployed.module.to_string();
        output::line(&format!(
            "deployed {} to {name}: schema {} ({} run), lsn {}",
            &module[..12],
            deployed.schema,
            output::count(deployed.migrations_run as usize, "migration"),
            deployed.lsn
        ))?;
    }
    Ok(Outcome::Done)
}

/// The server's words, or the status where it had none.
fn why(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        error: Reason,
    }
    match serde_json::from_slice::<Body>(body) {
        Ok(body) => body.error.to_string(),
        Err(_) => format!("the server answered HTTP {status}; is it a graft server?"),
    }
}

async fn post(
    base: &str,
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
        .method(Method::POST)
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
