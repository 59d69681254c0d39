/**
 * The messages of docs/protocol.md: reading the server's, writing ours.
 *
 * Reading is safe on hostile input: whatever is not a message of this protocol becomes a
 * [`MalformedMessage`]. Members that this version does not know are ignored.
 */

import type { At, Changes, WireRows } from "./rows.js";
import { encodeText } from "./value.js";

/** The protocol version spoken here. */
export const PROTOCOL = 1;

/** The longest frame a server accepts, in bytes of UTF-8. */
export const FRAME_BYTES_MAX = 4 << 20;

/** Seqs end here, so that none is rounded. */
export const SEQ_MAX = Number.MAX_SAFE_INTEGER;

/** Why something was refused: a stable word for programs, a sentence for people. */
export interface Reason {
  readonly code: string;
  readonly message: string;
}

/** One who is present. */
export interface WirePeer {
  readonly id: number;
  /** Any JSON. */
  readonly state: unknown;
}

/** What a server says. */
export type ServerMessage =
  | {
      readonly type: "welcome";
      readonly protocol: number;
      readonly volume: string;
      readonly at: At;
      readonly module: string | null;
      readonly maxInFlight: number;
    }
  | { readonly type: "accepted"; readonly seq: number; readonly lsn: number }
  | { readonly type: "durable"; readonly seq: number; readonly lsn: number }
  | { readonly type: "rejected"; readonly seq: number; readonly lsn: number; readonly reason: Reason }
  | { readonly type: "refused"; readonly seq: number; readonly reason: Reason }
  | {
      readonly type: "snapshot";
      readonly sub: number;
      readonly at: At;
      readonly columns: readonly string[];
      readonly rows: WireRows;
    }
  | { readonly type: "delta"; readonly sub: number; readonly at: At; readonly changes: Changes }
  | { readonly type: "subscription_error"; readonly sub: number; readonly reason: Reason }
  | {
      readonly type: "rows";
      readonly id: number;
      readonly at: At;
      readonly columns: readonly string[];
      readonly rows: WireRows;
    }
  | { readonly type: "query_error"; readonly id: number; readonly reason: Reason }
  | { readonly type: "presence"; readonly peers: readonly WirePeer[]; readonly more: number }
  | { readonly type: "presence_set"; readonly id: number; readonly ttlMs: number }
  | { readonly type: "presence_error"; readonly reason: Reason }
  | { readonly type: "pong" }
  | { readonly type: "error"; readonly reason: Reason };

/** A frame was not a message. */
export class MalformedMessage extends Error {
  override readonly name = "MalformedMessage";
}

/** Reads one frame. Throws a [`MalformedMessage`], and nothing else, whatever the text. */
export function readServerMessage(text: string): ServerMessage {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new MalformedMessage("malformed message: it is not JSON");
  }
  const from = object(json, "message");
  const type = from["type"];
  switch (type) {
    case "welcome": {
      const module = from["module"];
      return {
        type,
        protocol: count(from, "protocol"),
        volume: string(from, "volume"),
        at: readAt(from),
        module: module === undefined || module === null ? null : string(from, "module"),
        maxInFlight: count(from, "max_in_flight"),
      };
    }
    case "accepted":
    case "durable":
      return { type, seq: count(from, "seq"), lsn: count(from, "lsn") };
    case "rejected":
      return { type, seq: count(from, "seq"), lsn: count(from, "lsn"), reason: readReason(from) };
    case "refused":
      return { type, seq: count(from, "seq"), reason: readReason(from) };
    case "snapshot":
      return { type, sub: count(from, "sub"), at: readAt(from), columns: strings(from, "columns"), rows: readRows(from) };
    case "delta":
      return { type, sub: count(from, "sub"), at: readAt(from), changes: readChanges(from) };
    case "subscription_error":
      return { type, sub: count(from, "sub"), reason: readReason(from) };
    case "rows":
      return { type, id: count(from, "id"), at: readAt(from), columns: strings(from, "columns"), rows: readRows(from) };
    case "query_error":
      return { type, id: count(from, "id"), reason: readReason(from) };
    case "presence":
      return { type, peers: list(from["peers"], "peers").map(readPeer), more: from["more"] === undefined ? 0 : count(from, "more") };
    case "presence_set":
      return { type, id: count(from, "id"), ttlMs: count(from, "ttl_ms") };
    case "presence_error":
      return { type, reason: readReason(from) };
    case "pong":
      return { type };
    case "error":
      return { type, reason: readReason(from) };
    default:
      throw new MalformedMessage(`malformed message: unknown type ${quote(type)}`);
  }
}

type Members = Readonly<Record<string, unknown>>;

function object(json: unknown, what: string): Members {
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new MalformedMessage(`malformed message: ${what} is not an object`);
  }
  return json as Members;
}

