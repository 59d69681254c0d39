/** A volume, as an app uses it: [`connect`] and the [`Db`] it answers. */

import { Driver, freshClient, freshSeed } from "./driver.js";
import { ConnectError, MutationError, QueryError, messageOf, report } from "./errors.js";
import { indexedDb } from "./indexeddb.js";
import { addressOf, type Token, type WebSocketConstructor } from "./link.js";
import { LiveQueries, type LiveResult } from "./live.js";
import {
  Handle,
  mutateProxy,
  type Args,
  type DefaultMutations,
  type Landed,
  type Mutate,
  type MutationHandle,
  type Mutations,
} from "./mutations.js";
import { Source, type Observable } from "./observable.js";
import { Presence, type Present } from "./presence.js";
import type { Reason } from "./protocol.js";
import type { At, ResultRows, Row } from "./rows.js";
import { CallError, DEFAULT_CONFIG, type ClientState, type Kept, type Notice, type Phase, type SessionConfig } from "./session.js";
import { memory, type Claim, type Storage } from "./storage.js";
import { decodeArgs, encodeArgs, encodeParams, ValueError, type Params } from "./value.js";

/** How to reach a volume. */
export interface ConnectOptions {
  /** The server: `http://127.0.0.1:4600`, or in a page a path such as `/`. */
  readonly url: string;
  /** The volume's name. */
  readonly volume: string;
  /** Shown to the server as `access_token`; a function is asked before each dial. */
  readonly token?: Token;
  /**
   * This device's own name, 1 to 64 of A-Z a-z 0-9 - _, in use nowhere else at the same time. Default: one
   * that the storage has and nobody uses, else a fresh random one.
   */
  readonly clientId?: string;
  /** Where unanswered mutations wait. Default: `indexedDb()`, or `memory()` where there is none. */
  readonly storage?: Storage;
  /** Default: the global `WebSocket`; in Node 20, that of the package `ws`. */
  readonly webSocket?: WebSocketConstructor;
  /**
   * Told of every mutation that had no effect, also of those that were made before a reload. Where absent,
   * the latter are named on the console.
   */
  readonly onRejected?: (rejection: Rejection) => void;
  /** Bounds and waits, where the defaults do not fit. */
  readonly config?: Partial<SessionConfig>;
}

/** A mutation that had no effect. */
export interface Rejection {
  readonly reducer: string;
  readonly args: Args;
  readonly error: MutationError;
  /** It was made by an earlier page or another tab, so that nobody here holds its promises. */
  readonly restored: boolean;
}

/** The connection, as a page shows it. Frozen. */
export interface Status {
  /**
   * - `connecting`: for the first time;
   * - `live`;
   * - `offline`: the connection failed; it is tried again, ever more slowly, and at once when the network is
   *   back;
   * - `ended`: closed by the app, or for a reason that dialling again cannot mend (`error`).
   */
  readonly state: "connecting" | "live" | "offline" | "ended";
  /** Mutations of this `Db` without a final answer. */
  readonly pending: number;
  /** Why the last connection failed, or why it ended. */
  readonly error: Reason | undefined;
  /** The volume's identity, once known. */
  readonly volume: string | undefined;
  /** The reducer module in force, while live. */
  readonly module: string | undefined;
}

/** A mutation without a final answer. Frozen. */
export interface PendingMutation {
  /** `undefined` until its number is known. */
  readonly seq: number | undefined;
  readonly reducer: string;
  readonly args: Args;
  /** `storing` on this device, `waiting` for a connection, `sent`, or `accepted` and soon durable. */
  readonly state: Phase;
}

/** Options of a live query. */
export interface LiveOptions {
  /** The columns that identify a row. Default: `id` if there is such a column, else the whole row. */
  readonly key?: readonly string[];
}

/** Options of [`Db.subscribe`]. */
export interface SubscribeOptions extends LiveOptions {
  /** There will be no more rows. Where absent, the error is reported like an uncaught one. */
  readonly onError?: (error: QueryError) => void;
}

/** Options of [`Db.query`]. */
export interface QueryOptions {
  /** Gives the question up. */
  readonly signal?: AbortSignal;
}

