/** React bindings: a thin layer over [`Db`] on `useSyncExternalStore`. */
import { createContext, createElement, useCallback, useContext, useMemo, useSyncExternalStore } from "react";
import { encodeParams } from "./value.js";
// A context has one type for all programs; `useDb` gives each its own back.
const Context = createContext(undefined);
/** Makes `db` known to the hooks below it. It does not close it: who connected does. */
export function GraftProvider(props) {
    return createElement(Context.Provider, { value: props.db }, props.children);
}
/** The `Db` of the provider above. Throws where there is none. */
export function useDb() {
    const db = useContext(Context);
    if (db === undefined)
        throw new Error("there is no <GraftProvider db={…}> above this component");
    return db;
}
/**
 * A live query. `params` and `key` may be new objects at each render; only their content counts. A row that
 * did not change is the same object, so `memo` components of it are not drawn again.
 */
export function useQuery(sql, params = [], options = {}) {
    const db = useDb();
    const content = JSON.stringify([encodeParams(params), options.key]);
    // `content` stands for `params` and `options`.
    const live = useMemo(() => db.live(sql, params, options), [db, sql, content]);
    return useObservable(live);
}
/** A reducer, by its own name, as a function that is the same at each render. */
export function useMutation(reducer) {
    const db = useDb();
    return useCallback((...args) => db.mutate(reducer, ...args), [db, reducer]);
}
/** The connection's state. */
export function useStatus() {
    return useObservable(useDb().status);
}
/** Mutations without a final answer. */
export function usePending() {
    return useObservable(useDb().pending);
}
function useObservable(observable) {
    const subscribe = useCallback((changed) => observable.subscribe(changed), [observable]);
    const get = useCallback(() => observable.get(), [observable]);
    return useSyncExternalStore(subscribe, get, get);
}
