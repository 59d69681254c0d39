/** Opening clients in tests, and waiting for what they see. */

import { WebSocket } from "ws";

import { connect, type ConnectOptions, type Db, type Observable, type Row } from "../../src/index.js";

/** The todo example's reducers, as `graft codegen ts` would write them. */
export interface Todo {
  readonly create_list: { id: string; name: string };
  readonly add_task: { id: string; list: string; title: string };
  readonly set_done: { id: string; done: boolean };
  readonly rename_task: { id: string; title: string };
  readonly move_task: { id: string; position: number };
  readonly delete_task: { id: string };
}

export type TodoDb = Db<Todo>;

export const TASKS = "SELECT id, title, done, position FROM tasks WHERE list = ?1 ORDER BY position, id";

/** Closes what was opened, at the end of a test. */
export class Opened {
  readonly #closers: (() => Promise<void>)[] = [];

  add<T>(thing: T, close: (thing: T) => Promise<void>): T {
    this.#closers.push(() => close(thing));
    return thing;
  }

  async close(): Promise<void> {
    for (const close of this.#closers.splice(0).reverse()) await close();
  }
}

export function todo(url: string, more: Partial<ConnectOptions> = {}): TodoDb {
  return connect<Todo>({ url, volume: "todo", webSocket: WebSocket, ...more });
}

/** Resolves with the first value that `wanted` says yes to. */
export function until<T>(observable: Observable<T>, wanted: (value: T) => boolean): Promise<T> {
  return new Promise((resolve) => {
    let over = false;
    const look = (value: T) => {
      if (over || !wanted(value)) return;
      over = true;
      queueMicrotask(() => unsubscribe());
      resolve(value);
    };
    const unsubscribe = observable.subscribe(look);
    look(observable.get());
  });
}

/** What a person sees: the rows of a live query, and a wait for them to be as wanted. */
export class View {
  rows: readonly Row[] = [];
  readonly #waiting = new Set<() => void>();
  readonly close: () => void;

  constructor(db: TodoDb, sql = TASKS, params: readonly string[] = ["home"]) {
    this.close = db.subscribe(sql, params, (rows) => {
      this.rows = rows;
      for (const look of this.#waiting) look();
    });
  }

  get titles(): unknown[] {
    return this.rows.map((row) => row["title"]);
  }

  sees(wanted: (view: this) => boolean): Promise<void> {
    return new Promise((resolve) => {
      const look = () => {
        if (!wanted(this)) return;
        this.#waiting.delete(look);
        resolve();
      };
      this.#waiting.add(look);
      look();
    });
  }
}