interface Question {
  readonly resolve: (rows: readonly Row[]) => void;
  readonly reject: (error: unknown) => void;
}

const CLOSED: Reason = { code: "closed", message: "the client was closed" };
const CLIENT_ID = /^[A-Za-z0-9_-]{1,64}$/;

/** Connects to a volume, and goes on trying until it is closed. Throws a [`ConnectError`] on wrong options. */
export function connect<M extends Mutations<M> = DefaultMutations>(options: ConnectOptions): Db<M> {
  return new Db<M>(options);
}

/** A connection to a volume. Made by [`connect`]. */
export class Db<M extends Mutations<M> = DefaultMutations> {
  /** Calls a reducer: `db.mutate.addTask({…})`, or by its own name `db.mutate("add_task", {…})`. */
  readonly mutate: Mutate<M>;
  /** Who is connected. */
  readonly presence: Presence;
  readonly #options: ConnectOptions;
  readonly #storage: Storage;
  readonly #scope: string;
  readonly #driver: Driver;
  readonly #makeDriver: (notice: (notice: Notice) => void, settled: () => void) => Driver;
  readonly #status: Source<Status>;
  readonly #pending = new Source<readonly PendingMutation[]>(Object.freeze([]));
  readonly #present: Source<Present>;
  readonly #live: LiveQueries;
  readonly #handles = new Map<number, Handle>();
  readonly #questions = new Map<number, Question>();
  /** Aborted when this `Db` ends. */
  readonly #ending = new AbortController();
  /** Ids of closed tabs that are being looked after. */
  readonly #adopted = new Set<string>();
  readonly #adoptions = new Set<Promise<void>>();
  readonly #starting: Promise<void>;
  #release: (() => void) | undefined;
  #closing: Promise<void> | undefined;
  #client: string | undefined;
  #pendingVersion = 0;