function list(json: unknown, what: string): readonly unknown[] {
  if (!Array.isArray(json)) throw new MalformedMessage(`malformed message: \`${what}\` is not an array`);
  return json;
}

function isCount(json: unknown): json is number {
  return typeof json === "number" && Number.isSafeInteger(json) && json >= 0;
}

function count(from: Members, name: string): number {
  const value = from[name];
  if (!isCount(value)) throw new MalformedMessage(`malformed message: \`${name}\` is not a count`);
  return value;
}

function string(from: Members, name: string): string {
  const value = from[name];
  if (typeof value !== "string") throw new MalformedMessage(`malformed message: \`${name}\` is not text`);
  return value;
}

function strings(from: Members, name: string): readonly string[] {
  const values = list(from[name], name);
  if (!values.every((value) => typeof value === "string")) {
    throw new MalformedMessage(`malformed message: \`${name}\` holds other than text`);
  }
  return values;
}

function readAt(from: Members): At {
  return { epoch: count(from, "epoch"), lsn: count(from, "lsn"), seq: count(from, "seq") };
}

function readReason(from: Members): Reason {
  const reason = object(from["reason"], "`reason`");
  return { code: string(reason, "code"), message: string(reason, "message") };
}

function readPeer(json: unknown): WirePeer {
  const peer = object(json, "a peer");
  if (peer["state"] === undefined) throw new MalformedMessage("malformed message: a peer has no state");
  return { id: count(peer, "id"), state: peer["state"] };
}

function readRows(from: Members): WireRows {
  return list(from["rows"], "rows").map((row) => list(row, "rows"));
}

function readChanges(from: Members): Changes {
  const changes = object(from["changes"], "`changes`");
  const positions = list(changes["delete"] ?? [], "delete").map((position) => {
    if (!isCount(position)) throw new MalformedMessage("malformed message: `delete` holds what is not a position");
    return position;
  });
  const placed = (name: string) =>
    list(changes[name] ?? [], name).map((change) => {
      const [position, row, ...more] = list(change, name);
      if (!isCount(position) || more.length > 0) {
        throw new MalformedMessage(`malformed message: \`${name}\` holds what is not a position and a row`);
      }
      return [position, list(row, name)] as const;
    });
  return { delete: positions, insert: placed("insert"), update: placed("update") };
}

function quote(json: unknown): string {
  return typeof json === "string" ? `\`${json.slice(0, 80)}\`` : typeof json;
}

/** A `hello`. */
export function hello(client: string, settled: number, since?: number): string {
  return JSON.stringify({ type: "hello", protocols: [PROTOCOL], client, settled, since });
}

/** A `mutate`; `args` is JSON text already, so that a resend is the same to the byte. */
export function mutate(mutation: {
  readonly seq: number;
  readonly reducer: string;
  readonly args: string;
  readonly clock: number;
  readonly seed: string;
}): string {
  const { seq, reducer, args, clock, seed } = mutation;
  return `{"type":"mutate","seq":${seq},"reducer":${encodeText(reducer)},"args":${args},"clock":${clock},"seed":"${seed}"}`;
}

/** A `subscribe`; `params` is JSON text already. */
export function subscribe(sub: number, sql: string, params: string | undefined, key: readonly string[] | undefined): string {
  const withKey = key === undefined ? "" : `,"key":[${key.map(encodeText).join(",")}]`;
  return `{"type":"subscribe","sub":${sub},"sql":${encodeText(sql)}${withParams(params)}${withKey}}`;
}

/** An `unsubscribe`. */
export function unsubscribe(sub: number): string {
  return `{"type":"unsubscribe","sub":${sub}}`;
}

/** A `query`; `params` is JSON text already. */
export function query(id: number, sql: string, params: string | undefined): string {
  return `{"type":"query","id":${id},"sql":${encodeText(sql)}${withParams(params)}}`;
}

/** A `set_presence`; `state` is JSON text already. */
export function setPresence(state: string): string {
  return `{"type":"set_presence","state":${state}}`;
}

/** A `clear_presence`. */
export function clearPresence(): string {
  return '{"type":"clear_presence"}';
}

/** A `watch_presence`. */
export function watchPresence(): string {
  return '{"type":"watch_presence"}';
}

/** An `unwatch_presence`. */
export function unwatchPresence(): string {
  return '{"type":"unwatch_presence"}';
}

/** A `ping`. */
export function ping(n: number): string {
  return `{"type":"ping","n":${n}}`;
}

function withParams(params: string | undefined): string {
  return params === undefined ? "" : `,"params":${params}`;
}

/** Bytes of `text` as UTF-8. Counted only where the length leaves a doubt. */
export function byteLength(text: string): number {
  return text.length * 3 <= FRAME_BYTES_MAX ? text.length : new TextEncoder().encode(text).length;
}
