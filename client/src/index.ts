/** Multiplayer SQLite from a browser or Node. See docs/client.md. */

export { connect, Db } from "./db.js";
export type {
  ConnectOptions,
  LiveOptions,
  PendingMutation,
  QueryOptions,
  Rejection,
  Status,
  SubscribeOptions,
} from "./db.js";
export { ConnectError, MutationError, PresenceError, QueryError } from "./errors.js";
export type { MutationErrorKind } from "./errors.js";
export { indexedDb } from "./indexeddb.js";
export type { IndexedDbOptions } from "./indexeddb.js";
export type { Token, WebSocketConstructor, WebSocketLike } from "./link.js";
export type { LiveResult } from "./live.js";
export type {
  AnyMutations,
  Args,
  CamelName,
  DefaultMutations,
  Landed,
  Mutate,
  MutationHandle,
  Mutations,
  Register,
} from "./mutations.js";
export type { Observable } from "./observable.js";
export { Presence } from "./presence.js";
export type { Peer, Present } from "./presence.js";
export type { Reason } from "./protocol.js";
export type { At, Row } from "./rows.js";
export type { ClientRecord, ClientState, Phase, SessionConfig, StoredMutation } from "./session.js";
export { inProcessLocks, memory } from "./storage.js";
export type { Claim, Locks, Storage, StoredClient } from "./storage.js";
export { ValueError } from "./value.js";
export type { ArgValue, JsonValue, ParamValue, Params, SqlValue } from "./value.js";
