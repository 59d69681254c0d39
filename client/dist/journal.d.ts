/**
 * Writes a session's store effects, in order, one transaction at a time.
 *
 * What comes while a write is under way waits and goes into the next one together, so that a burst of
 * mutations costs two transactions. When a write fails, the additions in it and after it are given up (the
 * session tells the app and takes their numbers back); removals are kept for the next write, for a mutation
 * that stays stored too long is only sent again.
 */
import type { ClientRecord, Effect } from "./session.js";
import type { Storage } from "./storage.js";
type StoreEffect = Extract<Effect, {
    type: "store";
}>;
export declare class Journal {
    #private;
    constructor(storage: Storage, scope: string, record: () => ClientRecord, done: (ticket: number) => void, failed: (why: string) => void);
    push(effect: StoreEffect): void;
    /** Resolves when nothing waits to be written. */
    flush(): Promise<void>;
}
export {};
