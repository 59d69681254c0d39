/**
 * Where client ids and unanswered mutations are kept, and who may use an id.
 *
 * A *scope* is one volume at one server. A client id belongs to at most one `Db` at a time, because its seqs
 * must not be given twice; the one that has *claimed* it is its user. [`memory`] here and [`indexedDb`] pass
 * one conformance test (`test/storage.test.ts`).
 */

import type { ClientRecord, ClientState, StoredMutation } from "./session.js";

/** Whether an id is ours to use. */
export type Claim =
  | { readonly state: "owned"; readonly release: () => void }
  /** Another tab, or another `Db` of this one, uses it. */
  | { readonly state: "taken" }
  /** There is nothing that could say. */
  | { readonly state: "unknown" };

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
  request(
    name: string,
    options: { readonly ifAvailable?: boolean; readonly signal?: AbortSignal },
    callback: (lock: object | null) => Promise<void>,
  ): Promise<unknown>;
}

/** Claims an id by a lock of `locks`; without, nothing can be said. */
export async function claimByLock(locks: Locks | undefined, name: string, signal?: AbortSignal): Promise<Claim> {
  if (locks === undefined) return { state: "unknown" };
  return new Promise<Claim>((resolve, reject) => {
    const hold = (lock: object | null): Promise<void> => {
      if (lock === null) {
        resolve({ state: "taken" });
        return Promise.resolve();
      }
      return new Promise<void>((release) => resolve({ state: "owned", release }));
    };
    locks.request(name, signal === undefined ? { ifAvailable: true } : { signal }, hold).catch(reject);
  });
}

/** Locks within this process, for storage that no other process shares. */
export function inProcessLocks(): Locks {
  const held = new Map<string, (() => void)[]>();
  const run = async (name: string, callback: (lock: object | null) => Promise<void>): Promise<void> => {
    try {
      await callback({ name });
    } finally {
      const next = held.get(name)?.shift();
      if (next === undefined) held.delete(name);
      else next();
    }
  };
  return {
    async request(name, { ifAvailable, signal }, callback) {
      signal?.throwIfAborted();
      const waiting = held.get(name);
      if (waiting === undefined) {
        held.set(name, []);
        return run(name, callback);
      }
      if (ifAvailable === true) return callback(null);
      await new Promise<void>((resolve, reject) => {
        const turn = () => {
          signal?.removeEventListener("abort", abort);
          resolve();
        };
        const abort = () => {
          waiting.splice(waiting.indexOf(turn), 1);
          reject(signal?.reason);
        };
        waiting.push(turn);
        signal?.addEventListener("abort", abort, { once: true });
      });
      return run(name, callback);
    },
  };
}

/** The lock that stands for a client id. */
export function lockName(scope: string, client: string): string {
  return `graft-client ${scope} ${client}`;
}

/** Storage that ends with the page or process. A `Db` that is opened on it again goes on where the last ended. */
export function memory(): Storage {
  const locks = inProcessLocks();
  const scopes = new Map<string, Map<string, { record: ClientRecord; mutations: Map<number, StoredMutation> }>>();
  const clientsOf = (scope: string) => {
    const clients = scopes.get(scope) ?? new Map<string, { record: ClientRecord; mutations: Map<number, StoredMutation> }>();
    scopes.set(scope, clients);
    return clients;
  };
  return {
    async clients(scope) {
      const found = [...clientsOf(scope)].map(([client, { mutations }]) => ({ client, mutations: mutations.size }));
      return found.sort((a, b) => b.mutations - a.mutations);
    },
    async load(scope, client) {
      const stored = clientsOf(scope).get(client);
      if (stored === undefined) return undefined;
      const mutations = [...stored.mutations.values()].sort((a, b) => a.seq - b.seq);
      return { ...stored.record, mutations };
    },
    async write(scope, record, add, remove) {
      const clients = clientsOf(scope);
      const before = clients.get(record.client);
      const mutations = new Map(before?.mutations);
      for (const mutation of add) {
        if (mutations.has(mutation.seq)) throw new Error(`mutation ${mutation.seq} is stored already`);
        mutations.set(mutation.seq, { ...mutation });
      }
      for (const seq of remove) mutations.delete(seq);
      clients.set(record.client, { record: { ...record }, mutations });
    },
    async remove(scope, client) {
      clientsOf(scope).delete(client);
    },
    claim: (scope, client, signal) => claimByLock(locks, lockName(scope, client), signal),
  };
}
