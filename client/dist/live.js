/**
 * Live queries, shared: all who watch the same SQL, parameters and key have one subscription.
 *
 * A subscription that nobody watches any more is closed at the end of the running task, so that what is left
 * and entered again at once (as React does) is neither closed nor opened anew.
 */
import { QueryError, messageOf } from "./errors.js";
import { Listeners } from "./observable.js";
const LOADING = Object.freeze({ rows: Object.freeze([]), at: undefined, loading: true, error: undefined });
/** One subscription and those who watch it. */
class Shared {
    listeners = new Listeners();
    /** Its id while it is open. */
    sub;
    result = LOADING;
    tell(result) {
        this.result = Object.freeze(result);
        this.listeners.call(this.result);
    }
}
/** All live queries of a `Db`. */
export class LiveQueries {
    #open;
    #close;
    /** What is watched, by SQL, parameters and key. */
    #byName = new Map();
    #bySub = new Map();
    constructor(open, close) {
        this.#open = open;
        this.#close = close;
    }
    /** A live query; open while somebody watches it. One that failed is tried anew after all have left it. */
    query(sql, params, key) {
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
    moved(sub, rows) {
        this.#bySub.get(sub)?.tell({ rows: rows.rows, at: rows.at, loading: false, error: undefined });
    }
    /** No more rows will come. */
    failed(sub, reason) {
        const shared = this.#bySub.get(sub);
        if (shared !== undefined)
            this.#fail(shared, reason);
    }
    /** No more rows will come, for any. */
    failAll(reason) {
        for (const shared of [...this.#bySub.values()])
            this.#fail(shared, reason);
    }
    #enter(name, open) {
        const shared = new Shared();
        this.#byName.set(name, shared);
        try {
            shared.sub = open();
            this.#bySub.set(shared.sub, shared);
        }
        catch (error) {
            const reason = { code: codeOf(error), message: messageOf(error) };
            // Told like every other failure, and not before the caller has its way out.
            queueMicrotask(() => this.#fail(shared, reason));
        }
        return shared;
    }
    #leave(name, shared) {
        if (shared.listeners.size > 0 || this.#byName.get(name) !== shared)
            return;
        this.#byName.delete(name);
        if (shared.sub !== undefined) {
            this.#bySub.delete(shared.sub);
            this.#close(shared.sub);
        }
    }
    #fail(shared, reason) {
        if (shared.sub !== undefined)
            this.#bySub.delete(shared.sub);
        shared.sub = undefined;
        shared.tell({ ...shared.result, loading: false, error: new QueryError(reason) });
    }
}
function codeOf(error) {
    return typeof error === "object" && error !== null && "code" in error && typeof error.code === "string"
        ? error.code
        : "bad_query";
}
