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
import { type Locks, type Storage } from "./storage.js";
export interface IndexedDbOptions {
    /** The database's name. Default: `graft-client`. */
    readonly name?: string;
    /** Default: the global `indexedDB`. */
    readonly factory?: IDBFactory;
    /** Default: `navigator.locks`, where there is one. */
    readonly locks?: Locks;
}
/** Storage that survives a reload. Nothing is opened before it is used. */
export declare function indexedDb(options?: IndexedDbOptions): Storage;
