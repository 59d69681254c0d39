/**
 * Writes a session's store effects, in order, one transaction at a time.
 *
 * What comes while a write is under way waits and goes into the next one together, so that a burst of
 * mutations costs two transactions. When a write fails, the additions in it and after it are given up (the
 * session tells the app and takes their numbers back); removals are kept for the next write, for a mutation
 * that stays stored too long is only sent again.
 */

import { messageOf } from "./errors.js";
import type { ClientRecord, Effect, StoredMutation } from "./session.js";
import type { Storage } from "./storage.js";

type StoreEffect = Extract<Effect, { type: "store" }>;

export class Journal {
  readonly #storage: Storage;
  readonly #scope: string;
  readonly #record: () => ClientRecord;
  readonly #done: (ticket: number) => void;
  readonly #failed: (why: string) => void;
  #queue: StoreEffect[] = [];
  /** Removals of writes that failed. */
  #retried: StoreEffect[] = [];
  #writing: Promise<void> | undefined;

  constructor(
    storage: Storage,
    scope: string,
    record: () => ClientRecord,
    done: (ticket: number) => void,
    failed: (why: string) => void,
  ) {
    this.#storage = storage;
    this.#scope = scope;
    this.#record = record;
    this.#done = done;
    this.#failed = failed;
  }

  push(effect: StoreEffect): void {
    this.#queue.push(effect);
    this.#writing ??= this.#write();
  }

  /** Resolves when nothing waits to be written. */
  async flush(): Promise<void> {
    while (this.#writing !== undefined) await this.#writing;
  }

  async #write(): Promise<void> {
    // What the same call of the app adds goes into the same transaction.
    await Promise.resolve();
    while (this.#queue.length > 0) {
      const batch = [...this.#retried, ...this.#queue];
      this.#queue = [];
      const add: StoredMutation[] = [];
      const remove: number[] = [];
      for (const effect of batch) {
        if (effect.add !== undefined) add.push(effect.add);
        if (effect.remove !== undefined) remove.push(effect.remove);
      }
      try {
        await this.#storage.write(this.#scope, this.#record(), add, remove);
        this.#retried = [];
        this.#done(batch[batch.length - 1]?.ticket ?? 0);
      } catch (error) {
        this.#retried = [...batch, ...this.#queue].filter((effect) => effect.remove !== undefined);
        this.#queue = [];
        this.#failed(messageOf(error));
      }
    }
    this.#writing = undefined;
  }
}
