/** A value that an app can read and watch. */
import { report } from "./errors.js";
/** Listeners that cannot disturb each other or the caller. */
export class Listeners {
    #listeners = new Set();
    get size() {
        return this.#listeners.size;
    }
    add(call) {
        const listener = { call };
        this.#listeners.add(listener);
        return () => void this.#listeners.delete(listener);
    }
    call(value) {
        for (const listener of [...this.#listeners]) {
            if (!this.#listeners.has(listener))
                continue;
            try {
                listener.call(value);
            }
            catch (error) {
                report(error);
            }
        }
    }
}
/** An [`Observable`] with its writing end. */
export class Source {
    #value;
    #listeners = new Listeners();
    constructor(value) {
        this.#value = value;
    }
    get() {
        return this.#value;
    }
    set(value) {
        if (Object.is(value, this.#value))
            return;
        this.#value = value;
        this.#listeners.call(value);
    }
    subscribe(listener) {
        return this.#listeners.add(listener);
    }
}
