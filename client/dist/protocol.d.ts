/**
 * The messages of docs/protocol.md: reading the server's, writing ours.
 *
 * Reading is safe on hostile input: whatever is not a message of this protocol becomes a
 * [`MalformedMessage`]. Members that this version does not know are ignored.
 */
import type { At, Changes, WireRows } from "./rows.js";
/** The protocol version spoken here. */
export declare const PROTOCOL = 1;
/** The longest frame a server accepts, in bytes of UTF-8. */
export declare const FRAME_BYTES_MAX: number;
/** Seqs end here, so that none is rounded. */
export declare const SEQ_MAX: number;
/** Why something was refused: a stable word for programs, a sentence for people. */
export interface Reason {
    readonly code: string;
    readonly message: string;
}
/** What a server says. */
export type ServerMessage = {
    readonly type: "welcome";
    readonly protocol: number;
    readonly volume: string;
    readonly at: At;
    readonly module: string | null;
    readonly maxInFlight: number;
} | {
    readonly type: "accepted";
    readonly seq: number;
    readonly lsn: number;
} | {
    readonly type: "durable";
    readonly seq: number;
    readonly lsn: number;
} | {
    readonly type: "rejected";
    readonly seq: number;
    readonly lsn: number;
    readonly reason: Reason;
} | {
    readonly type: "refused";
    readonly seq: number;
    readonly reason: Reason;
} | {
    readonly type: "snapshot";
    readonly sub: number;
    readonly at: At;
    readonly columns: readonly string[];
    readonly rows: WireRows;
} | {
    readonly type: "delta";
    readonly sub: number;
    readonly at: At;
    readonly changes: Changes;
} | {
    readonly type: "subscription_error";
    readonly sub: number;
    readonly reason: Reason;
} | {
    readonly type: "rows";
    readonly id: number;
    readonly at: At;
    readonly columns: readonly string[];
    readonly rows: WireRows;
} | {
    readonly type: "query_error";
    readonly id: number;
    readonly reason: Reason;
} | {
    readonly type: "pong";
} | {
    readonly type: "error";
    readonly reason: Reason;
};
/** A frame was not a message. */
export declare class MalformedMessage extends Error {
    readonly name = "MalformedMessage";
}
/** Reads one frame. Throws a [`MalformedMessage`], and nothing else, whatever the text. */
export declare function readServerMessage(text: string): ServerMessage;
/** A `hello`. */
export declare function hello(client: string): string;
/** A `mutate`; `args` is JSON text already, so that a resend is the same to the byte. */
export declare function mutate(mutation: {
    readonly seq: number;
    readonly reducer: string;
    readonly args: string;
    readonly clock: number;
    readonly seed: string;
}): string;
/** A `subscribe`; `params` is JSON text already. */
export declare function subscribe(sub: number, sql: string, params: string | undefined, key: readonly string[] | undefined): string;
/** An `unsubscribe`. */
export declare function unsubscribe(sub: number): string;
/** A `query`; `params` is JSON text already. */
export declare function query(id: number, sql: string, params: string | undefined): string;
/** A `ping`. */
export declare function ping(n: number): string;
/** Bytes of `text` as UTF-8. Counted only where the length leaves a doubt. */
export declare function byteLength(text: string): number;
