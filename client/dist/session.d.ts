/**
 * The client's half of sync: what survives a connection, and what is said on each.
 *
 * ```text
 *        restore          opened             welcome
 * idle ----------> offline ------> greeting ---------> live
 *                   ^  | redial timer, wake: dial       |
 *                   |  +---------------------+ closed, silence, broken frame, `error`
 *                   +------------------------<----------+
 * any --> ended: the app closed it, or an end that dialling again cannot mend
 * ```
 *
 * It mirrors `sqlsync-layer/src/session/client.rs` and adds what a reload needs: a mutation is stored
 * before it is sent, and so is the volume's identity. Like it, this file has no sockets, clocks, storage or
 * randomness: the driver feeds events and carries out effects in order. After `hangup` it feeds nothing
 * more from that connection.
 *
 * Mutations are numbered 1, 2, 3… for each client id as soon as the next number is known, and kept until
 * they are durable, finally rejected, or refused for good; after each `welcome` those still kept are sent
 * again in order, at most `max_in_flight` at a time. Live queries are opened again under their ids; their
 * rows stay meanwhile. Queries without an answer are asked again: they only read.
 *
 * Invariants: a kept mutation is never dropped without a notice; a seq is never sent with two contents;
 * nothing is sent that is not stored; a server that knows less than it called final, or another volume
 * under the same name, ends the session and leaves the kept mutations where they are.
 */
import { type Reason } from "./protocol.js";
import { ResultRows } from "./rows.js";
/** Bounds and waits of a session, in ms. */
export interface SessionConfig {
    /** The wait before the first redial; it doubles with each failure in a row. */
    readonly backoffMin: number;
    /** The longest wait before a redial. */
    readonly backoffMax: number;
    /** How long a socket may take to open. */
    readonly dialMax: number;
    /** How long the server may take from the opened socket to `welcome`. */
    readonly greetingMax: number;
    /** A `ping` goes out when nothing was heard for this long; after the same again the connection is given up. */
    readonly keepalive: number;
    /** Mutations kept at most. */
    readonly pendingMax: number;
}
export declare const DEFAULT_CONFIG: SessionConfig;
/** A numbered mutation, as it is stored and sent. */
export interface StoredMutation {
    readonly seq: number;
    readonly reducer: string;
    /** JSON text of the arguments' object. */
    readonly args: string;
    /** The client's wall clock when it was made, ms since 1970. */
    readonly clock: number;
    /** 16 hex digits. */
    readonly seed: string;
}
/** What is kept about a client id beside its mutations. */
export interface ClientRecord {
    readonly client: string;
    /** The volume it spoke to; `null` before the first `welcome`. */
    readonly volume: string | null;
    /** The seq of the next mutation; `null` where only the server knows it. */
    readonly nextSeq: number | null;
    /** The highest seq with a final answer. */
    readonly settled: number;
}
/** A client id's whole state; mutations by ascending seq. */
export interface ClientState extends ClientRecord {
    readonly mutations: readonly StoredMutation[];
}
/**
 * How far a mutation has come: not yet stored here; stored and not sent on this connection; sent; applied at
 * the server's tip.
 */
