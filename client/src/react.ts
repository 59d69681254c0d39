/** React bindings: a thin layer over [`Db`] on `useSyncExternalStore`. */

import {
  createContext,
  createElement,
  useCallback,
  useContext,
  useEffect,
  useMemo,
  useSyncExternalStore,
  type ReactNode,
} from "react";

import type { Db, LiveOptions, PendingMutation, Status } from "./db.js";
import type { LiveResult } from "./live.js";
import type { AnyMutations, DefaultMutations, Given, MutationHandle, Mutations } from "./mutations.js";
import type { Observable } from "./observable.js";
import type { Present } from "./presence.js";
import type { Row } from "./rows.js";
import { encodeParams, type JsonValue, type Params } from "./value.js";

// A context has one type for all programs; `useDb` gives each its own back.
const Context = createContext<Db<AnyMutations> | undefined>(undefined);

/** Makes `db` known to the hooks below it. It does not close it: who connected does. */
export function GraftProvider<M extends Mutations<M> = DefaultMutations>(props: {
  readonly db: Db<M>;
  readonly children?: ReactNode;
}): ReactNode {
  return createElement(Context.Provider, { value: props.db as unknown as Db<AnyMutations> }, props.children);
}

/** The `Db` of the provider above. Throws where there is none. */
export function useDb<M extends Mutations<M> = DefaultMutations>(): Db<M> {
  const db = useContext(Context);
  if (db === undefined) throw new Error("there is no <GraftProvider db={…}> above this component");
  return db as unknown as Db<M>;
}

/**
 * A live query. `params` and `key` may be new objects at each render; only their content counts. A row that
 * did not change is the same object, so `memo` components of it are not drawn again.
 */
export function useQuery<R extends object = Row>(sql: string, params: Params = [], options: LiveOptions = {}): LiveResult<R> {
  const db = useDb();
  const content = JSON.stringify([encodeParams(params), options.key]);
  // `content` stands for `params` and `options`.
  const live = useMemo(() => db.live<R>(sql, params, options), [db, sql, content]);
  return useObservable(live);
}

/** A reducer, by its own name, as a function that is the same at each render. */
export function useMutation<M extends Mutations<M> = DefaultMutations, K extends keyof M & string = keyof M & string>(
  reducer: K,
): (...args: Given<M[K]>) => MutationHandle {
  const db = useDb<M>();
  return useCallback((...args: Given<M[K]>) => db.mutate(reducer, ...args), [db, reducer]);
}

/** The connection's state. */
export function useStatus(): Status {
  return useObservable(useDb().status);
}

/** Mutations without a final answer. */
export function usePending(): readonly PendingMutation[] {
  return useObservable(useDb().pending);
}

/**
 * Who is connected. With `state`, this client is too, and this is what the others see of it, for as long as the
 * component is there; only the content of `state` counts. One component should give it: the last one holds.
 */
export function usePresence(state?: JsonValue): Present {
  const { presence } = useDb();
  const content = JSON.stringify(state);
  const given = state !== undefined;
  useEffect(() => {
    if (state !== undefined) presence.set(state);
    // `content` stands for `state`.
  }, [presence, content]);
  // Apart, so that another state takes the place of the one before and nobody sees us leave.
  useEffect(() => (given ? () => presence.clear() : undefined), [presence, given]);
  return useObservable(presence);
}

function useObservable<T>(observable: Observable<T>): T {
  const subscribe = useCallback((changed: () => void) => observable.subscribe(changed), [observable]);
  const get = useCallback(() => observable.get(), [observable]);
  return useSyncExternalStore(subscribe, get, get);
}
