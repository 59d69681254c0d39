/** A volume, as an app uses it: [`connect`] and the [`Db`] it answers. */
import { MutationError, QueryError } from "./errors.js";
import { type Token, type WebSocketConstructor } from "./link.js";
import { type LiveResult } from "./live.js";
import { type Args, type DefaultMutations, type Mutate, type Mutations } from "./mutations.js";
import { type Observable } from "./observable.js";
import type { Reason } from "./protocol.js";
import type { At, Row } from "./rows.js";
import { type Phase, type SessionConfig } from "./session.js";
import { type Storage } from "./storage.js";
import { type Params } from "./value.js";
/** How to reach a volume. */
export interface ConnectOptions {
    /** The server: `http://127.0.0.1:4600`, or in a page a path such as `/`. */
    readonly url: string;
    /** The volume's name. */
    readonly volume: string;
    /** Shown to the server as `access_token`; a function is asked before each dial. */
    readonly token?: Token;
    /**
     * This device's own name, 1 to 64 of A-Z a-z 0-9 - _, in use nowhere else at the same time. Default: one
     * that the storage has and nobody uses, else a fresh random one.
     */
    readonly clientId?: string;
    /** Where unanswered mutations wait. Default: `indexedDb()`, or `memory()` where there is none. */
    readonly storage?: Storage;
    /** Default: the global `WebSocket`; in Node 20, that of the package `ws`. */
    readonly webSocket?: WebSocketConstructor;
    /**
     * Told of every mutation that had no effect, also of those that were made before a reload. Where absent,
     * the latter are named on the console.
     */
    readonly onRejected?: (rejection: Rejection) => void;
    /** Bounds and waits, where the defaults do not fit. */
    readonly config?: Partial<SessionConfig>;
}
/** A mutation that had no effect. */
export interface Rejection {
    readonly reducer: string;
    readonly args: Args;
    readonly error: MutationError;
    /** It was made by an earlier page or another tab, so that nobody here holds its promises. */
    readonly restored: boolean;
}
/** The connection, as a page shows it. Frozen. */
export interface Status {
    /**
     * - `connecting`: for the first time;
     * - `live`;
     * - `offline`: the connection failed; it is tried again, ever more slowly, and at once when the network is
     *   back;
     * - `ended`: closed by the app, or for a reason that dialling again cannot mend (`error`).
     */
    readonly state: "connecting" | "live" | "offline" | "ended";
    /** Mutations of this `Db` without a final answer. */
    readonly pending: number;
    /** Why the last connection failed, or why it ended. */
    readonly error: Reason | undefined;
    /** The volume's identity, once known. */
    readonly volume: string | undefined;
    /** The reducer module in force, while live. */
    readonly module: string | undefined;
}
/** A mutation without a final answer. Frozen. */
export interface PendingMutation {
    /** `undefined` until its number is known. */
    readonly seq: number | undefined;
    readonly reducer: string;
    readonly args: Args;
    /** `storing` on this device, `waiting` for a connection, `sent`, or `accepted` and soon durable. */
    readonly state: Phase;
}
/** Options of a live query. */
export interface LiveOptions {
    /** The columns that identify a row. Default: `id` if there is such a column, else the whole row. */
    readonly key?: readonly string[];
}
/** Options of [`Db.subscribe`]. */
export interface SubscribeOptions extends LiveOptions {
    /** There will be no more rows. Where absent, the error is reported like an uncaught one. */
    readonly onError?: (error: QueryError) => void;
}
/** Options of [`Db.query`]. */
export interface QueryOptions {
    /** Gives the question up. */
    readonly signal?: AbortSignal;
}
/** Connects to a volume, and goes on trying until it is closed. Throws a [`ConnectError`] on wrong options. */
export declare function connect<M extends Mutations<M> = DefaultMutations>(options: ConnectOptions): Db<M>;
/** A connection to a volume. Made by [`connect`]. */
export declare class Db<M extends Mutations<M> = DefaultMutations> {
    #private;
    /** `await using db = connect(…)`. */
    [Symbol.asyncDispose]: () => Promise<void>;
    /** Calls a reducer: `db.mutate.addTask({…})`, or by its own name `db.mutate("add_task", {…})`. */
    readonly mutate: Mutate<M>;
    constructor(options: ConnectOptions);
    /** The client id; `undefined` until the storage has been read. */
    get clientId(): string | undefined;
    /** The connection's state. */
    get status(): Observable<Status>;
    /** Mutations without a final answer, in the order in which they were made. */
    get pending(): Observable<readonly PendingMutation[]>;
    /**
     * Watches a query: calls `onRows` with the whole result, once it is known and after each change, until the
     * returned function is called. Rows are frozen and keep their identity while they do not change.
     */
    subscribe<R extends object = Row>(sql: string, params: Params, onRows: (rows: readonly R[], at: At) => void, options?: SubscribeOptions): () => void;
    /** A live query as a value to read and to watch; open while it is watched. For bindings to a UI library. */
    live<R extends object = Row>(sql: string, params?: Params, options?: LiveOptions): Observable<LiveResult<R>>;
    /** Asks once. Waits for a connection; sees what is accepted. Rejects with a [`QueryError`]. */
    query<R extends object = Row>(sql: string, params?: Params, options?: QueryOptions): Promise<readonly R[]>;
    /**
     * Ends the connection; what is pending stays stored for the next one. Resolves once it is, and the client
     * id is free.
     */
    close(): Promise<void>;
    /**
     * Closes, and removes what this client has stored: its id and its unanswered mutations, which are answered.
     * For after an end that says that they must not be sent (`volume_changed`, `history_lost`).
     */
    discard(): Promise<readonly PendingMutation[]>;
}
