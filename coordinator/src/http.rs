//! Routes under `/v1`, and errors as typed JSON: `{"error":{"code":"…","message":"…"}}`.
//!
//! | route | does |
//! | --- | --- |
//! | `GET /v1/health` | says what this is and what it serves |
//! | `GET /v1/volumes/{name}/sync` | upgrades to the protocol of `docs/protocol.md` |
//! | `POST /v1/volumes/{name}/modules` | deploys the wasm module in the body |
//!
//! Whatever can be refused is refused before a socket is upgraded.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{DefaultBodyLimit, Json, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use graft::VolumeName;
use graft::ids::InvalidName;
use serde::Serialize;
use sqlsync_layer::actor::Deployed;
use sqlsync_layer::protocol::{FRAME_BYTES_MAX, Reason, codes};

use crate::volumes::{OpenVolumeError, Volumes};
use crate::{origin, sync};

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The path does not hold a volume's name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The path is not text.
    #[error("the path is not UTF-8 after percent-decoding")]
    Path,
    /// The request came from elsewhere; see the `origin` module.
    #[error(
        "{header} `{found}` is not this machine; a server without authentication serves this machine alone"
    )]
    Forbidden {
        /// `Host` or `Origin`.
        header: &'static str,
        /// Its value, shortened.
        found: String,
    },
    /// There is no such route.
    #[error("there is nothing here; see docs/protocol.md for the routes")]
    NoRoute,
    /// The route exists, for another method.
    #[error("this route takes another method; see docs/protocol.md")]
    Method,
    /// `sync` was asked for without an upgrade.
    #[error("this is a WebSocket: {message}")]
    NotUpgrade {
        /// What is missing.
        message: String,
    },
    /// The body could not be read, or is too large.
    #[error("the module was not received: {message}; at most {max} bytes are accepted")]
    Body {
        /// What went wrong.
        message: String,
        /// Bytes.
        max: usize,
        /// Whether it is too large.
        too_large: bool,
    },
    /// The body is not a module that can run.
    #[error("{message}")]
    Module {
        /// What is wrong with it.
        message: String,
    },
    /// The volume cannot be used.
    #[error(transparent)]
    Volume(#[from] OpenVolumeError),
    /// The deploy was refused by the volume's actor.
    #[error("{}", .0.message)]
    Deploy(Reason),
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            ApiError::Name(_) | ApiError::Path | ApiError::NotUpgrade { .. } => StatusCode::BAD_REQUEST,
            ApiError::Forbidden { .. } => StatusCode::FORBIDDEN,
            ApiError::NoRoute => StatusCode::NOT_FOUND,
            ApiError::Method => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::Body { too_large: true, .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::Body { too_large: false, .. } => StatusCode::BAD_REQUEST,
            ApiError::Module { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            ApiError::Volume(OpenVolumeError::NoSuchVolume { .. }) => StatusCode::NOT_FOUND,
            ApiError::Volume(OpenVolumeError::Damaged { .. }) => StatusCode::INTERNAL_SERVER_ERROR,
            ApiError::Volume(OpenVolumeError::Unavailable { .. } | OpenVolumeError::Shutdown) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ApiError::Deploy(reason) => match reason.code.as_str() {
                codes::UNAVAILABLE | codes::SHUTDOWN => StatusCode::SERVICE_UNAVAILABLE,
                codes::DAMAGED => StatusCode::INTERNAL_SERVER_ERROR,
                _refusal => StatusCode::UNPROCESSABLE_ENTITY,
            },
        }
    }

    /// The stable word for programs.
    pub fn code(&self) -> &str {
        match self {
            ApiError::Name(_) | ApiError::Path => "bad_name",
            ApiError::Forbidden { .. } => "forbidden",
            ApiError::NoRoute => "not_found",
            ApiError::Method => "method_not_allowed",
            ApiError::NotUpgrade { .. } => "not_a_websocket",
            ApiError::Body { too_large: true, .. } => "too_large",
            ApiError::Body { too_large: false, .. } => "bad_body",
            ApiError::Module { .. } => "invalid_module",
            ApiError::Volume(OpenVolumeError::NoSuchVolume { .. }) => "unknown_volume",
            ApiError::Volume(OpenVolumeError::Damaged { .. }) => codes::DAMAGED,
            ApiError::Volume(OpenVolumeError::Unavailable { .. }) => codes::UNAVAILABLE,
            ApiError::Volume(OpenVolumeError::Shutdown) => codes::SHUTDOWN,
            ApiError::Deploy(reason) => &reason.code,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: Reason,
        }
        let status = self.status();
        if status.is_server_error() {
            tracing::warn!(code = self.code(), error = %self, "request failed");
        }
        (status, Json(Body { error: Reason::new(self.code(), self.to_string()) })).into_response()
    }
}

/// The routes.
pub(crate) fn router(volumes: Arc<Volumes>) -> Router {
    let modules = post(deploy).layer(DefaultBodyLimit::max(volumes.limits().module_bytes_max));
    Router::new()
        .route("/v1/health", get(health))
        .route("/v1/volumes/{name}/sync", get(connect))
        .route("/v1/volumes/{name}/modules", modules)
        .fallback(async || ApiError::NoRoute)
        .method_not_allowed_fallback(async || ApiError::Method)
        .layer(axum::middleware::from_fn(origin::check))
        .with_state(volumes)
}

/// Answer of `GET /v1/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Health {
    /// `ok`, or `stopping`.
    pub status: String,
    /// This build's version.
    pub version: String,
    /// The object store, without credentials.
    pub store: String,
    /// How many volumes are open.
    pub volumes_open: usize,
}

async fn health(State(volumes): State<Arc<Volumes>>) -> Json<Health> {
    Json(Health {
        status: if volumes.is_stopping() { "stopping" } else { "ok" }.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        store: volumes.store_url(),
        volumes_open: volumes.open_count(),
    })
}

fn name(path: Result<Path<String>, PathRejection>) -> Result<VolumeName, ApiError> {
    let Path(name) = path.map_err(|_| ApiError::Path)?;
    Ok(name.parse()?)
}

async fn connect(
    path: Result<Path<String>, PathRejection>,
    State(volumes): State<Arc<Volumes>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let name = name(path)?;
    let upgrade = upgrade.map_err(|error| ApiError::NotUpgrade { message: error.body_text() })?;
    let lease = volumes.open(&name).await?;
    let limits = volumes.limits().session;
    let session = volumes.next_session();
    Ok(upgrade
        // The session refuses what is over the limit with a reason; far beyond it the transport does.
        .max_message_size(2 * FRAME_BYTES_MAX)
        .max_frame_size(2 * FRAME_BYTES_MAX)
        .on_failed_upgrade(|error| tracing::debug!(%error, "upgrade failed"))
        .on_upgrade(move |socket| sync::serve(socket, session, name, lease, limits)))
}

async fn deploy(
    path: Result<Path<String>, PathRejection>,
    State(volumes): State<Arc<Volumes>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Deployed>, ApiError> {
    let name = name(path)?;
    let body = body.map_err(|error| ApiError::Body {
        message: error.body_text(),
        max: volumes.limits().module_bytes_max,
        too_large: error.status() == StatusCode::PAYLOAD_TOO_LARGE,
    })?;
    volumes.deploy(&name, body).await.map(Json)
}
