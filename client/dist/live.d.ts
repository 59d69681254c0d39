/**
 * Live queries, shared: all who watch the same SQL, parameters and key have one subscription.
 *
 * A subscription that nobody watches any more is closed at the end of the running task, so that what is left
 * and entered again at once (as React does) is neither closed nor opened anew.
 */
import { QueryError } from "./errors.js";
import { type Observable } from "./observable.js";
import type { Reason } from "./protocol.js";
import type { At, ResultRows, Row } from "./rows.js";
/** What is known of a live query. Frozen; the same object until something changes. */
export interface LiveResult<R = Row> {
    /** The rows; empty before the first came. After a loss of the connection, the last known. */
    readonly rows: readonly R[];
    /** Where they stand; `undefined` before the first came. */
    readonly at: At | undefined;
    /** No rows have come yet. */
    readonly loading: boolean;
    /** Why there will be no (more) rows. */
    readonly error: QueryError | undefined;
}
/** Opens a subscription and answers its id. Throws where it cannot. */
type Open = (sql: string, params: string | undefined, key: readonly string[] | undefined) => number;
/** All live queries of a `Db`. */
export declare class LiveQueries {
    #private;
    constructor(open: Open, close: (sub: number) => void);
    /** A live query; open while somebody watches it. One that failed is tried anew after all have left it. */
    query(sql: string, params: string | undefined, key: readonly string[] | undefined): Observable<LiveResult>;
    /** Rows came. */
    moved(sub: number, rows: ResultRows): void;
    /** No more rows will come. */
    failed(sub: number, reason: Reason): void;
    /** No more rows will come, for any. */
    failAll(reason: Reason): void;
}
export {};
