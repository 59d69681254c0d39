/** A value that an app can read and watch. */
import { report } from "./errors.js";

/** Read it by `get`, watch it by `subscribe`. The value is frozen, and the same object until it changes. */
export interface Observable<T> {
  get(): T;
  /** Calls `listener` after each change, until the returned function is called. */
  subscribe(listener: (value: T) => void): () => void;
}

/** Listeners that cannot disturb each other or the caller. */
export class Listeners<T> {
  readonly #listeners = new Set<{ readonly call: (value: T) => void }>();

  get size(): number {
    return this.#listeners.size;
  }

  add(call: (value: T) => void): () => void {
    const listener = { call };
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  call(value: T): void {
    for (const listener of [...this.#listeners]) {
      if (!this.#listeners.has(listener)) continue;
      try {
        listener.call(value);
      } catch (error) {
        report(error);
      }
    }
  }
}

/** An [`Observable`] with its writing end. */
export class Source<T> implements Observable<T> {
  #value: T;
  readonly #listeners = new Listeners<T>();

  constructor(value: T) {
    this.#value = value;
  }

  get(): T {
    return this.#value;
  }

  set(value: T): void {
    if (Object.is(value, this.#value)) return;
    this.#value = value;
    this.#listeners.call(value);
  }

  subscribe(listener: (value: T) => void): () => void {
    return this.#listeners.add(listener);
  }
}
