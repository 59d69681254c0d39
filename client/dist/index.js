/** Multiplayer SQLite from a browser or Node. See docs/client.md. */
export { connect, Db } from "./db.js";
export { ConnectError, MutationError, QueryError } from "./errors.js";
export { indexedDb } from "./indexeddb.js";
export { inProcessLocks, memory } from "./storage.js";
export { ValueError } from "./value.js";
