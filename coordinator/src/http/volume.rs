//! `GET /v1/volumes/{name}` and `POST /v1/volumes/{name}/query`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Json, Path, State};
use sqlsync_layer::actor::{Ask, Asked, Token};

use super::wire::{QueryAnswer, QueryRequest, VolumeInfo, reducers};
use super::{ApiError, json, name};
use crate::clock;
use crate::volumes::Volumes;

/// What the volume is, and what its module offers.
pub(super) async fn info(
    path: Result<Path<String>, PathRejection>,
    State(volumes): State<Arc<Volumes>>,
) -> Result<Json<VolumeInfo>, ApiError> {
    let name = name(path)?;
    let lease = volumes.open(&name).await?;
    let standing = volumes.inspect(&name, &lease).await?;
    let reducers = match standing.module {
        Some(module) => reducers(volumes.load(&name, module).await?.description()),
        None => Vec::new(),
    };
    Ok(Json(VolumeInfo {
        name: name.to_string(),
        volume: standing.volume,
        epoch: standing.epoch,
        lsn: standing.lsn,
        module: standing.module,
        schema: standing.schema,
        reducers,
    }))
}

/// One SELECT, at the state of its token or a later one.
pub(super) async fn query(
    path: Result<Path<String>, PathRejection>,
    State(volumes): State<Arc<Volumes>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<QueryAnswer>, ApiError> {
    let name = name(path)?;
    let QueryRequest { sql, params, after } = json(body)?;
    let after = after.map(|text| text.parse::<Token>()).transpose()?;
    let lease = volumes.open(&name).await?;
    let patience = i64::try_from(volumes.limits().http.after_max.as_millis()).unwrap_or(i64::MAX);
    let ask = Ask { sql, params, after, deadline_ms: clock::now_ms().saturating_add(patience) };
    let Asked { columns, rows, lsn, epoch, token } = volumes.ask(&name, &lease, ask).await?;
    Ok(Json(QueryAnswer { columns, rows, lsn, epoch, token }))
}
