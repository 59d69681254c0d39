/** React bindings: a thin layer over [`Db`] on `useSyncExternalStore`. */
import { type ReactNode } from "react";
import type { Db, LiveOptions, PendingMutation, Status } from "./db.js";
import type { LiveResult } from "./live.js";
import type { DefaultMutations, Given, MutationHandle, Mutations } from "./mutations.js";
import type { Row } from "./rows.js";
import { type Params } from "./value.js";
/** Makes `db` known to the hooks below it. It does not close it: who connected does. */
export declare function GraftProvider<M extends Mutations<M> = DefaultMutations>(props: {
    readonly db: Db<M>;
    readonly children?: ReactNode;
}): ReactNode;
/** The `Db` of the provider above. Throws where there is none. */
export declare function useDb<M extends Mutations<M> = DefaultMutations>(): Db<M>;
/**
 * A live query. `params` and `key` may be new objects at each render; only their content counts. A row that
 * did not change is the same object, so `memo` components of it are not drawn again.
 */
export declare function useQuery<R extends object = Row>(sql: string, params?: Params, options?: LiveOptions): LiveResult<R>;
/** A reducer, by its own name, as a function that is the same at each render. */
export declare function useMutation<M extends Mutations<M> = DefaultMutations, K extends keyof M & string = keyof M & string>(reducer: K): (...args: Given<M[K]>) => MutationHandle;
/** The connection's state. */
export declare function useStatus(): Status;
/** Mutations without a final answer. */
export declare function usePending(): readonly PendingMutation[];
