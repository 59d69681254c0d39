/**
 * A client's copy of a live query's rows.
 *
 * Rows are frozen objects by column name; a row that did not change keeps its identity, through deltas and
 * through the snapshot after a reconnect, so that an app that compares by identity redraws what changed.
 *
 * Changes are read as docs/protocol.md says. The whole change is checked before any of it is made, and the
 * cost is linear in rows and changes, whatever a hostile server sends.
 */

import { decodeValue, encodeValue, sameValue, type SqlValue } from "./value.js";

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
export class RowsError extends Error {
  override readonly name = "RowsError";
}

/** A result. Immutable: a change makes another one, which shares the rows that stayed. */
export class ResultRows {
  readonly columns: readonly string[];
  readonly rows: readonly Row[];
  readonly at: At;

  private constructor(columns: readonly string[], rows: readonly Row[], at: At) {
    this.columns = columns;
    this.rows = Object.freeze(rows);
    this.at = Object.freeze(at);
  }

  /** A whole result. Rows that `before` has already keep their identity. Throws a [`RowsError`]. */
  static snapshot(columns: readonly string[], wire: WireRows, at: At, before?: ResultRows): ResultRows {
    checkColumns(columns);
    const fresh = wire.map((row) => decodeRow(columns, row));
    const known = before === undefined ? fresh : reuse(columns, fresh, before);
    return new ResultRows(Object.freeze([...columns]), known, at);
  }

  /** The rows after `changes`. Throws a [`RowsError`] where they do not fit. */
  apply(changes: Changes, at: At): ResultRows {
    const old = this.rows;
    checkPositions("delete", changes.delete, old.length);
    const length = old.length - changes.delete.length + changes.insert.length;
    checkPositions("insert", changes.insert.map(([position]) => position), length);
    const inserts = changes.insert.map(([position, row]) => [position, decodeRow(this.columns, row)] as const);
    const updates = changes.update.map(([position, row]) => [position, decodeRow(this.columns, row)] as const);

    const rows: Row[] = [];
    let from = 0;
    let deleted = 0;
    let inserted = 0;
    while (rows.length < length) {
      const insert = inserts[inserted];
      if (insert !== undefined && insert[0] === rows.length) {
        rows.push(insert[1]);
        inserted += 1;
        continue;
      }
      while (changes.delete[deleted] === from) {
        deleted += 1;
        from += 1;
      }
      const kept = old[from];
      if (kept === undefined) throw new RowsError("the counts of a delta contradict each other");
      rows.push(kept);
      from += 1;
    }
    for (const [position, row] of updates) {
      if (!isPosition(position) || position >= length) {
        throw new RowsError(`update position ${position} is outside the ${length} rows it refers to`);
      }
      rows[position] = row;
    }
    return new ResultRows(this.columns, rows, at);
  }
}

/** Rows are objects by name, so two columns of one name would hide each other. */
function checkColumns(columns: readonly string[]): void {
  const seen = new Set<string>();
  for (const column of columns) {
    if (seen.has(column)) {
      throw new RowsError(`two columns are called \`${column}\`; give one another name with AS`);
    }
    seen.add(column);
  }
}

function decodeRow(columns: readonly string[], wire: readonly unknown[]): Row {
  if (wire.length !== columns.length) {
    throw new RowsError(`a row has ${wire.length} values, but there are ${columns.length} columns`);
  }
  const members = columns.map((column, at) => {
    const value = decodeValue(wire[at]);
    if (value === undefined) throw new RowsError(`column \`${column}\` holds what is not a SQL value`);
    return [column, value] as const;
  });
  // Unlike assignment, this makes a member even of a column called `__proto__`.
  return Object.freeze(Object.fromEntries(members));
}

function checkPositions(what: string, positions: readonly number[], rows: number): void {
  let before = -1;
  for (const position of positions) {
    if (!isPosition(position) || position <= before) {
      throw new RowsError(`${what} position ${position} does not come after the one before it`);
    }
    if (position >= rows) {
      throw new RowsError(`${what} position ${position} is outside the ${rows} rows it refers to`);
    }
    before = position;
  }
}

function isPosition(position: number): boolean {
  return Number.isSafeInteger(position) && position >= 0;
}

/** `fresh`, with the rows of `before` in the place of equal ones. */
function reuse(columns: readonly string[], fresh: readonly Row[], before: ResultRows): readonly Row[] {
  if (columns.length !== before.columns.length || columns.some((column, at) => column !== before.columns[at])) {
    return fresh;
  }
  // Most often nothing moved; only where rows did is each looked for by its content.
  let byContent: Map<string, Row> | undefined;
  return fresh.map((row, at) => {
    const there = before.rows[at];
    if (there !== undefined && sameRow(columns, row, there)) return there;
    byContent ??= new Map(before.rows.map((old) => [content(columns, old), old]));
    return byContent.get(content(columns, row)) ?? row;
  });
}

function sameRow(columns: readonly string[], a: Row, b: Row): boolean {
  return columns.every((column) => sameValue(a[column] ?? null, b[column] ?? null));
}

function content(columns: readonly string[], row: Row): string {
  return columns.map((column) => encodeValue(row[column] ?? null)).join(",");
}
