/**
 * Typed mutations. `graft codegen ts` writes the types from a module's own description:
 *
 * ```ts
 * export interface TodoMutations {
 *   add_task: { id: string; list: string; title: string };
 *   set_done: { id: string; done: boolean };
 * }
 * declare module "graft-client" {
 *   interface Register { mutations: TodoMutations }
 * }
 * ```
 *
 * One member for each reducer, under its own name, with its arguments; an optional one as `name?: T | null`.
 * Parameter types: text `string`, integer `number | bigint`, real `number`, boolean `boolean`, blob
 * `Uint8Array`, JSON `JsonValue`. With the second declaration every `connect`, `Db` and hook of the program
 * is typed; without it, say `connect<TodoMutations>(…)`.
 */
/** The reducer behind a method's name. */
export function reducerName(method) {
    return method.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
/** `db.mutate` around the function that makes mutations. */
export function mutateProxy(call) {
    const methods = new Map();
    const target = (reducer, args = {}) => call(reducer, args);
    const proxy = new Proxy(target, {
        get(of, property) {
            if (typeof property === "symbol" || property === "then" || property in of)
                return Reflect.get(of, property);
            let method = methods.get(property);
            if (method === undefined) {
                method = (args = {}) => call(reducerName(property), args);
                methods.set(property, method);
            }
            return method;
        },
    });
    // The proxy answers every name, and checks none: the types are the program's word on what there is.
    return proxy;
}
/** A [`MutationHandle`] with its writing end. */
export class Handle {
    seq;
    accepted;
    durable;
    #stored;
    #accepted;
    #durable;
    #fail = [];
    constructor() {
        const promise = (keep) => {
            const made = new Promise((resolve, reject) => {
                keep(resolve);
                this.#fail.push(reject);
            });
            made.catch(() => undefined); // Whoever looks at it still sees the rejection.
            return made;
        };
        this.seq = promise((resolve) => (this.#stored = resolve));
        this.accepted = promise((resolve) => (this.#accepted = resolve));
        this.durable = promise((resolve) => (this.#durable = resolve));
    }
    stored(seq) {
        this.#stored(seq);
    }
    acceptedAt(landed) {
        this.#accepted(landed);
    }
    durableAt(landed) {
        this.#accepted(landed);
        this.#durable(landed);
    }
    /** Rejects whatever has not come true. */
    fail(error) {
        for (const reject of this.#fail)
            reject(error);
    }
}
