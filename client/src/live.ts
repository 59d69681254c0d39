/**
 * Live queries, shared: all who watch the same SQL, parameters and key have one subscription.
 *
 * A subscription that nobody watches any more is closed at the end of the running task, so that what is left
 * and entered again at once (as React does) is neither closed nor opened anew.
 */

import { QueryError, messageOf } from "./errors.js";
import { Listeners, type Observable } from "./observable.js";
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

const LOADING: LiveResult<never> = Object.freeze({ rows: Object.freeze([]), at: undefined, loading: true, error: undefined });

/** Opens a subscription and answers its id. Throws where it cannot. */
type Open = (sql: string, params: string | undefined, key: readonly string[] | undefined) => number;

/** One subscription and those who watch it. */
class Shared {
  readonly listeners = new Listeners<LiveResult>();
  /** Its id while it is open. */
  sub: number | undefined;
  result: LiveResult = LOADING;

  tell(result: LiveResult): void {
    this.result = Object.freeze(result);
    this.listeners.call(this.result);
  }
}

/** All live queries of a `Db`. */
export class LiveQueries {
  readonly #open: Open;
  readonly #close: (sub: number) => void;
  /** What is watched, by SQL, parameters and key. */
  readonly #byName = new Map<string, Shared>();
  readonly #bySub = new Map<number, Shared>();

  constructor(open: Open, close: (sub: number) => void) {
    this.#open = open;
    this.#close = close;
  }

  /** A live query; open while somebody watches it. One that failed is tried anew after all have left it. */
  query(sql: string, params: string | undefined, key: readonly string[] | undefined): Observable<LiveResult> {
    const name = JSON.stringify([sql, params, key]);
    return {
      get: () => this.#byName.get(name)?.result ?? LOADING,
      subscribe: (listener) => {
        const shared = this.#byName.get(name) ?? this.#enter(name, () => this.#open(sql, params, key));
        const remove = shared.listeners.add(listener);
        return () => {
          remove();
          queueMicrotask(() => this.#leave(name, shared));
        };
      },
    };
  }

  /** Rows came. */
  moved(sub: number, rows: ResultRows): void {
    this.#bySub.get(sub)?.tell({ rows: rows.rows, at: rows.at, loading: false, error: undefined });
  }

  /** No more rows will come. */
  failed(sub: number, reason: Reason): void {
    const shared = this.#bySub.get(sub);
    if (shared !== undefined) this.#fail(shared, reason);
  }

  /** No more rows will come, for any. */
  failAll(reason: Reason): void {
    for (const shared of [...this.#bySub.values()]) this.#fail(shared, reason);
  }

  #enter(name: string, open: () => number): Shared {
    const shared = new Shared();
    this.#byName.set(name, shared);
    try {
      shared.sub = open();
      this.#bySub.set(shared.sub, shared);
    } catch (error) {
      const reason = { code: codeOf(error), message: messageOf(error) };
      // Told like every other failure, and not before the caller has its way out.
      queueMicrotask(() => this.#fail(shared, reason));
    }
    return shared;
  }

  #leave(name: string, shared: Shared): void {
    if (shared.listeners.size > 0 || this.#byName.get(name) !== shared) return;
    this.#byName.delete(name);
    if (shared.sub !== undefined) {
      this.#bySub.delete(shared.sub);
      this.#close(shared.sub);
    }
  }

  #fail(shared: Shared, reason: Reason): void {
    if (shared.sub !== undefined) this.#bySub.delete(shared.sub);
    shared.sub = undefined;
    shared.tell({ ...shared.result, loading: false, error: new QueryError(reason) });
  }
}

function codeOf(error: unknown): string {
  return typeof error === "object" && error !== null && "code" in error && typeof error.code === "string"
    ? error.code
    : "bad_query";
}
