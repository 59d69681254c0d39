/**
 * Writes a session's store effects, in order, one transaction at a time.
 *
 * What comes while a write is under way waits and goes into the next one together, so that a burst of
 * mutations costs two transactions. When a write fails, the additions in it and after it are given up (the
 * session tells the app and takes their numbers back); removals are kept for the next write, for a mutation
 * that stays stored too long is only sent again.
 */
import { messageOf } from "./errors.js";
export class Journal {
    #storage;
    #scope;
    #record;
    #done;
    #failed;
    #queue = [];
    /** Removals of writes that failed. */
    #retried = [];
    #writing;
    constructor(storage, scope, record, done, failed) {
        this.#storage = storage;
        this.#scope = scope;
        this.#record = record;
        this.#done = done;
        this.#failed = failed;
    }
    push(effect) {
        this.#queue.push(effect);
        this.#writing ??= this.#write();
    }
    /** Resolves when nothing waits to be written. */
    async flush() {
        while (this.#writing !== undefined)
            await this.#writing;
    }
    async #write() {
        // What the same call of the app adds goes into the same transaction.
        await Promise.resolve();
        while (this.#queue.length > 0) {
            const batch = [...this.#retried, ...this.#queue];
            this.#queue = [];
            const add = [];
            const remove = [];
            for (const effect of batch) {
                if (effect.add !== undefined)
                    add.push(effect.add);
                if (effect.remove !== undefined)
                    remove.push(effect.remove);
            }
            try {
                await this.#storage.write(this.#scope, this.#record(), add, remove);
                this.#retried = [];
                this.#done(batch[batch.length - 1]?.ticket ?? 0);
            }
            catch (error) {
                this.#retried = [...batch, ...this.#queue].filter((effect) => effect.remove !== undefined);
                this.#queue = [];
                this.#failed(messageOf(error));
            }
        }
        this.#writing = undefined;
    }
}
