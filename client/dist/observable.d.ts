/** Read it by `get`, watch it by `subscribe`. The value is frozen, and the same object until it changes. */
export interface Observable<T> {
    get(): T;
    /** Calls `listener` after each change, until the returned function is called. */
    subscribe(listener: (value: T) => void): () => void;
}
/** Listeners that cannot disturb each other or the caller. */
export declare class Listeners<T> {
    #private;
    get size(): number;
    add(call: (value: T) => void): () => void;
    call(value: T): void;
}
/** An [`Observable`] with its writing end. */
export declare class Source<T> implements Observable<T> {
    #private;
    constructor(value: T);
    get(): T;
    set(value: T): void;
    subscribe(listener: (value: T) => void): () => void;
}
