/**
 * A client's copy of a live query's rows.
 *
 * Rows are frozen objects by column name; a row that did not change keeps its identity, through deltas and
 * through the snapshot after a reconnect, so that an app that compares by identity redraws what changed.
 *
 * Changes are read as docs/protocol.md says. The whole change is checked before any of it is made, and the
 * cost is linear in rows and changes, whatever a hostile server sends.
 */
import { type SqlValue } from "./value.js";
/** A result row: values by column name, frozen. */
export type Row = Readonly<Record<string, SqlValue>>;
/** Where rows stand. */
export interface At {
    /** Rises when the tip moved other than forward. */
    readonly epoch: number;
    /** The commit that the rows' newest change is in, or is meant for. */
    readonly lsn: number;
    /** This client's last mutation whose effect is in the rows. */
    readonly seq: number;
}
/** Rows as they come: one array of JSON values for each. */
export type WireRows = readonly (readonly unknown[])[];
/** What a delta does, in this order. */
export interface Changes {
    /** Positions in the old rows, ascending. */
    readonly delete: readonly number[];
    /** Positions in the new rows, ascending, with their rows. */
    readonly insert: readonly (readonly [number, readonly unknown[]])[];
    /** Positions in the new rows with their rows. */
    readonly update: readonly (readonly [number, readonly unknown[]])[];
}
/** Rows that are not what they should be. The rows before it are unchanged. */
export declare class RowsError extends Error {
    readonly name = "RowsError";
}
/** A result. Immutable: a change makes another one, which shares the rows that stayed. */
export declare class ResultRows {
    readonly columns: readonly string[];
    readonly rows: readonly Row[];
    readonly at: At;
    private constructor();
    /** A whole result. Rows that `before` has already keep their identity. Throws a [`RowsError`]. */
    static snapshot(columns: readonly string[], wire: WireRows, at: At, before?: ResultRows): ResultRows;
    /** The rows after `changes`. Throws a [`RowsError`] where they do not fit. */
    apply(changes: Changes, at: At): ResultRows;
}
