/**
 * SQL values to and from JSON without loss, as the table in docs/protocol.md says.
 *
 * | SQL | here | JSON |
 * | --- | --- | --- |
 * | NULL | `null` | `null` |
 * | INTEGER within ±(2^53 − 1) | `number` | a number |
 * | INTEGER beyond | `bigint` | `{"$int":"9223372036854775807"}` |
 * | REAL | `number` | a number, or `{"$real":"inf"}` |
 * | TEXT | `string` | a string |
 * | BLOB | `Uint8Array` | `{"$blob":"base64"}` |
 *
 * Values go out as JSON text made here, not by `JSON.stringify`: a whole double beyond 2^53 is a REAL and
 * is written with an exponent, or the server would read it as an integer.
 */

/** A value of a row. */
export type SqlValue = null | number | bigint | string | Uint8Array;

/** A query's parameter. Booleans become 1 and 0. */
export type ParamValue = SqlValue | boolean;

/** A query's parameters: by position (`?1`), or by name (`:name`, given with or without the colon). */
export type Params = readonly ParamValue[] | Readonly<Record<string, ParamValue>>;

/** JSON that is no SQL value, for reducers' parameters that take any JSON. */
export type JsonValue =
  | null
  | boolean
  | number
  | string
  | readonly JsonValue[]
  | { readonly [name: string]: JsonValue | undefined };

/** A reducer's argument. `undefined` is as if it were not there. */
export type ArgValue = ParamValue | JsonValue | undefined;

/** A value that cannot be sent. */
export class ValueError extends Error {
  override readonly name = "ValueError";
}

const INT_MIN = -(2n ** 63n);
const INT_MAX = 2n ** 63n - 1n;

/** Levels of arrays and objects in an argument. The server's JSON reader stops not far above. */
const DEPTH_MAX = 64;

/** JSON text of a string. A lone surrogate becomes U+FFFD, as in every web API: it has no UTF-8. */
export function encodeText(text: string): string {
  return JSON.stringify(text.replace(/\p{Surrogate}/gu, "\uFFFD"));
}

/** The JSON text of a SQL value. Throws a [`ValueError`] on NaN, and on integers beyond 64 bits. */
export function encodeValue(value: ParamValue): string {
  switch (typeof value) {
    case "string":
      return encodeText(value);
    case "boolean":
      return value ? "true" : "false";
    case "number":
      return encodeNumber(value);
    case "bigint":
      if (value < INT_MIN || value > INT_MAX) {
        throw new ValueError(`${value} does not fit SQLite's 64-bit integers`);
      }
      return value >= BigInt(Number.MIN_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER)
        ? value.toString()
        : `{"$int":"${value}"}`;
    case "object":
      if (value === null) return "null";
      if (value instanceof Uint8Array) return `{"$blob":"${toBase64(value)}"}`;
      break;
  }
  throw new ValueError(`${describe(value)} is not a SQL value: use null, a boolean, a number, a bigint, a string or a Uint8Array`);
}

function encodeNumber(value: number): string {
  if (Number.isNaN(value)) throw new ValueError("NaN has no SQL value; use null");
  if (value === Infinity) return '{"$real":"inf"}';
  if (value === -Infinity) return '{"$real":"-inf"}';
  if (Object.is(value, -0)) return "-0.0";
  if (Number.isInteger(value) && !Number.isSafeInteger(value)) return value.toExponential();
  return String(value);
}

/** The JSON text of a reducer's argument: a SQL value, or any JSON. Throws a [`ValueError`]. */
function encodeArg(value: Exclude<ArgValue, undefined>): string {
  if (typeof value === "object" && value !== null && !(value instanceof Uint8Array)) {
    return encodeJson(value, 0, DEPTH_MAX);
  }
  return encodeValue(value);
}

/**
 * The text of plain JSON, at most `depthMax` levels deep from `depth` on. Throws a [`ValueError`]: what
 * `JSON.stringify` would silently drop or change is refused.
 */
export function encodeJson(value: unknown, depth: number, depthMax: number): string {
  if (value === null || typeof value === "boolean") return JSON.stringify(value);
  if (typeof value === "string") return encodeText(value);
  if (typeof value === "number" && Number.isFinite(value)) return encodeNumber(value);
  if (typeof value === "object" && isPlain(value)) {
    if (depth >= depthMax) throw new ValueError(`it is more than ${depthMax} levels deep, or holds itself`);
    if (Array.isArray(value)) return `[${value.map((item) => encodeJson(item, depth + 1, depthMax)).join(",")}]`;
    const members = Object.entries(value).filter(([, member]) => member !== undefined);
    return `{${members.map(([name, member]) => `${encodeText(name)}:${encodeJson(member, depth + 1, depthMax)}`).join(",")}}`;
  }
  throw new ValueError(`${describe(value)} is not JSON`);
}

