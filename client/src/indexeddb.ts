/**
 * Storage in the browser's IndexedDB.
 *
 * | object store | key | holds |
 * | --- | --- | --- |
 * | `clients` | scope, client | a `ClientRecord` |
 * | `mutations` | scope, client, seq | a `StoredMutation` |
 *
 * Writes are one strict transaction each. Client ids are claimed by the Web Locks API, so that two tabs never
 * use one. Where a page has no Web Locks (an insecure context), no stored id is ever taken over.
 */

import type { ClientRecord, StoredMutation } from "./session.js";
import { claimByLock, lockName, type Locks, type Storage } from "./storage.js";

/** Of the database itself; raised when its stores change. */
const SCHEMA_VERSION = 1;

type MutationRow = StoredMutation & { readonly scope: string; readonly client: string };
type ClientRow = ClientRecord & { readonly scope: string };

export interface IndexedDbOptions {
  /** The database's name. Default: `graft-client`. */
  readonly name?: string;
  /** Default: the global `indexedDB`. */
  readonly factory?: IDBFactory;
  /** Default: `navigator.locks`, where there is one. */
  readonly locks?: Locks;
}

/** Storage that survives a reload. Nothing is opened before it is used. */
export function indexedDb(options: IndexedDbOptions = {}): Storage {
  const factory = options.factory ?? globalThis.indexedDB;
  const locks = options.locks ?? globalThis.navigator?.locks;
  const name = options.name ?? "graft-client";
  let opening: Promise<IDBDatabase> | undefined;

  const open = (): Promise<IDBDatabase> => {
    opening ??= openDatabase(factory, name, () => (opening = undefined)).catch((error: unknown) => {
      opening = undefined;
      throw error;
    });
    return opening;
  };

  return {
    async clients(scope) {
      const db = await open();
      const tx = db.transaction(["clients", "mutations"], "readonly");
      const rows = await answer<ClientRow[]>(tx.objectStore("clients").getAll(within(scope)));
      const counts = rows.map(({ client }) => answer(tx.objectStore("mutations").count(within(scope, client))));
      const found = await Promise.all(rows.map(async ({ client }, at) => ({ client, mutations: (await counts[at]) ?? 0 })));
      return found.sort((a, b) => b.mutations - a.mutations);
    },

    async load(scope, client) {
      const db = await open();
      const tx = db.transaction(["clients", "mutations"], "readonly");
      const record = answer<ClientRow | undefined>(tx.objectStore("clients").get([scope, client]));
      // By key, and so by ascending seq.
      const rows = answer<MutationRow[]>(tx.objectStore("mutations").getAll(within(scope, client)));
      const [found, mutations] = await Promise.all([record, rows]);
      if (found === undefined) return undefined;
      const { volume, nextSeq, settled, since } = found;
      return {
        client,
        volume,
        nextSeq,
        settled,
        since,
        mutations: mutations.map(({ seq, reducer, args, clock, seed }) => ({ seq, reducer, args, clock, seed })),
      };
    },

    async write(scope, record, add, remove) {
      const { client } = record;
      await change(await open(), (clients, mutations) => {
        clients.put({ scope, ...record } satisfies ClientRow);
        for (const mutation of add) mutations.add({ scope, client, ...mutation } satisfies MutationRow);
        for (const seq of remove) mutations.delete([scope, client, seq]);
      });
    },

    async remove(scope, client) {
      await change(await open(), (clients, mutations) => {
        clients.delete([scope, client]);
        mutations.delete(within(scope, client));
      });
    },

    claim: (scope, client, signal) => claimByLock(locks, `${lockName(scope, client)} ${name}`, signal),
  };
}

/** All keys that begin with `parts`: arrays sort after every string and number. */
function within(...parts: string[]): IDBKeyRange {
  return IDBKeyRange.bound(parts, [...parts, []]);
}

function openDatabase(factory: IDBFactory, name: string, gone: () => void): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = factory.open(name, SCHEMA_VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("clients", { keyPath: ["scope", "client"] });
      request.result.createObjectStore("mutations", { keyPath: ["scope", "client", "seq"] });
    };
    request.onsuccess = () => {
      const db = request.result;
      db.onclose = gone;
      // A page with a newer version of this library wants to upgrade; the next use here opens anew.
      db.onversionchange = () => {
        gone();
        db.close();
      };
      resolve(db);
    };
    request.onerror = () => reject(request.error ?? new Error(`IndexedDB \`${name}\` cannot be opened`));
    request.onblocked = () => reject(new Error(`another tab keeps IndexedDB \`${name}\` at an older version; close it`));
  });
}

function answer<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("IndexedDB failed without a reason"));
  });
}

/** One strict transaction; resolves once it is on disk. */
function change(db: IDBDatabase, make: (clients: IDBObjectStore, mutations: IDBObjectStore) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const tx = db.transaction(["clients", "mutations"], "readwrite", { durability: "strict" });
    tx.oncomplete = () => resolve();
    tx.onabort = () => reject(tx.error ?? new Error("IndexedDB aborted a transaction without a reason"));
    try {
      make(tx.objectStore("clients"), tx.objectStore("mutations"));
    } catch (error) {
      // What was asked for before the fault would be committed otherwise.
      tx.abort();
      reject(error);
    }
  });
}
