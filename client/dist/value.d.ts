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
export type JsonValue = null | boolean | number | string | readonly JsonValue[] | {
    readonly [name: string]: JsonValue | undefined;
};
/** A reducer's argument. `undefined` is as if it were not there. */
export type ArgValue = ParamValue | JsonValue | undefined;
/** A value that cannot be sent. */
export declare class ValueError extends Error {
    readonly name = "ValueError";
}
/** JSON text of a string. A lone surrogate becomes U+FFFD, as in every web API: it has no UTF-8. */
export declare function encodeText(text: string): string;
/** The JSON text of a SQL value. Throws a [`ValueError`] on NaN, and on integers beyond 64 bits. */
export declare function encodeValue(value: ParamValue): string;
/** The JSON text of a reducer's arguments. Throws a [`ValueError`] that names the argument. */
export declare function encodeArgs(args: Readonly<Record<string, ArgValue>>): string;
/** The JSON text of parameters; `undefined` where there are none. Throws a [`ValueError`]. */
export declare function encodeParams(params: Params): string | undefined;
/** Parsed JSON as a SQL value; `undefined` where it is none. Safe on hostile input. */
export declare function decodeValue(json: unknown): SqlValue | undefined;
/** Stored or sent arguments as the app gave them. JSON parameters come back as JSON. */
export declare function decodeArgs(text: string): Readonly<Record<string, ArgValue>>;
/** Whether two values of rows are the same. */
export declare function sameValue(a: SqlValue, b: SqlValue): boolean;