/** The JSON text of a reducer's arguments. Throws a [`ValueError`] that names the argument. */
export function encodeArgs(args: Readonly<Record<string, ArgValue>>): string {
  if (typeof args !== "object" || args === null || !isPlain(args) || Array.isArray(args)) {
    throw new ValueError(`arguments are an object of parameter names and values, not ${describe(args)}`);
  }
  return encodeMembers(args, encodeArg);
}

/** The JSON text of parameters; `undefined` where there are none. Throws a [`ValueError`]. */
export function encodeParams(params: Params): string | undefined {
  if (Array.isArray(params)) {
    if (params.length === 0) return undefined;
    return `[${Array.from(params as readonly ParamValue[], (value, at) => named(`parameter ${at + 1}`, () => encodeValue(value))).join(",")}]`;
  }
  if (typeof params !== "object" || params === null || !isPlain(params)) {
    throw new ValueError(`parameters are an array or an object, not ${describe(params)}`);
  }
  const text = encodeMembers(params as Readonly<Record<string, ParamValue>>, encodeValue);
  return text === "{}" ? undefined : text;
}

function encodeMembers<V>(object: Readonly<Record<string, V | undefined>>, encode: (value: V) => string): string {
  const members: string[] = [];
  for (const [name, value] of Object.entries(object)) {
    if (value !== undefined) members.push(`${encodeText(name)}:${named(`\`${name}\``, () => encode(value))}`);
  }
  return `{${members.join(",")}}`;
}

function named(what: string, encode: () => string): string {
  try {
    return encode();
  } catch (error) {
    if (error instanceof ValueError) throw new ValueError(`${what}: ${error.message}`);
    throw error;
  }
}

/** Parsed JSON as a SQL value; `undefined` where it is none. Safe on hostile input. */
export function decodeValue(json: unknown): SqlValue | undefined {
  switch (typeof json) {
    case "string":
    case "number":
      return json;
    case "boolean":
      return json ? 1 : 0;
    case "object":
      return json === null ? null : decodeTagged(json);
    default:
      return undefined;
  }
}

function decodeTagged(json: object): SqlValue | undefined {
  const entries = Object.entries(json);
  const [tag, text] = entries[0] ?? [];
  if (Array.isArray(json) || entries.length !== 1 || typeof text !== "string") return undefined;
  switch (tag) {
    case "$int": {
      if (!/^-?[0-9]{1,19}$/.test(text)) return undefined;
      const value = BigInt(text);
      if (value < INT_MIN || value > INT_MAX) return undefined;
      const small = Number(value);
      return Number.isSafeInteger(small) ? small : value;
    }
    case "$real":
      return text === "inf" ? Infinity : text === "-inf" ? -Infinity : undefined;
    case "$blob":
      return fromBase64(text);
    default:
      return undefined;
  }
}

/** Stored or sent arguments as the app gave them. JSON parameters come back as JSON. */
export function decodeArgs(text: string): Readonly<Record<string, ArgValue>> {
  const args: unknown = JSON.parse(text);
  if (typeof args !== "object" || args === null) return {};
  return Object.fromEntries(
    Object.entries(args).map(([name, json]: [string, unknown]) => {
      const value = typeof json === "boolean" ? json : decodeValue(json);
      return [name, value === undefined ? (json as JsonValue) : value];
    }),
  );
}

/** Whether two values of rows are the same. */
export function sameValue(a: SqlValue, b: SqlValue): boolean {
  if (a instanceof Uint8Array && b instanceof Uint8Array) {
    return a.length === b.length && a.every((byte, at) => byte === b[at]);
  }
  return Object.is(a, b);
}

function toBase64(bytes: Uint8Array): string {
  let binary = "";
  // In pieces: an argument list has a limit.
  for (let at = 0; at < bytes.length; at += 0x8000) {
    binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(binary);
}

function fromBase64(text: string): Uint8Array | undefined {
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return undefined;
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    return undefined; // The pattern lets `=` through where only `==` decodes.
  }
}

function isPlain(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return Array.isArray(value) || prototype === null || Object.getPrototypeOf(prototype as object) === null;
}

function describe(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "an array";
  if (typeof value === "object") return `an object (${value.constructor?.name ?? "no class"})`;
  return typeof value === "number" ? String(value) : `a ${typeof value}`;
}
