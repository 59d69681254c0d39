/**
 * The messages of docs/protocol.md: reading the server's, writing ours.
 *
 * Reading is safe on hostile input: whatever is not a message of this protocol becomes a
 * [`MalformedMessage`]. Members that this version does not know are ignored.
 */
import { encodeText } from "./value.js";
/** The protocol version spoken here. */
export const PROTOCOL = 1;
/** The longest frame a server accepts, in bytes of UTF-8. */
export const FRAME_BYTES_MAX = 4 << 20;
/** Seqs end here, so that none is rounded. */
export const SEQ_MAX = Number.MAX_SAFE_INTEGER;
/** A frame was not a message. */
export class MalformedMessage extends Error {
    name = "MalformedMessage";
}
/** Reads one frame. Throws a [`MalformedMessage`], and nothing else, whatever the text. */
export function readServerMessage(text) {
    let json;
    try {
        json = JSON.parse(text);
    }
    catch {
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
        case "pong":
            return { type };
        case "error":
            return { type, reason: readReason(from) };
        default:
            throw new MalformedMessage(`malformed message: unknown type ${quote(type)}`);
    }
}
function object(json, what) {
    if (typeof json !== "object" || json === null || Array.isArray(json)) {
        throw new MalformedMessage(`malformed message: ${what} is not an object`);
    }
    return json;
}
function list(json, what) {
    if (!Array.isArray(json))
        throw new MalformedMessage(`malformed message: \`${what}\` is not an array`);
    return json;
}
function isCount(json) {
    return typeof json === "number" && Number.isSafeInteger(json) && json >= 0;
}
function count(from, name) {
    const value = from[name];
    if (!isCount(value))
        throw new MalformedMessage(`malformed message: \`${name}\` is not a count`);
    return value;
}
function string(from, name) {
    const value = from[name];
    if (typeof value !== "string")
        throw new MalformedMessage(`malformed message: \`${name}\` is not text`);
    return value;
}
function strings(from, name) {
    const values = list(from[name], name);
    if (!values.every((value) => typeof value === "string")) {
        throw new MalformedMessage(`malformed message: \`${name}\` holds other than text`);
    }
    return values;
}
function readAt(from) {
    return { epoch: count(from, "epoch"), lsn: count(from, "lsn"), seq: count(from, "seq") };
}
function readReason(from) {
    const reason = object(from["reason"], "`reason`");
    return { code: string(reason, "code"), message: string(reason, "message") };
}
function readRows(from) {
    return list(from["rows"], "rows").map((row) => list(row, "rows"));
}
function readChanges(from) {
    const changes = object(from["changes"], "`changes`");
    const positions = list(changes["delete"] ?? [], "delete").map((position) => {
        if (!isCount(position))
            throw new MalformedMessage("malformed message: `delete` holds what is not a position");
        return position;
    });
    const placed = (name) => list(changes[name] ?? [], name).map((change) => {
        const [position, row, ...more] = list(change, name);
        if (!isCount(position) || more.length > 0) {
            throw new MalformedMessage(`malformed message: \`${name}\` holds what is not a position and a row`);
        }
        return [position, list(row, name)];
    });
    return { delete: positions, insert: placed("insert"), update: placed("update") };
}
function quote(json) {
    return typeof json === "string" ? `\`${json.slice(0, 80)}\`` : typeof json;
}
/** A `hello`. */
export function hello(client) {
    return JSON.stringify({ type: "hello", protocols: [PROTOCOL], client });
}
/** A `mutate`; `args` is JSON text already, so that a resend is the same to the byte. */
export function mutate(mutation) {
    const { seq, reducer, args, clock, seed } = mutation;
    return `{"type":"mutate","seq":${seq},"reducer":${encodeText(reducer)},"args":${args},"clock":${clock},"seed":"${seed}"}`;
}
/** A `subscribe`; `params` is JSON text already. */
export function subscribe(sub, sql, params, key) {
    const withKey = key === undefined ? "" : `,"key":[${key.map(encodeText).join(",")}]`;
    return `{"type":"subscribe","sub":${sub},"sql":${encodeText(sql)}${withParams(params)}${withKey}}`;
}
/** An `unsubscribe`. */
export function unsubscribe(sub) {
    return `{"type":"unsubscribe","sub":${sub}}`;
}
/** A `query`; `params` is JSON text already. */
export function query(id, sql, params) {
    return `{"type":"query","id":${id},"sql":${encodeText(sql)}${withParams(params)}}`;
}
/** A `ping`. */
export function ping(n) {
    return `{"type":"ping","n":${n}}`;
}
function withParams(params) {
    return params === undefined ? "" : `,"params":${params}`;
}
/** Bytes of `text` as UTF-8. Counted only where the length leaves a doubt. */
export function byteLength(text) {
    return text.length * 3 <= FRAME_BYTES_MAX ? text.length : new TextEncoder().encode(text).length;
}
