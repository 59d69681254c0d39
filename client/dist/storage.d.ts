/**
 * Where client ids and unanswered mutations are kept, and who may use an id.
 *
 * A *scope* is one volume at one server. A client id belongs to at most one `Db` at a time, because its seqs
 * must not be given twice; the one that has *claimed* it is its user. [`memory`] here and [`indexedDb`] pass
 * one conformance test (`test/storage.test.ts`).
 */
import type { ClientRecord, ClientState, StoredMutation } from "./session.js";
/** Whether an id is ours to use. */
export type Claim = {
    readonly state: "owned";
    readonly release: () => void;
}
/** Another tab, or another `Db` of this one, uses it. */
 | {
    readonly state: "taken";
}
/** There is nothing that could say. */
 | {
    readonly state: "unknown";
};
/** A stored client id. */
export interface StoredClient {
    readonly client: string;
    /** How many unanswered mutations it has. */
    readonly mutations: number;
}
/** Storage of clients. Every method rejects where the storage fails; a failed one has had no effect. */
export interface Storage {
    /** The client ids of `scope`, those with most mutations first. */
    clients(scope: string): Promise<readonly StoredClient[]>;
    /** All that is known of a client id; mutations by ascending seq. */
    load(scope: string, client: string): Promise<ClientState | undefined>;
    /**
     * Replaces the record, adds mutations and removes others by seq, all or nothing. Resolves once that would
     * survive a crash, as far as the medium can. Adding a seq that is there is a failure; removing one that is
     * not there is none.
     */
    write(scope: string, record: ClientRecord, add: readonly StoredMutation[], remove: readonly number[]): Promise<void>;
    /** Forgets a client id and its mutations. */
    remove(scope: string, client: string): Promise<void>;
    /**
     * Takes sole use of an id until it is released or this page is gone. With a signal it waits for the id to
     * become free, and rejects when aborted; without one it answers at once.
     */
    claim(scope: string, client: string, signal?: AbortSignal): Promise<Claim>;
}
/** The part of the Web Locks API that is used here. */
export interface Locks {
    request(name: string, options: {
        readonly ifAvailable?: boolean;
        readonly signal?: AbortSignal;
    }, callback: (lock: object | null) => Promise<void>): Promise<unknown>;
}
/** Claims an id by a lock of `locks`; without, nothing can be said. */
export declare function claimByLock(locks: Locks | undefined, name: string, signal?: AbortSignal): Promise<Claim>;
/** Locks within this process, for storage that no other process shares. */
export declare function inProcessLocks(): Locks;
/** The lock that stands for a client id. */
export declare function lockName(scope: string, client: string): string;
/** Storage that ends with the page or process. A `Db` that is opened on it again goes on where the last ended. */
export declare function memory(): Storage;