  constructor(options: ConnectOptions) {
    const webSocket = options.webSocket ?? (globalThis.WebSocket as WebSocketConstructor | undefined);
    if (webSocket === undefined) {
      throw new ConnectError("there is no global WebSocket here; pass one as `webSocket` (in Node 20, that of the package `ws`)");
    }
    if (options.clientId !== undefined && !CLIENT_ID.test(options.clientId)) {
      throw new ConnectError(`\`${options.clientId}\` is no client id: 1 to 64 of A-Z a-z 0-9 - _`);
    }
    const address = (() => {
      try {
        return addressOf(options.url, options.volume, globalThis.location?.href);
      } catch (error) {
        throw new ConnectError(messageOf(error));
      }
    })();
    this.#options = options;
    this.#storage = options.storage ?? (globalThis.indexedDB === undefined ? memory() : indexedDb());
    this.#scope = address.socket;
    const config = { ...DEFAULT_CONFIG, ...options.config };
    this.#makeDriver = (notice, settled) =>
      new Driver({ address, token: options.token, webSocket, storage: this.#storage, config }, notice, settled);
    this.#driver = this.#makeDriver((notice) => this.#notice(notice), () => this.#settled());
    const { session } = this.#driver;
    this.#status = new Source(status(session));
    this.#live = new LiveQueries(
      (sql, params, key) => this.#call(() => session.subscribe(sql, params, key)),
      (sub) => this.#call(() => session.unsubscribe(sub)),
    );
    this.#present = new Source(session.presence.view);
    this.presence = new Presence(session.presence, this.#present, (call) => this.#call(call));
    this.mutate = mutateProxy<M>((reducer, args) => this.#mutate(reducer, args));
    this.#starting = this.#start();
  }

  /** The client id; `undefined` until the storage has been read. */
  get clientId(): string | undefined {
    return this.#client;
  }

  /** The connection's state. */
  get status(): Observable<Status> {
    return this.#status;
  }

  /** Mutations without a final answer, in the order in which they were made. */
  get pending(): Observable<readonly PendingMutation[]> {
    return this.#pending;
  }

  /**
   * Watches a query: calls `onRows` with the whole result, once it is known and after each change, until the
   * returned function is called. Rows are frozen and keep their identity while they do not change.
   */
  subscribe<R extends object = Row>(
    sql: string,
    params: Params,
    onRows: (rows: readonly R[], at: At) => void,
    options: SubscribeOptions = {},
  ): () => void {
    const live = this.live<R>(sql, params, options);
    let watching = true;
    let told: LiveResult<R> | undefined;
    const tell = (result: LiveResult<R>): void => {
      if (!watching || result === told || result.loading) return;
      told = result;
      if (result.error !== undefined) (options.onError ?? report)(result.error);
      else if (result.at !== undefined) onRows(result.rows, result.at);
    };
    const unsubscribe = live.subscribe(tell);
    // Somebody else may have watched it before: its rows are known, and come after the caller has gone on.
    queueMicrotask(() => {
      try {
        tell(live.get());
      } catch (error) {
        report(error);
      }
    });
    return () => {
      watching = false;
      unsubscribe();
    };
  }

  /** A live query as a value to read and to watch; open while it is watched. For bindings to a UI library. */
  live<R extends object = Row>(sql: string, params: Params = [], options: LiveOptions = {}): Observable<LiveResult<R>> {
    // The rows' type is the caller's word on what the SQL selects.
    return this.#live.query(sql, encodeParams(params), options.key) as unknown as Observable<LiveResult<R>>;
  }

  /** Asks once. Waits for a connection; sees what is accepted. Rejects with a [`QueryError`]. */
  query<R extends object = Row>(sql: string, params: Params = [], options: QueryOptions = {}): Promise<readonly R[]> {
    const { signal } = options;
    return new Promise<readonly R[]>((resolve, reject) => {
      signal?.throwIfAborted();
      const { session } = this.#driver;
      const id = this.#call(() => session.query(sql, encodeParams(params)));
      const abort = () => {
        this.#questions.delete(id);
        this.#call(() => session.forgetQuery(id));
        reject(signal?.reason);
      };
      signal?.addEventListener("abort", abort, { once: true });
      const done = () => signal?.removeEventListener("abort", abort);
      this.#questions.set(id, {
        resolve: (rows) => {
          done();
          resolve(rows as unknown as readonly R[]);
        },
        reject: (error) => {
          done();
          reject(error);
        },
      });
    }).catch((error: unknown) => {
      if (error instanceof CallError) throw new QueryError({ code: error.code, message: error.message });
      throw error;
    });
  }

  /**
   * Ends the connection; what is pending stays stored for the next one. Resolves once it is, and the client
   * id is free.
   */
  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  /**
   * Closes, and removes what this client has stored: its id and its unanswered mutations, which are answered.
   * For after an end that says that they must not be sent (`volume_changed`, `history_lost`).
   */
  async discard(): Promise<readonly PendingMutation[]> {
    await this.#starting;
    const pending = this.#pending.get();
    const release = this.#release;
    this.#release = undefined; // Kept until it is removed.
    await this.close();
    if (this.#client !== undefined) await this.#storage.remove(this.#scope, this.#client);
    release?.();
    return pending;
  }

  async #start(): Promise<void> {
    let state: ClientState | undefined;
    try {
      state = await this.#choose();
    } catch (error) {
      const message = `what is stored on this device cannot be read: ${messageOf(error)}`;
      await this.#driver.stop({ code: "storage", message });
    }
    if (state === undefined || this.#ending.signal.aborted) return;
    this.#client = state.client;
    this.#driver.start(state);
  }

  /** Finds a client id to be, and claims it. `undefined`: the session has been ended. */
  async #choose(): Promise<ClientState | undefined> {
    const asked = this.#options.clientId;
    if (asked !== undefined) {
      const claim = await this.#storage.claim(this.#scope, asked);
      if (claim.state === "taken") {
        const message = `client id \`${asked}\` is in use by another tab or connection; close it, or use another id`;
        await this.#driver.stop({ code: "client_in_use", message });
        return undefined;
      }
      this.#own(claim);
      const stored = await this.#storage.load(this.#scope, asked);
      return stored ?? { client: asked, volume: null, nextSeq: null, settled: 0, mutations: [] };
    }
    for (const { client } of await this.#storage.clients(this.#scope)) {
      const claim = await this.#storage.claim(this.#scope, client);
      if (claim.state !== "owned") continue;
      const stored = await this.#storage.load(this.#scope, client);
      if (stored !== undefined) {
        this.#own(claim);
        return stored;
      }
      claim.release();
    }
    const fresh = freshClient();
    this.#own(await this.#storage.claim(this.#scope, fresh.client));
    return fresh;
  }

  #own(claim: Claim): void {
    if (claim.state === "owned") this.#release = claim.release;
  }

