//! `graft mutate`, `graft subscribe`, `graft query`: through a server.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use graft::Lsn;
use serde::Serialize;
use serde_json::Value as Json;
use sqlsync_layer::client::{
    Client, ClientConfig, ClientId, MutationError, QueryError, Rows, Status, Subscription, SubscriptionEvent,
};
use sqlsync_layer::protocol::{Changes, Reason, WireRow};
use sqlsync_layer::value::Params;
use tokio::sync::watch;

use crate::args::{Mutate, Query, Subscribe, Target, Wait};
use crate::serve::Signals;
use crate::{Outcome, output};

#[derive(Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
enum MutationLine<'a> {
    Accepted { seq: u64, lsn: Lsn },
    Durable { seq: u64, lsn: Lsn },
    Rejected { seq: u64, lsn: Lsn, reason: &'a Reason },
}

#[derive(Serialize)]
struct RowsLine<'a> {
    columns: &'a [String],
    rows: &'a [WireRow],
    lsn: Lsn,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum SubscriptionLine<'a> {
    Snapshot { columns: &'a [String], key: &'a [String], rows: &'a [WireRow], lsn: Lsn, epoch: u64 },
    Delta { changes: &'a Changes, lsn: Lsn, epoch: u64 },
}

pub async fn mutate(args: Mutate) -> anyhow::Result<Outcome> {
    let arguments: Json = serde_json::from_str(&args.args).with_context(|| {
        format!("arguments `{}` are not JSON; give an object like {{\"id\":\"t1\"}}", args.args)
    })?;
    let client = connect(&args.target, args.client.as_deref()).await?;
    let telling = tokio::spawn(tell(client.status()));
    let mutation = client.mutate(&args.reducer, arguments).await?;
    let seq = mutation.seq();
    let outcome = match args.wait {
        Wait::Accepted => mutation.accepted().await,
        Wait::Durable => mutation.durable().await,
    };
    telling.abort();
    client.close().await;
    match outcome {
        Ok(lsn) => {
            let (line, word) = match args.wait {
                Wait::Accepted => (MutationLine::Accepted { seq, lsn }, "accepted"),
                Wait::Durable => (MutationLine::Durable { seq, lsn }, "durable"),
            };
            if args.json {
                output::json(&line)?;
            } else {
                output::line(&format!(
                    "{word}: {} is mutation {seq} of its client, lsn {lsn}",
                    args.reducer
                ))?;
            }
            Ok(Outcome::Done)
        }
        Err(MutationError::Rejected { reason, lsn }) => {
            if args.json {
                output::json(&MutationLine::Rejected { seq, lsn, reason: &reason })?;
            } else {
                say!("rejected: {}", output::printable(&reason.to_string()));
            }
            Ok(Outcome::Rejected)
        }
        Err(MutationError::Refused { reason }) => {
            bail!("`{}` was not taken: {}", args.reducer, output::printable(&reason.to_string()))
        }
        Err(error) => bail!("`{}`: {error}", args.reducer),
    }
}

pub async fn query(args: Query) -> anyhow::Result<Outcome> {
    let params = params(args.params.as_deref())?;
    let client = connect(&args.target, None).await?;
    let answered = client.query(&args.sql, params).await;
    client.close().await;
    let rows = answered.map_err(|error| match error {
        QueryError::Failed(reason) => {
            anyhow!("cannot run `{}`: {}", args.sql, output::printable(&reason.to_string()))
        }
        error => anyhow!("cannot run `{}`: {error}", args.sql),
    })?;
    if args.json {
        output::json(&RowsLine { columns: rows.columns(), rows: rows.rows(), lsn: rows.at().lsn })?;
    } else {
        output::line(&output::table(rows.columns(), rows.rows()))?;
        output::line(&format!("({}, lsn {})", output::count(rows.rows().len(), "row"), rows.at().lsn))?;
    }
    Ok(Outcome::Done)
}

pub async fn subscribe(args: Subscribe) -> anyhow::Result<Outcome> {
    let params = params(args.params.as_deref())?;
    let mut stop = Signals::new()?;
    let watching = async {
        let client = connect(&args.target, None).await?;
        let telling = tokio::spawn(tell(client.status()));
        let subscription = client.subscribe(&args.sql, params, args.key.clone()).await?;
        let ended = follow(subscription, args.json).await;
        telling.abort();
        ended.with_context(|| format!("cannot watch `{}`", args.sql))
    };
    tokio::select! {
        ended = watching => ended.map(|()| Outcome::Done),
        () = stop.next() => Ok(Outcome::Done),
    }
}

/// Prints every message until the subscription ends, which is an error.
async fn follow(mut subscription: Subscription, json: bool) -> anyhow::Result<()> {
    loop {
        let event = subscription.next().await?;
        let rows = subscription.rows();
        match (event, json) {
            (SubscriptionEvent::Snapshot, true) => output::json(&SubscriptionLine::Snapshot {
                columns: rows.columns(),
                key: rows.key(),
                rows: rows.rows(),
                lsn: rows.at().lsn,
                epoch: rows.at().epoch,
            })?,
            (SubscriptionEvent::Delta(changes), true) => output::json(&SubscriptionLine::Delta {
                changes: &changes,
                lsn: rows.at().lsn,
                epoch: rows.at().epoch,
            })?,
            (SubscriptionEvent::Snapshot, false) => output::line(&snapshot_text(rows))?,
            (SubscriptionEvent::Delta(changes), false) => output::line(&delta_text(rows, &changes))?,
        }
    }
}

fn snapshot_text(rows: &Rows) -> String {
    let names: Vec<String> = rows.columns().iter().map(|name| output::printable(name)).collect();
    let all: Vec<String> = rows.rows().iter().map(|row| row_text(row)).collect();
    let begin = format!("lsn {}: {} ({})", rows.at().lsn, output::count(all.len(), "row"), names.join(", "));
    if all.is_empty() { begin } else { format!("{begin}: {}", all.join(" ")) }
}

fn delta_text(rows: &Rows, changes: &Changes) -> String {
    let mut text = format!("lsn {}:", rows.at().lsn);
    for position in &changes.delete {
        text.push_str(&format!(" -#{position}"));
    }
    for (position, row) in &changes.insert {
        text.push_str(&format!(" +#{position} {}", row_text(row)));
    }
    for (position, row) in &changes.update {
        text.push_str(&format!(" ~#{position} {}", row_text(row)));
    }
    text
}

fn row_text(row: &[Json]) -> String {
    let cells: Vec<String> = row.iter().map(output::cell).collect();
    format!("[{}]", cells.join(" | "))
}

/// Says on stderr when the connection goes and comes back.
async fn tell(mut status: watch::Receiver<Status>) {
    let mut lost = false;
    while status.changed().await.is_ok() {
        match &*status.borrow_and_update() {
            Status::Offline { error, .. } if !lost => {
                say!("connection lost: {}; trying again", output::printable(error));
                lost = true;
            }
            Status::Live { .. } if lost => {
                say!("connected again");
                lost = false;
            }
            Status::Offline { .. } | Status::Live { .. } | Status::Connecting | Status::Ended(_) => {}
        }
    }
}

async fn connect(target: &Target, client: Option<&str>) -> anyhow::Result<Client> {
    let mut config = ClientConfig::new(&target.url, &target.volume);
    config.connect_timeout = Some(Duration::from_secs(target.connect_timeout));
    config.client_id = match client {
        None => None,
        Some(id) => Some(ClientId::new(id).with_context(|| {
            format!("`{}` is not a client id: use 1 to 64 of A-Z a-z 0-9 - _", id.escape_debug())
        })?),
    };
    Ok(Client::connect(config).await?)
}

fn params(text: Option<&str>) -> anyhow::Result<Params> {
    let Some(text) = text else { return Ok(Params::default()) };
    serde_json::from_str(text)
        .with_context(|| format!("parameters `{text}` are neither a JSON array nor a JSON object"))
}
