//! Bodies of requests and answers, as `docs/protocol.md` shows them.

use graft::{Lsn, ModuleHash, VolumeId};
use reducers_abi::{Description, Param, Reducer, Type};
use serde::{Deserialize, Serialize};
use sqlsync_layer::actor::Token;
use sqlsync_layer::protocol::{ClientId, Reason, Seed, WireRow};
use sqlsync_layer::value::Params;

/// Answer of `GET /v1/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Why.
    pub error: Reason,
}

/// Body of `POST /v1/volumes/{name}/query`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryRequest {
    /// One SELECT.
    pub sql: String,
    /// Its parameters.
    #[serde(default, skip_serializing_if = "Params::is_empty")]
    pub params: Params,
    /// A token: the query sees its state, or a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueryAnswer {
    /// Column names.
    pub columns: Vec<String>,
    /// All rows.
    pub rows: Vec<WireRow>,
    /// The commit that the newest change in the rows is in, or is meant for.
    pub lsn: Lsn,
    /// The epoch of the tip that it ran on.
    pub epoch: u64,
    /// The state that it ran on.
    pub token: Token,
}

/// What `mutate` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// Until it is applied at the tip.
    Accepted,
    /// Until it is in object storage.
    #[default]
    Durable,
}

/// Body of `POST /v1/volumes/{name}/mutate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MutateRequest {
    /// Its name in the module in force.
    pub reducer: String,
    /// Its arguments by parameter name.
    pub args: serde_json::Map<String, serde_json::Value>,
    /// Who sends it; with `seq`, or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientId>,
    /// Its number: 1, 2, 3… without gaps for this client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The client's wall clock, ms since 1970; the server's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<i64>,
    /// The mutation's random seed; the server's choice where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
    /// What to wait for.
    #[serde(default)]
    pub wait: Wait,
}

/// What became of a mutation. `client` and `seq` are the server's choice where the request had none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum MutateAnswer {
    /// Applied at the tip. It may still become rejected, or be lost with the server.
    Accepted {
        /// Who sent it.
        client: ClientId,
        /// Its number.
        seq: u64,
        /// The commit it is meant for.
        lsn: Lsn,
        /// A state that holds it.
        token: Token,
    },
    /// In object storage.
    Durable {
        /// Who sent it.
        client: ClientId,
        /// Its number.
        seq: u64,
        /// The commit it is in.
        lsn: Lsn,
        /// A state that holds it.
        token: Token,
    },
    /// It had no effect, and that is in object storage. Final.
    Rejected {
        /// Who sent it.
        client: ClientId,
        /// Its number.
        seq: u64,
        /// The commit that records it.
        lsn: Lsn,
        /// A state that holds the rejection.
        token: Token,
        /// Why.
        error: Reason,
    },
    /// No answer came in time: it may be applied, now or later, or not. Sending it again under the
    /// same client and seq tells, and applies it at most once.
    Unknown {
        /// Who sent it.
        client: ClientId,
        /// Its number.
        seq: u64,
        /// What was missing.
        error: Reason,
    },
}

/// Answer of `GET /v1/volumes/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// The name asked for.
    pub name: String,
    /// The identity behind it.
    pub volume: VolumeId,
    /// The tip's epoch.
    pub epoch: u64,
    /// The commit that the tip's newest change is in, or is meant for.
    pub lsn: Lsn,
    /// The module in force; `null` before the first deploy.
    pub module: Option<ModuleHash>,
    /// The version of the last migration that ran.
    pub schema: u32,
    /// The module's reducers.
    pub reducers: Vec<ReducerInfo>,
}

/// One reducer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReducerInfo {
    /// Its name.
    pub name: String,
    /// Its documentation; may be empty.
    pub doc: String,
    /// Its parameters.
    pub params: Vec<ParamInfo>,
}

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParamInfo {
    /// The key in `args`.
    pub name: String,
    /// What it takes.
    #[serde(rename = "type")]
    pub ty: ParamType,
    /// Whether it may be null or left out.
    pub optional: bool,
}

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamType {
    /// A string.
    Text,
    /// A 64-bit integer.
    Integer,
    /// A number.
    Real,
    /// `true` or `false`.
    Boolean,
    /// Bytes.
    Blob,
    /// Any JSON.
    Json,
}

impl From<Type> for ParamType {
    fn from(ty: Type) -> ParamType {
        match ty {
            Type::Text => ParamType::Text,
            Type::Integer => ParamType::Integer,
            Type::Real => ParamType::Real,
            Type::Boolean => ParamType::Boolean,
            Type::Blob => ParamType::Blob,
            Type::Json => ParamType::Json,
        }
    }
}

impl From<&Param> for ParamInfo {
    fn from(param: &Param) -> ParamInfo {
        ParamInfo { name: param.name.clone(), ty: param.ty.into(), optional: param.optional }
    }
}

impl From<&Reducer> for ReducerInfo {
    fn from(reducer: &Reducer) -> ReducerInfo {
        let params = reducer.params.iter().map(ParamInfo::from).collect();
        ReducerInfo { name: reducer.name.clone(), doc: reducer.doc.clone(), params }
    }
}

/// A module's reducers, as `GET /v1/volumes/{name}` lists them.
pub fn reducers(description: &Description) -> Vec<ReducerInfo> {
    description.reducers.iter().map(ReducerInfo::from).collect()
}
