/**
 * Where client ids and unanswered mutations are kept, and who may use an id.
 *
 * A *scope* is one volume at one server. A client id belongs to at most one `Db` at a time, because its seqs
 * must not be given twice; the one that has *claimed* it is its user. [`memory`] here and [`indexedDb`] pass
 * one conformance test (`test/storage.test.ts`).
 */
/** Claims an id by a lock of `locks`; without, nothing can be said. */
export async function claimByLock(locks, name, signal) {
    if (locks === undefined)
        return { state: "unknown" };
    return new Promise((resolve, reject) => {
        const hold = (lock) => {
            if (lock === null) {
                resolve({ state: "taken" });
                return Promise.resolve();
            }
            return new Promise((release) => resolve({ state: "owned", release }));
        };
        locks.request(name, signal === undefined ? { ifAvailable: true } : { signal }, hold).catch(reject);
    });
}
/** Locks within this process, for storage that no other process shares. */
export function inProcessLocks() {
    const held = new Map();
    const run = async (name, callback) => {
        try {
            await callback({ name });
        }
        finally {
            const next = held.get(name)?.shift();
            if (next === undefined)
                held.delete(name);
            else
                next();
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
            if (ifAvailable === true)
                return callback(null);
            await new Promise((resolve, reject) => {
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
export function lockName(scope, client) {
    return `graft-client ${scope} ${client}`;
}
/** Storage that ends with the page or process. A `Db` that is opened on it again goes on where the last ended. */
export function memory() {
    const locks = inProcessLocks();
    const scopes = new Map();
    const clientsOf = (scope) => {
        const clients = scopes.get(scope) ?? new Map();
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
            if (stored === undefined)
                return undefined;
            const mutations = [...stored.mutations.values()].sort((a, b) => a.seq - b.seq);
            return { ...stored.record, mutations };
        },
        async write(scope, record, add, remove) {
            const clients = clientsOf(scope);
            const before = clients.get(record.client);
            const mutations = new Map(before?.mutations);
            for (const mutation of add) {
                if (mutations.has(mutation.seq))
                    throw new Error(`mutation ${mutation.seq} is stored already`);
                mutations.set(mutation.seq, { ...mutation });
            }
            for (const seq of remove)
                mutations.delete(seq);
            clients.set(record.client, { record: { ...record }, mutations });
        },
        async remove(scope, client) {
            clientsOf(scope).delete(client);
        },
        claim: (scope, client, signal) => claimByLock(locks, lockName(scope, client), signal),
    };
}
