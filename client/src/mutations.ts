/**
 * Typed mutations. `graft codegen ts` writes the types from a module's own description:
 *
 * ```ts
 * import type {} from "graft-client";
 *
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

import type { MutationError } from "./errors.js";
import type { ArgValue } from "./value.js";

/** What a reducer takes, by parameter. */
export type Args = Readonly<Record<string, ArgValue>>;

/** An app's reducers and their arguments: any object type whose members are object types. */
export type Mutations<M> = { readonly [K in keyof M]: object };

/** Any reducer with any arguments: what there is without generated types. */
export type AnyMutations = Readonly<Record<string, Args>>;

/** For declaration merging, as above. */
export interface Register {}

/** The program's registered mutations, or any. */
export type DefaultMutations = Register extends { mutations: infer M } ? M : AnyMutations;

/** `add_task` as `addTask`: each underscore before a small letter goes, and the letter becomes a capital. */
export type CamelName<S extends string> = S extends `${infer Head}_${infer Tail}`
  ? Tail extends Capitalize<Tail>
    ? `${Head}_${CamelName<Tail>}`
    : `${Head}${CamelName<Capitalize<Tail>>}`
  : S;

/** Names that every function has; and `then`, or `await db.mutate` would run a reducer. */
type Reserved = keyof CallableFunction | "name" | "length" | "arguments" | "caller" | "prototype" | "then" | "constructor";

/** Reducer names that have a method: those without capitals, whose camel case can be read back. */
type MethodName<K> = K extends string
  ? string extends K
    ? K
    : K extends Lowercase<K>
      ? CamelName<K> extends Reserved
        ? never
        : K
      : never
  : never;

/** The arguments of a reducer; none need be given where none must. */
export type Given<A> = Record<never, never> extends A ? [args?: A] : [args: A];

/** `db.mutate`: `db.mutate.addTask({…})` or `db.mutate("add_task", {…})`. */
export type Mutate<M extends Mutations<M>> = {
  <K extends keyof M & string>(reducer: K, ...args: Given<M[K]>): MutationHandle;
} & {
  readonly [K in MethodName<keyof M> as CamelName<K>]: (...args: Given<M[K]>) => MutationHandle;
};

/** Where a mutation is. */
export interface Landed {
  readonly seq: number;
  /** The commit that holds it. */
  readonly lsn: number;
}

/**
 * A mutation on its way. Each promise rejects with a [`MutationError`] if it will not come true; a promise
 * that nobody looks at makes no noise. (`ConnectOptions.onRejected` hears of every one.)
 */
export interface MutationHandle {
  /** Its number, once it is stored on this device: from then on it survives a reload. */
  readonly seq: Promise<number>;
  /** Ordered and applied at the server's tip: others see it. It may still be rejected if the server dies. */
  readonly accepted: Promise<Landed>;
  /** In object storage, and final. */
  readonly durable: Promise<Landed>;
}

/** The reducer behind a method's name. */
export function reducerName(method: string): string {
  return method.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** `db.mutate` around the function that makes mutations. */
export function mutateProxy<M extends Mutations<M>>(call: (reducer: string, args: Args) => MutationHandle): Mutate<M> {
  const methods = new Map<string, (args?: Args) => MutationHandle>();
  const target = (reducer: string, args: Args = {}) => call(reducer, args);
  const proxy = new Proxy(target, {
    get(of, property) {
      if (typeof property === "symbol" || property === "then" || property in of) return Reflect.get(of, property);
      let method = methods.get(property);
      if (method === undefined) {
        method = (args = {}) => call(reducerName(property), args);
        methods.set(property, method);
      }
      return method;
    },
  });
  // The proxy answers every name, and checks none: the types are the program's word on what there is.
  return proxy as unknown as Mutate<M>;
}

/** A [`MutationHandle`] with its writing end. */
export class Handle implements MutationHandle {
  readonly seq: Promise<number>;
  readonly accepted: Promise<Landed>;
  readonly durable: Promise<Landed>;
  #stored!: (seq: number) => void;
  #accepted!: (landed: Landed) => void;
  #durable!: (landed: Landed) => void;
  readonly #fail: ((error: MutationError) => void)[] = [];

  constructor() {
    const promise = <T>(keep: (resolve: (value: T) => void) => void): Promise<T> => {
      const made = new Promise<T>((resolve, reject) => {
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

  stored(seq: number): void {
    this.#stored(seq);
  }

  acceptedAt(landed: Landed): void {
    this.#accepted(landed);
  }

  durableAt(landed: Landed): void {
    this.#accepted(landed);
    this.#durable(landed);
  }

  /** Rejects whatever has not come true. */
  fail(error: MutationError): void {
    for (const reject of this.#fail) reject(error);
  }
}