export type Phase = "storing" | "waiting" | "sent" | "accepted";
/** A mutation without a final answer. */
export interface Kept {
    /** The call that made it; `undefined` for one that an earlier run made. */
    readonly call: number | undefined;
    readonly seq: number | undefined;
    readonly reducer: string;
    readonly args: string;
    readonly phase: Phase;
}
export type Event = {
    readonly type: "opened";
}
/** The server's HTTP answer declined the connection (a 4xx). */
 | {
    readonly type: "declined";
    readonly reason: Reason;
} | {
    readonly type: "frame";
    readonly text: string;
} | {
    readonly type: "closed";
    readonly why: string;
} | {
    readonly type: "timer";
}
/** The network may be back, or the machine has woken: do not wait. */
 | {
    readonly type: "wake";
}
/** Every store effect up to this ticket is durable on this device. */
 | {
    readonly type: "stored";
    readonly ticket: number;
}
/** The store effects after the last `stored` had no effect, and their additions will not be tried again. */
 | {
    readonly type: "store_failed";
    readonly why: string;
};
export type Effect = {
    readonly type: "dial";
} | {
    readonly type: "hangup";
} | {
    readonly type: "send";
    readonly frame: string;
}
/** Feed `timer` after this long. Replaces the timer set before. */
 | {
    readonly type: "timer";
    readonly ms: number;
}
/** Write [`Session.record`], with these, in one transaction; then feed `stored`. In order. */
 | {
    readonly type: "store";
    readonly ticket: number;
    readonly add?: StoredMutation;
    readonly remove?: number;
} | {
    readonly type: "notify";
    readonly notice: Notice;
};
export type Notice = 
/** Stored on this device: it survives a reload. */
{
    readonly type: "stored";
    readonly call: number;
    readonly seq: number;
} | {
    readonly type: "accepted";
    readonly mutation: Kept;
    readonly lsn: number;
} | {
    readonly type: "durable";
    readonly mutation: Kept;
    readonly lsn: number;
}
/** It had no effect, and that is final. */
 | {
    readonly type: "rejected";
    readonly mutation: Kept;
    readonly reason: Reason;
}
/** It was not looked at, and sending it again cannot help. */
 | {
    readonly type: "refused";
    readonly mutation: Kept;
    readonly reason: Reason;
} | {
    readonly type: "rows";
    readonly sub: number;
    readonly rows: ResultRows;
} | {
    readonly type: "subscription_failed";
    readonly sub: number;
    readonly reason: Reason;
}
/** A delta did not fit; the live query was opened anew. A fault worth reporting. */
 | {
    readonly type: "resubscribed";
    readonly sub: number;
    readonly why: string;
} | {
    readonly type: "answer";
    readonly id: number;
    readonly rows: ResultRows;
} | {
    readonly type: "query_failed";
    readonly id: number;
    readonly reason: Reason;
} | {
    readonly type: "status";
};
/** The connection, as an app shows it. */
export interface Connection {
    readonly state: "connecting" | "live" | "offline" | "ended";
    /** Why the last connection failed, or the session ended. */
    readonly error: Reason | undefined;
    /** The volume's identity; known once it was live. */
    readonly volume: string | null;
    /** The module in force; known while live. */
    readonly module: string | null;
}
/** A call by the app was not taken; nothing has changed. */
export declare class CallError extends Error {
    readonly name = "CallError";
    readonly code: string;
    constructor(reason: Reason);
}
/** The wait before redial number `attempt`; up to half of it is taken off at random. */
export declare function backoff(config: SessionConfig, attempt: number, random: number): number;
/** The state machine. See the head of this file for its states. */
export declare class Session {
    #private;
    constructor(config?: SessionConfig);
    /** What is to be stored about this client beside its mutations. */
    get record(): ClientRecord;
    get connection(): Connection;
    /** Rises whenever [`Session.pending`] would answer something else. */
    get pendingVersion(): number;
    /** Mutations without a final answer, in the order in which they were made. */
    get pending(): readonly Kept[];
    /** How many there are. */
    get pendingCount(): number;
    /** What the driver is to do next, in order. */
    takeEffects(): readonly Effect[];
    /** Becomes a client, as new or as stored, and dials for the first time. */
    restore(state: ClientState): void;
    /** Ends the session. Kept mutations stay stored. */
    end(reason: Reason): void;
    /** Takes a mutation and answers the call's id. Throws a [`CallError`]; no seq is used up then. */
    mutate(reducer: string, args: string, clock: number, seed: string): number;
    /** Opens a live query and answers its id; `rows` notices follow. Throws a [`CallError`]. */
    subscribe(sql: string, params: string | undefined, key: readonly string[] | undefined): number;
    /** Closes a live query. One that is not open is no error. */
    unsubscribe(sub: number): void;
    /** Asks once and answers the question's id. Throws a [`CallError`]. */
    query(sql: string, params: string | undefined): number;
    /** Nobody waits for this answer any more. */
    forgetQuery(id: number): void;
    /** Takes an event. `random`, in [0, 1), spreads redials out. */
    handle(event: Event, random: number): void;
}