  async #end(): Promise<void> {
    this.#ending.abort();
    await this.#driver.stop(CLOSED);
    await this.#starting;
    await Promise.all(this.#adoptions);
    this.#release?.();
  }

  /** Calls the session and carries out what follows. */
  #call<T>(call: () => T): T {
    try {
      return call();
    } finally {
      this.#driver.run();
    }
  }

  #mutate(reducer: string, args: Args): MutationHandle {
    const handle = new Handle();
    try {
      const { session } = this.#driver;
      const call = session.mutate(reducer, encodeArgs(args), Date.now(), freshSeed());
      this.#handles.set(call, handle);
    } catch (error) {
      if (!(error instanceof CallError) && !(error instanceof ValueError)) throw error;
      const ended = this.#driver.session.connection.state === "ended";
      const code = error instanceof CallError ? error.code : "bad_arguments";
      handle.fail(new MutationError(ended ? "closed" : "refused", { code, message: error.message }, reducer, undefined));
    }
    this.#driver.run();
    return handle;
  }

  #notice(notice: Notice): void {
    switch (notice.type) {
      case "stored":
        return this.#handles.get(notice.call)?.stored(notice.seq);
      case "accepted":
        return this.#handleOf(notice.mutation)?.acceptedAt(landed(notice));
      case "durable": {
        this.#handleOf(notice.mutation)?.durableAt(landed(notice));
        return this.#forget(notice.mutation);
      }
      case "rejected":
      case "refused":
        this.#rejected(notice.mutation, new MutationError(notice.type, notice.reason, notice.mutation.reducer, notice.mutation.seq));
        return undefined;
      case "rows":
        return this.#live.moved(notice.sub, notice.rows);
      case "subscription_failed":
        return this.#live.failed(notice.sub, notice.reason);
      case "resubscribed":
        return console.warn(`graft-client: a delta did not fit, and a live query was opened anew: ${notice.why}`);
      case "answer":
        return this.#answered(notice.id, notice.rows);
      case "query_failed":
        this.#questions.get(notice.id)?.reject(new QueryError(notice.reason));
        this.#questions.delete(notice.id);
        return undefined;
      case "presence":
        return this.#present.set(this.#driver.session.presence.view);
      case "status":
        return this.#connectionChanged();
    }
  }

  #handleOf(mutation: Kept): Handle | undefined {
    return mutation.call === undefined ? undefined : this.#handles.get(mutation.call);
  }

  #forget(mutation: Kept): void {
    if (mutation.call !== undefined) this.#handles.delete(mutation.call);
  }

  #rejected(mutation: Kept, error: MutationError): void {
    this.#handleOf(mutation)?.fail(error);
    this.#forget(mutation);
    this.#tellRejected(mutation, error, mutation.call === undefined);
  }

  #tellRejected(mutation: Kept, error: MutationError, restored: boolean): void {
    const { onRejected } = this.#options;
    if (onRejected !== undefined) {
      onRejected({ reducer: mutation.reducer, args: decodeArgs(mutation.args), error, restored });
    } else if (restored) {
      // Nobody holds its promises.
      console.warn(`graft-client: \`${mutation.reducer}\`, made before this page was loaded, had no effect: ${error.message}`);
    }
  }

  #answered(id: number, rows: ResultRows): void {
    this.#questions.get(id)?.resolve(rows.rows);
    this.#questions.delete(id);
  }

  #connectionChanged(): void {
    const { state, error } = this.#driver.session.connection;
    if (state === "live") this.#adopt();
    if (state !== "ended") return;
    const reason = error ?? CLOSED;
    for (const mutation of this.#driver.session.pending) {
      this.#handleOf(mutation)?.fail(new MutationError("closed", reason, mutation.reducer, mutation.seq));
    }
    this.#handles.clear();
    for (const question of this.#questions.values()) question.reject(new QueryError(reason));
    this.#questions.clear();
    // Who closes it himself needs no telling.
    if (reason !== CLOSED) this.#live.failAll(reason);
    this.#ending.abort();
  }

  /** After each event: tells what changed. */
  #settled(): void {
    const { session } = this.#driver;
    if (session.pendingVersion !== this.#pendingVersion) {
      this.#pendingVersion = session.pendingVersion;
      this.#pending.set(Object.freeze(pendingList(session.pending, this.#pending.get())));
    }
    const now = status(session);
    if (!sameStatus(now, this.#status.get())) this.#status.set(now);
  }

  /** Sends what closed tabs have left, each under its own id, once that is free. */
  #adopt(): void {
    const adopt = async (): Promise<void> => {
      for (const { client, mutations } of await this.#storage.clients(this.#scope)) {
        if (client === this.#client || mutations === 0 || this.#adopted.has(client)) continue;
        this.#adopted.add(client);
        this.#look(this.#drain(client).finally(() => this.#adopted.delete(client)));
      }
    };
    this.#look(adopt());
  }

  /** Keeps an adoption in sight until it is over. */
  #look(adoption: Promise<void>): void {
    const watched = adoption
      .catch((error: unknown) => {
        if (!this.#ending.signal.aborted) report(error);
      })
      .finally(() => this.#adoptions.delete(watched));
    this.#adoptions.add(watched);
  }

  async #drain(client: string): Promise<void> {
    const { signal } = this.#ending;
    const claim = await this.#storage.claim(this.#scope, client, signal);
    if (claim.state !== "owned") return;
    try {
      const state = await this.#storage.load(this.#scope, client);
      if (state === undefined || state.mutations.length === 0 || signal.aborted) return;
      let over!: () => void;
      const done = new Promise<void>((resolve) => (over = resolve));
      const driver = this.#makeDriver(
        (notice) => {
          if (notice.type !== "rejected" && notice.type !== "refused") return;
          const { mutation, reason } = notice;
          this.#tellRejected(mutation, new MutationError(notice.type, reason, mutation.reducer, mutation.seq), true);
        },
        () => {
          const { connection, pendingCount } = driver.session;
          if (connection.state === "ended" || pendingCount === 0) over();
        },
      );
      signal.addEventListener("abort", over, { once: true });
      driver.start(state);
      await done;
      const empty = driver.session.pendingCount === 0;
      await driver.stop(CLOSED);
      if (empty) await this.#storage.remove(this.#scope, client);
    } finally {
      claim.release();
    }
  }
}

function landed(notice: { readonly mutation: Kept; readonly lsn: number }): Landed {
  return { seq: notice.mutation.seq ?? 0, lsn: notice.lsn };
}

function status(session: Driver["session"]): Status {
  const { state, error, volume, module } = session.connection;
  return Object.freeze({
    state,
    pending: session.pendingCount,
    error,
    volume: volume ?? undefined,
    module: module ?? undefined,
  });
}

function sameStatus(a: Status, b: Status): boolean {
  return (
    a.state === b.state &&
    a.pending === b.pending &&
    a.volume === b.volume &&
    a.module === b.module &&
    a.error?.code === b.error?.code &&
    a.error?.message === b.error?.message
  );
}

/** The list for the app; what did not change keeps its identity. */
function pendingList(kept: readonly Kept[], before: readonly PendingMutation[]): readonly PendingMutation[] {
  const known = new Map(before.map((mutation) => [mutation.seq, mutation]));
  return kept.map(({ seq, reducer, args, phase }) => {
    const same = seq === undefined ? undefined : known.get(seq);
    if (same?.state === phase) return same;
    return Object.freeze({ seq, reducer, args: same?.args ?? Object.freeze(decodeArgs(args)), state: phase });
  });
}
