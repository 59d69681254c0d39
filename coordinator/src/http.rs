//! Routes under `/v1`, and errors as typed JSON: `{"error":{"code":"…","message":"…"}}`.
//!
//! | route | does |
//! | --- | --- |
//! | `GET /v1/health` | says what this is and what it serves |
//! | `GET /v1/metrics` | says what fetching costs; see `metrics` |
//! | `GET /v1/volumes/{name}/sync` | upgrades to the protocol of `docs/protocol.md` |
//! | `POST /v1/volumes/{name}/modules` | deploys the wasm module in the body |
//! | `GET /v1/volumes/{name}` | says how the volume stands and what its reducers take |
//! | `POST /v1/volumes/{name}/query` | asks once; see `volume` |
//! | `POST /v1/volumes/{name}/mutate` | runs a reducer; see `mutate` |
//! | `GET /v1/objects`, `… /v1/objects/{key}` | objects of the store; see `objects` |
//! | `GET` of anything else | a file of the app's page, where one is served; see `web` |
//!
//! Whatever can be refused is refused before a socket is upgraded. Every error becomes a status and a
//! code here, in [`ApiError`].

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{DefaultBodyLimit, Json, Path, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use graft::VolumeName;
use graft::ids::InvalidName;
use serde::de::DeserializeOwned;
use sqlsync_layer::actor::{AskError, Deployed, NotAToken};
use sqlsync_layer::protocol::{FRAME_BYTES_MAX, Reason, codes};

use crate::volumes::{OpenVolumeError, Volumes};
use crate::web::Web;
use crate::{origin, sync};

mod metrics;
mod mutate;
pub(crate) mod objects;
mod volume;
mod wire;

pub use self::wire::{
    ErrorBody, Health, MutateAnswer, MutateRequest, ParamInfo, ParamType, QueryAnswer, QueryRequest,
    ReducerInfo, VolumeInfo, Wait, reducers,
};

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
    /// `sync` was asked for without an upgrade; the volume could have been used.
    #[error("this is a WebSocket: {message}")]
    NotUpgrade {
        /// What is missing.
        message: String,
    },
    /// The body could not be read, or is too large.
    #[error("the body was not received: {message}; at most {max} bytes are accepted")]
    Body {
        /// What went wrong.
        message: String,
        /// Bytes.
        max: usize,
        /// Whether it is too large.
        too_large: bool,
    },
    /// The body is not what this route takes.
    #[error("the body is not what this route takes: {message}; see docs/protocol.md")]
    Request {
        /// What is wrong with it.
        message: String,
    },
    /// `after` is not a token.
    #[error("`after`: {0}")]
    Token(#[from] NotAToken),
    /// A file of the page is there and cannot be read.
    #[error("{path} cannot be read: {message}")]
    File {
        /// The request's path, shortened.
        path: String,
        /// What the system said.
        message: String,
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
    /// A query was not answered.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// A mutation was not taken, and is not recorded.
    #[error("{}", .0.message)]
    Refused(Reason),
}

/// The status of what the actor says.
fn status_of(code: &str) -> StatusCode {
    match code {
        codes::UNAVAILABLE | codes::SHUTDOWN => StatusCode::SERVICE_UNAVAILABLE,
        codes::DAMAGED => StatusCode::INTERNAL_SERVER_ERROR,
        codes::SEQ_GAP | codes::SEQ_REUSED | codes::SEQ_FORGOTTEN | codes::OUTCOME_UNKNOWN => {
            StatusCode::CONFLICT
        }
        codes::TOO_MANY_IN_FLIGHT => StatusCode::TOO_MANY_REQUESTS,
        _refusal => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            ApiError::Name(_)
            | ApiError::Path
            | ApiError::NotUpgrade { .. }
            | ApiError::Request { .. }
            | ApiError::Token(_) => StatusCode::BAD_REQUEST,
            ApiError::Forbidden { .. } => StatusCode::FORBIDDEN,
            ApiError::NoRoute => StatusCode::NOT_FOUND,
            ApiError::Method => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::File { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            ApiError::Body { too_large: true, .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::Body { too_large: false, .. } => StatusCode::BAD_REQUEST,
            ApiError::Module { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            ApiError::Volume(OpenVolumeError::NoSuchVolume { .. }) => StatusCode::NOT_FOUND,
            ApiError::Volume(OpenVolumeError::Damaged { .. }) => StatusCode::INTERNAL_SERVER_ERROR,
            ApiError::Volume(OpenVolumeError::Unavailable { .. } | OpenVolumeError::Shutdown) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ApiError::Ask(AskError::Lost { .. }) => StatusCode::CONFLICT,
            ApiError::Ask(AskError::TooMany) => StatusCode::TOO_MANY_REQUESTS,
            ApiError::Deploy(reason)
            | ApiError::Refused(reason)
            | ApiError::Ask(AskError::Failed(reason)) => status_of(&reason.code),
            // Also what the actor will be able to say in a later version.
            ApiError::Ask(AskError::NotReached | _) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The stable word for programs.
    pub fn code(&self) -> &str {
        match self {
            ApiError::Name(_) | ApiError::Path => "bad_name",
            ApiError::Forbidden { .. } => "forbidden",
            ApiError::NoRoute => "not_found",
            ApiError::Method => "method_not_allowed",
            ApiError::File { .. } => "unreadable",
            ApiError::NotUpgrade { .. } => "not_a_websocket",
            ApiError::Body { too_large: true, .. } => "too_large",
            ApiError::Body { too_large: false, .. } | ApiError::Request { .. } => "bad_body",
            ApiError::Token(_) => "bad_token",
            ApiError::Module { .. } => "invalid_module",
            ApiError::Volume(OpenVolumeError::NoSuchVolume { .. }) => "unknown_volume",
            ApiError::Volume(OpenVolumeError::Damaged { .. }) => codes::DAMAGED,
            ApiError::Volume(OpenVolumeError::Unavailable { .. }) => codes::UNAVAILABLE,
            ApiError::Volume(OpenVolumeError::Shutdown) => codes::SHUTDOWN,
            ApiError::Ask(AskError::Lost { .. }) => "token_lost",
            ApiError::Ask(AskError::TooMany) => "too_many_waiting",
            ApiError::Deploy(reason)
            | ApiError::Refused(reason)
            | ApiError::Ask(AskError::Failed(reason)) => &reason.code,
            ApiError::Ask(AskError::NotReached | _) => "not_reached",
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::warn!(code = self.code(), error = %self, "request failed");
        }
        (status, Json(ErrorBody { error: Reason::new(self.code(), self.to_string()) })).into_response()
    }
}

/// The routes, and the page's files where there are some.
pub(crate) fn router(volumes: Arc<Volumes>, web: Option<Web>, objects: Router<Arc<Volumes>>) -> Router {
    let web = web.map(Arc::new);
    let modules = post(deploy).layer(DefaultBodyLimit::max(volumes.limits().module_bytes_max));
    let body = DefaultBodyLimit::max(FRAME_BYTES_MAX);
    Router::new()
        .route("/v1/health", get(health))
        .route("/v1/metrics", get(metrics::metrics))
        .route("/v1/volumes/{name}", get(volume::info))
        .route("/v1/volumes/{name}/query", post(volume::query).layer(body))
        .route("/v1/volumes/{name}/mutate", post(mutate::mutate).layer(body))
        .route("/v1/volumes/{name}/sync", get(connect))
        .route("/v1/volumes/{name}/modules", modules)
        .merge(objects)
        .fallback(move |method: Method, uri: Uri| async move {
            match web {
                Some(web) => web.serve(&method, uri.path()).await,
                None => Err(ApiError::NoRoute),
            }
        })
        .method_not_allowed_fallback(async || ApiError::Method)
        .layer(axum::middleware::from_fn(origin::check))
        .with_state(volumes)
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

fn received(body: Result<Bytes, BytesRejection>, max: usize) -> Result<Bytes, ApiError> {
    body.map_err(|error| ApiError::Body {
        message: error.body_text(),
        max,
        too_large: error.status() == StatusCode::PAYLOAD_TOO_LARGE,
    })
}

/// The body as JSON, whatever its content type says: `curl -d` says that it is a form.
fn json<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, ApiError> {
    serde_json::from_slice(&received(body, FRAME_BYTES_MAX)?).map_err(|error| {
        // The parser quotes what it did not expect, however long that was.
        let message: String = error.to_string().chars().take(300).collect();
        ApiError::Request { message }
    })
}

async fn connect(
    path: Result<Path<String>, PathRejection>,
    State(volumes): State<Arc<Volumes>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let name = name(path)?;
    // The volume first: a browser that is declined asks here why, by a plain GET.
    let lease = volumes.open(&name).await?;
    let upgrade = upgrade.map_err(|error| ApiError::NotUpgrade { message: error.body_text() })?;
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
    let body = received(body, volumes.limits().module_bytes_max)?;
    volumes.deploy(&name, body).await.map(Json)
}
