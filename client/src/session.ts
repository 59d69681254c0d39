/**
 * The client's half of sync: what survives a connection, and what is said on each.
 *
 * ```text
 *        restore          opened             welcome
 * idle ----------> offline ------> greeting ---------> live
 *                   ^  | redial timer, wake: dial       |
 *                   |  +---------------------+ closed, silence, broken frame, `error`
 *                   +------------------------<----------+
 * any --> ended: the app closed it, or an end that dialling again cannot mend
 * ```
 *
 * It mirrors `sqlsync-layer/src/session/client.rs` and adds what a reload needs: a mutation is stored
 * before it is sent, and so is the volume's identity. Like it, this file has no sockets, clocks, storage or
 * randomness: the driver feeds events and carries out effects in order. After `hangup` it feeds nothing
 * more from that connection.
 *
 * Mutations are numbered 1, 2, 3… for each client id as soon as the next number is known, and kept until
 * they are durable, finally rejected, or refused for good; after each `welcome` those still kept are sent
 * again in order, at most `max_in_flight` at a time. Live queries are opened again under their ids; their
 * rows stay meanwhile. Queries without an answer are asked again: they only read. Who is connected is a part
 * of its own, [`PresenceSession`].
 *
 * Invariants: a kept mutation is never dropped without a notice; a seq is never sent with two contents;
 * nothing is sent that is not stored; a server that knows less than it called final, or another volume
 * under the same name, ends the session and leaves the kept mutations where they are.
 */

import { PresenceSession } from "./presence.js";
import {
  FRAME_BYTES_MAX,
  MalformedMessage,
  PROTOCOL,
  SEQ_MAX,
  type Reason,
  type ServerMessage,
  byteLength,
  hello,
  mutate,
  ping,
  query,
  readServerMessage,
  subscribe,
  unsubscribe,
} from "./protocol.js";
import { ResultRows, RowsError, type At, type Changes, type WireRows } from "./rows.js";

/** Bounds and waits of a session, in ms. */
export interface SessionConfig {
  /** The wait before the first redial; it doubles with each failure in a row. */
  readonly backoffMin: number;
  /** The longest wait before a redial. */
  readonly backoffMax: number;
  /** How long a socket may take to open. */
  readonly dialMax: number;
  /** How long the server may take from the opened socket to `welcome`. */
  readonly greetingMax: number;
  /** A `ping` goes out when nothing was heard for this long; after the same again the connection is given up. */
  readonly keepalive: number;
  /** Mutations kept at most. */
  readonly pendingMax: number;
}

export const DEFAULT_CONFIG: SessionConfig = {
  backoffMin: 100,
  backoffMax: 10_000,
  dialMax: 10_000,
  greetingMax: 10_000,
  keepalive: 15_000,
  pendingMax: 100_000,
};

/** A numbered mutation, as it is stored and sent. */
export interface StoredMutation {
  readonly seq: number;
  readonly reducer: string;
  /** JSON text of the arguments' object. */
  readonly args: string;
  /** The client's wall clock when it was made, ms since 1970. */
  readonly clock: number;
  /** 16 hex digits. */
  readonly seed: string;
}

/** What is kept about a client id beside its mutations. */
export interface ClientRecord {
  readonly client: string;
  /** The volume it spoke to; `null` before the first `welcome`. */
  readonly volume: string | null;
  /** The seq of the next mutation; `null` where only the server knows it. */
  readonly nextSeq: number | null;
  /** The highest seq with a final answer. */
  readonly settled: number;
  /** The `lsn` of the last `welcome` before the id's first mutation: by it the server knows an id that it has forgotten from a new one. */
  readonly since?: number | undefined;
}

/** A client id's whole state; mutations by ascending seq. */
export interface ClientState extends ClientRecord {
  readonly mutations: readonly StoredMutation[];
}

/**
 * How far a mutation has come: not yet stored here; stored and not sent on this connection; sent; applied at
 * the server's tip.
 */
export type Phase = "storing" | "waiting" | "sent" | "accepted";

/** A mutation without a final answer. */
export interface Kept {
  /** The call that made it; `undefined` for one that an earlier run made. */
  readonly call: number | undefined;
  readonly seq: number | undefined;
  readonly reducer: string;
  readonly args: string;
  readonly phase: Phase;
}

interface Mutation extends StoredMutation {
  readonly call: number | undefined;
  /** The store effect that holds it; 0 for one that came from storage. */
  ticket: number;
  phase: Phase;
}

interface Call {
  readonly call: number;
  readonly reducer: string;
  readonly args: string;
  readonly clock: number;
  readonly seed: string;
}

export type Event =
  | { readonly type: "opened" }
  /** The server's HTTP answer declined the connection (a 4xx). */
  | { readonly type: "declined"; readonly reason: Reason }
  | { readonly type: "frame"; readonly text: string }
  /** Dialling failed, or the connection broke; `code` where the server had one for it (a 5xx). */
  | { readonly type: "closed"; readonly why: string; readonly code?: string }
  | { readonly type: "timer" }
  | { readonly type: "presence_timer" }
  /** The network may be back, or the machine has woken: do not wait. */
  | { readonly type: "wake" }
  /** Every store effect up to this ticket is durable on this device. */
  | { readonly type: "stored"; readonly ticket: number }
  /** The store effects after the last `stored` had no effect, and their additions will not be tried again. */
  | { readonly type: "store_failed"; readonly why: string };

export type Effect =
  | { readonly type: "dial" }
  | { readonly type: "hangup" }
  | { readonly type: "send"; readonly frame: string }
  /** Feed `timer` after this long. Replaces the timer set before. */
  | { readonly type: "timer"; readonly ms: number }
  /** Feed `presence_timer` after this long. Replaces the one set before. */
  | { readonly type: "presence_timer"; readonly ms: number }
  /** Write [`Session.record`], with these, in one transaction; then feed `stored`. In order. */
  | { readonly type: "store"; readonly ticket: number; readonly add?: StoredMutation; readonly remove?: number }
  | { readonly type: "notify"; readonly notice: Notice };

export type Notice =
  /** Stored on this device: it survives a reload. */
  | { readonly type: "stored"; readonly call: number; readonly seq: number }
  | { readonly type: "accepted"; readonly mutation: Kept; readonly lsn: number }
  | { readonly type: "durable"; readonly mutation: Kept; readonly lsn: number }
  /** It had no effect, and that is final. */
  | { readonly type: "rejected"; readonly mutation: Kept; readonly reason: Reason }
  /** It was not looked at, and sending it again cannot help. */
  | { readonly type: "refused"; readonly mutation: Kept; readonly reason: Reason }
  | { readonly type: "rows"; readonly sub: number; readonly rows: ResultRows }
  | { readonly type: "subscription_failed"; readonly sub: number; readonly reason: Reason }
  /** A delta did not fit; the live query was opened anew. A fault worth reporting. */
  | { readonly type: "resubscribed"; readonly sub: number; readonly why: string }
  | { readonly type: "answer"; readonly id: number; readonly rows: ResultRows }
  | { readonly type: "query_failed"; readonly id: number; readonly reason: Reason }
  /** [`PresenceSession.view`] is another. */
  | { readonly type: "presence" }
  | { readonly type: "status" };

/** The connection, as an app shows it. */
export interface Connection {
  readonly state: "connecting" | "live" | "offline" | "ended";
  /** Why the last connection failed, or the session ended. */
  readonly error: Reason | undefined;
  /** The volume's identity; known once it was live. */
  readonly volume: string | null;
  /** The module in force; known while live. */
  readonly module: string | null;
}

/** A call by the app was not taken; nothing has changed. */
export class CallError extends Error {
  override readonly name = "CallError";
  readonly code: string;
  constructor(reason: Reason) {
    super(reason.message);
    this.code = reason.code;
  }
}

type State =
  | { readonly name: "idle" }
  /** Waiting for the redial timer, or (`dialling`) for the socket. */
  | { readonly name: "offline"; readonly dialling: boolean }
  | { readonly name: "greeting" }
  | Live
  | { readonly name: "ended"; readonly reason: Reason };

interface Live {
  readonly name: "live";
  /** The highest seq sent on this connection. Every kept seq up to it was sent. */
  sent: number;
  /** How many of those have no final answer; at most `maxInFlight`. */
  inFlight: number;
  readonly maxInFlight: number;
  readonly module: string | null;
  /** Whether anything was heard since the timer was set. */
  heard: boolean;
}

interface Subscription {
  /** Its id on the wire: its own, or a fresh one after a delta that did not fit. */
  wire: number;
  readonly sql: string;
  readonly params: string | undefined;
  readonly key: readonly string[] | undefined;
  /** The last rows known; kept across reconnects. */
  rows: ResultRows | undefined;
  /** Whether the snapshot of the present opening has come. Deltas before it are dropped. */
  open: boolean;
  /** Deltas that did not fit, in a row. */
  misfits: number;
}

interface Query {
  readonly sql: string;
  readonly params: string | undefined;
}

/** Deltas in a row that may not fit before a live query is given up. */
const MISFITS_MAX = 3;

type Meaning = "passing" | "forgotten" | "fatal";

/** What a code in `refused` or `error` means for the session. */
function meaning(code: string): Meaning {
  switch (code) {
    case "seq_gap":
    case "too_many_in_flight":
    case "unavailable":
    case "shutdown":
    case "damaged":
      return "passing";
    case "seq_forgotten":
      return "forgotten";
    default:
      // Codes of later versions too: guessing could lose a mutation.
      return "fatal";
  }
}

/** The wait before redial number `attempt`; up to half of it is taken off at random. */
export function backoff(config: SessionConfig, attempt: number, random: number): number {
  const whole = Math.min(config.backoffMin * 2 ** Math.min(attempt, 20), config.backoffMax);
  return whole / 2 + (whole / 2) * random;
}

/** Why a stored state cannot be continued; `undefined` where it can. */
function damage(state: ClientState): string | undefined {
  const { client, nextSeq, settled, mutations } = state;
  const isSeq = (seq: number) => Number.isSafeInteger(seq) && seq >= 0;
  if (!isSeq(settled) || (nextSeq !== null && (!isSeq(nextSeq) || nextSeq <= settled))) {
    return `the stored state of client \`${client}\` is damaged: next seq ${nextSeq} is not beyond settled seq ${settled}`;
  }
  let before = 0;
  for (const { seq } of mutations) {
    if (!isSeq(seq) || seq <= before || nextSeq === null || seq >= nextSeq) {
      return `the stored state of client \`${client}\` is damaged: pending seq ${seq} is out of order`;
    }
    before = seq;
  }
  return undefined;
}

/** The state machine. See the head of this file for its states. */
export class Session {
  /** Call its methods as those of the session. */
  readonly presence = new PresenceSession({
    send: (frame) => this.#sendIfLive(frame),
    wait: (ms) => this.#do({ type: "presence_timer", ms }),
    changed: () => this.#notify({ type: "presence" }),
  });
  readonly #config: SessionConfig;
  #client = "";
  #volume: string | null = null;
  #nextSeq: number | null = null;
  #settled = 0;
  #since: number | undefined;
  /** By ascending seq. */
  readonly #mutations = new Map<number, Mutation>();
  /** Made before the next seq was known. */
  #calls: Call[] = [];
  readonly #subscriptions = new Map<number, Subscription>();
  readonly #queries = new Map<number, Query>();
  #nextId = 1;
  /** The last store effect, and the last one known to be durable. */
  #ticket = 0;
  #storedTicket = 0;
  /** The store effect that holds `#volume`; nothing is sent before it is durable. `null`: none yet. */
  #volumeTicket: number | null = null;
  #state: State = { name: "idle" };
  #error: Reason | undefined;
  /** Connections in a row that ended without progress. */
  #attempt = 0;
  #effects: Effect[] = [];
  #pendingVersion = 0;

  constructor(config: SessionConfig = DEFAULT_CONFIG) {
    this.#config = config;
  }

  /** What is to be stored about this client beside its mutations. */
  get record(): ClientRecord {
    return { client: this.#client, volume: this.#volume, nextSeq: this.#nextSeq, settled: this.#settled, since: this.#since };
  }

  get connection(): Connection {
    const base = { error: this.#error, volume: this.#volume, module: null };
    switch (this.#state.name) {
      case "idle":
      case "greeting":
      case "offline":
        // A redial is still offline, or every try would show as news.
        return { ...base, state: this.#error === undefined ? "connecting" : "offline" };
      case "live":
        return { ...base, state: "live", module: this.#state.module };
      case "ended":
        return { ...base, state: "ended", error: this.#state.reason };
    }
  }

  /** Rises whenever [`Session.pending`] would answer something else. */
  get pendingVersion(): number {
    return this.#pendingVersion;
  }

  /** Mutations without a final answer, in the order in which they were made. */
  get pending(): readonly Kept[] {
    const calls = this.#calls.map(({ call, reducer, args }): Kept => ({ call, seq: undefined, reducer, args, phase: "storing" }));
    return [...[...this.#mutations.values()].map(kept), ...calls];
  }

  /** How many there are. */
  get pendingCount(): number {
    return this.#mutations.size + this.#calls.length;
  }

  /** What the driver is to do next, in order. */
  takeEffects(): readonly Effect[] {
    const effects = this.#effects;
    this.#effects = [];
    return effects;
  }

  /** Becomes a client, as new or as stored, and dials for the first time. */
  restore(state: ClientState): void {
    if (this.#state.name !== "idle") return;
    const broken = damage(state);
    this.#client = state.client;
    if (broken !== undefined) return this.#end({ code: "storage_damaged", message: broken });
    this.#volume = state.volume;
    this.#volumeTicket = state.volume === null ? null : 0;
    this.#nextSeq = state.nextSeq;
    this.#settled = state.settled;
    this.#since = state.since;
    for (const mutation of state.mutations) {
      this.#mutations.set(mutation.seq, { ...mutation, call: undefined, ticket: 0, phase: "waiting" });
    }
    this.#pendingVersion += 1;
    this.#numberCalls();
    this.#dial();
  }

  /** Ends the session. Kept mutations stay stored. */
  end(reason: Reason): void {
    this.#end(reason);
  }

  /** Takes a mutation and answers the call's id. Throws a [`CallError`]; no seq is used up then. */
  mutate(reducer: string, args: string, clock: number, seed: string): number {
    this.#checkOpen();
    if (this.pendingCount >= this.#config.pendingMax) {
      const message = `${this.pendingCount} mutations wait for the server already; go online or wait`;
      throw new CallError({ code: "too_many_pending", message });
    }
    checkLength(mutate({ seq: SEQ_MAX, reducer, args, clock, seed }));
    const call = this.#nextId++;
    this.#calls.push({ call, reducer, args, clock, seed });
    this.#pendingVersion += 1;
    this.#numberCalls();
    return call;
  }

  /** Opens a live query and answers its id; `rows` notices follow. Throws a [`CallError`]. */
  subscribe(sql: string, params: string | undefined, key: readonly string[] | undefined): number {
    this.#checkOpen();
    const sub = this.#nextId;
    const frame = subscribe(sub, sql, params, key);
    checkLength(frame);
    this.#nextId += 1;
    this.#subscriptions.set(sub, { wire: sub, sql, params, key, rows: undefined, open: false, misfits: 0 });
    this.#sendIfLive(frame);
    return sub;
  }

  /** Closes a live query. One that is not open is no error. */
  unsubscribe(sub: number): void {
    const subscription = this.#subscriptions.get(sub);
    if (subscription !== undefined) {
      this.#subscriptions.delete(sub);
      this.#sendIfLive(unsubscribe(subscription.wire));
    }
  }

  /** Asks once and answers the question's id. Throws a [`CallError`]. */
  query(sql: string, params: string | undefined): number {
    this.#checkOpen();
    const id = this.#nextId;
    const frame = query(id, sql, params);
    checkLength(frame);
    this.#nextId += 1;
    this.#queries.set(id, { sql, params });
    this.#sendIfLive(frame);
    return id;
  }

  /** Nobody waits for this answer any more. */
  forgetQuery(id: number): void {
    this.#queries.delete(id);
  }

  /** Takes an event. `random`, in [0, 1), spreads redials out. */
  handle(event: Event, random: number): void {
    switch (event.type) {
      case "opened":
        return this.#opened(random);
      case "declined":
        return this.#volume === null
          ? this.#end(event.reason)
          : this.#lost(event.reason, random);
      case "frame":
        return this.#frame(event.text, random);
      case "closed":
        return this.#lost({ code: event.code ?? "connection_lost", message: event.why }, random);
      case "timer":
        return this.#timer(random);
      case "presence_timer":
        return this.presence.timer();
      case "wake":
        return this.#wake();
      case "stored":
        return this.#stored(event.ticket);
      case "store_failed":
        return this.#storeFailed(event.why, random);
    }
  }

  #opened(random: number): void {
    switch (this.#state.name) {
      case "offline":
        if (!this.#state.dialling) return this.#do({ type: "hangup" });
        this.#state = { name: "greeting" };
        // An id that made no mutation has none that could have been forgotten.
        this.#do({ type: "send", frame: hello(this.#client, this.#settled, this.#nextSeq === 1 ? undefined : this.#since) });
        return this.#do({ type: "timer", ms: this.#config.greetingMax });
      case "idle":
      case "ended":
        return this.#do({ type: "hangup" });
      case "greeting":
      case "live":
        return this.#hangUp("a second connection opened over the first", random);
    }
  }

  #timer(random: number): void {
    const state = this.#state;
    switch (state.name) {
      case "offline":
        return state.dialling ? this.#hangUp(`no answer within ${this.#config.dialMax} ms`, random) : this.#dial();
      case "greeting":
        return this.#hangUp(`the server did not greet within ${this.#config.greetingMax} ms`, random);
      case "live":
        return state.heard
          ? this.#probe(state, this.#config.keepalive)
          : this.#hangUp("nothing was heard from the server for too long", random);
      case "idle":
      case "ended":
        return undefined;
    }
  }

  #wake(): void {
    const state = this.#state;
    switch (state.name) {
      case "offline":
        return state.dialling ? undefined : this.#dial();
      case "live":
        return this.#probe(state, Math.min(this.#config.greetingMax, this.#config.keepalive));
      case "idle":
      case "greeting":
      case "ended":
        return undefined;
    }
  }

  #probe(live: Live, ms: number): void {
    live.heard = false;
    this.#do({ type: "send", frame: ping(this.#settled) });
    this.#do({ type: "timer", ms });
  }

  #stored(ticket: number): void {
    this.#storedTicket = Math.max(this.#storedTicket, ticket);
    for (const mutation of this.#unstoredUpTo(ticket)) {
      mutation.phase = "waiting";
      this.#pendingVersion += 1;
      if (mutation.call !== undefined) this.#notify({ type: "stored", call: mutation.call, seq: mutation.seq });
    }
    this.#sendPending();
  }

  /** Kept mutations that are still to be stored, oldest first. They are the last ones. */
  #unstoredUpTo(ticket: number): Mutation[] {
    const found: Mutation[] = [];
    for (let seq = (this.#nextSeq ?? 0) - 1; seq > 0; seq -= 1) {
      const mutation = this.#mutations.get(seq);
      if (mutation === undefined || mutation.phase !== "storing") break;
      if (mutation.ticket <= ticket) found.push(mutation);
    }
    return found.reverse();
  }

  /** What was not stored was not sent either: its numbers are free again. */
  #storeFailed(why: string, random: number): void {
    const reason = { code: "storage", message: `this device could not store it: ${why}` };
    for (const mutation of this.#unstoredUpTo(Infinity).reverse()) {
      this.#mutations.delete(mutation.seq);
      this.#nextSeq = mutation.seq;
      this.#pendingVersion += 1;
      this.#notify({ type: "refused", mutation: kept(mutation), reason });
    }
    if (this.#volumeTicket !== null && this.#volumeTicket > this.#storedTicket) {
      this.#volumeTicket = null;
      if (this.#state.name === "live") this.#hangUp(`this device could not store the volume's identity: ${why}`, random);
    }
  }

  /** The connection is gone: waits, then dials again. */
  #lost(reason: Reason, random: number): void {
    switch (this.#state.name) {
      case "idle":
      case "ended":
        return;
      case "offline":
        if (!this.#state.dialling) return;
        break;
      case "greeting":
      case "live":
        break;
    }
    this.#state = { name: "offline", dialling: false };
    this.#error = reason;
    for (const subscription of this.#subscriptions.values()) {
      subscription.open = false;
      subscription.misfits = 0;
    }
    for (const mutation of this.#mutations.values()) {
      if (mutation.phase === "sent" || mutation.phase === "accepted") {
        mutation.phase = "waiting";
        this.#pendingVersion += 1;
      }
    }
    this.presence.lost();
    const ms = backoff(this.#config, this.#attempt, random);
    this.#attempt += 1;
    this.#notify({ type: "status" });
    this.#do({ type: "timer", ms });
  }

  /** Closes the connection from this side, then as `#lost`. */
  #hangUp(why: string | Reason, random: number): void {
    this.#do({ type: "hangup" });
    this.#lost(typeof why === "string" ? { code: "connection_lost", message: why } : why, random);
  }

  #dial(): void {
    this.#state = { name: "offline", dialling: true };
    this.#notify({ type: "status" });
    this.#do({ type: "dial" });
    this.#do({ type: "timer", ms: this.#config.dialMax });
  }

  #end(reason: Reason): void {
    if (this.#state.name === "ended") return;
    this.#state = { name: "ended", reason };
    this.#error = reason;
    this.presence.lost();
    this.#do({ type: "hangup" });
    this.#notify({ type: "status" });
  }

  #frame(text: string, random: number): void {
    const state = this.#state;
    if (state.name !== "greeting" && state.name !== "live") return;
    if (state.name === "live") state.heard = true;
    let message: ServerMessage;
    try {
      message = readServerMessage(text);
    } catch (error) {
      if (error instanceof MalformedMessage) return this.#hangUp(`the server sent a ${error.message}`, random);
      throw error;
    }
    if (message.type === "error") return this.#serverError(message.reason, random);
    if (state.name === "greeting") {
      return message.type === "welcome"
        ? this.#welcome(message)
        : this.#hangUp(`the server sent \`${message.type}\` before its welcome`, random);
    }
    this.#message(state, message, random);
  }

  #message(live: Live, message: Exclude<ServerMessage, { type: "error" }>, random: number): void {
    switch (message.type) {
      case "welcome":
        return this.#hangUp("the server sent a second welcome", random);
      case "accepted": {
        const mutation = this.#answered(live, message.seq, random);
        if (mutation !== undefined) {
          this.#attempt = 0;
          mutation.phase = "accepted";
          this.#pendingVersion += 1;
          this.#notify({ type: "accepted", mutation: kept(mutation), lsn: message.lsn });
        }
        return undefined;
      }
      case "durable":
        return this.#settle(live, message.seq, random, (mutation) => ({ type: "durable", mutation, lsn: message.lsn }));
      case "rejected":
        return this.#settle(live, message.seq, random, (mutation) => ({ type: "rejected", mutation, reason: message.reason }));
      case "refused":
        return this.#refused(live, message.seq, message.reason, random);
      case "snapshot":
        this.#attempt = 0;
        return this.#snapshot(message.sub, message.columns, message.rows, message.at);
      case "delta":
        this.#attempt = 0;
        return this.#delta(message.sub, message.changes, message.at);
      case "subscription_error":
        return this.#subscriptionError(message.sub, message.reason, random);
      case "rows":
        this.#attempt = 0;
        return this.#answer(message.id, message.columns, message.rows, message.at);
      case "query_error":
        this.#attempt = 0;
        if (this.#queries.delete(message.id)) {
          this.#notify({ type: "query_failed", id: message.id, reason: message.reason });
        }
        return undefined;
      case "presence":
      case "presence_set":
      case "presence_error":
        this.#attempt = 0;
        return this.presence.hear(message);
      case "pong":
        this.#attempt = 0;
        return undefined;
    }
  }

  #welcome(welcome: Extract<ServerMessage, { type: "welcome" }>): void {
    const { protocol, volume, at, module, maxInFlight } = welcome;
    const end = (code: string, message: string) => this.#end({ code, message });
    if (protocol !== PROTOCOL) {
      return end("unsupported_protocol", `the server chose protocol version ${protocol}, this client speaks ${PROTOCOL}; upgrade the older`);
    }
    if (this.#volume !== null && this.#volume !== volume) {
      return end(
        "volume_changed",
        `the volume is ${volume} now and was ${this.#volume} before: it was replaced; pending mutations were not sent to it`,
      );
    }
    if (at.seq >= SEQ_MAX) return end("bad_message", `the server's welcome names seq ${at.seq}, beyond any that can be made`);
    const before = this.#nextSeq === null ? at.seq : this.#settled;
    const nextSeq = this.#nextSeq ?? at.seq + 1;
    if (at.seq < before) {
      return end(
        "history_lost",
        `the server knows mutations of this client up to ${at.seq}, but had called ${before} final: ` +
          "the volume was reset or restored; pending mutations were not sent",
      );
    }
    if (at.seq >= nextSeq) {
      return end(
        "cloned_client",
        `the server knows mutations up to ${at.seq}, but this client made only ${nextSeq - 1}: ` +
          `another copy of client id \`${this.#client}\` is at work; use a new client id`,
      );
    }
    this.#settled = before;
    this.#nextSeq = nextSeq;
    this.#volume = volume;
    if (this.#since === undefined || nextSeq === 1) this.#since = Math.max(at.lsn, 1);
    this.#state = { name: "live", sent: 0, inFlight: 0, maxInFlight: Math.max(maxInFlight, 1), module, heard: true };
    this.#error = undefined;
    this.#notify({ type: "status" });
    this.#do({ type: "timer", ms: this.#config.keepalive });
    if (this.#volumeTicket === null) this.#volumeTicket = this.#store({});
    this.#numberCalls();
    this.#sendPending();
    for (const [sub, subscription] of this.#subscriptions) {
      subscription.wire = sub;
      this.#do({ type: "send", frame: subscribe(sub, subscription.sql, subscription.params, subscription.key) });
    }
    for (const [id, { sql, params }] of this.#queries) this.#do({ type: "send", frame: query(id, sql, params) });
    this.presence.welcome();
  }

  #serverError(reason: Reason, random: number): void {
    return meaning(reason.code) === "passing" ? this.#hangUp(reason, random) : this.#end(reason);
  }

  /** A final answer. One that comes twice (after a resend) is dropped. */
  #settle(live: Live, seq: number, random: number, notice: (mutation: Kept) => Notice): void {
    const mutation = this.#answered(live, seq, random);
    if (mutation === undefined) return;
    this.#mutations.delete(seq);
    this.#pendingVersion += 1;
    live.inFlight -= 1;
    this.#attempt = 0;
    this.#settled = Math.max(this.#settled, seq);
    this.#store({ remove: seq });
    this.#notify(notice(kept(mutation)));
    this.#sendPending();
  }

  #refused(live: Live, seq: number, reason: Reason, random: number): void {
    switch (meaning(reason.code)) {
      case "forgotten":
        return this.#settle(live, seq, random, (mutation) => ({ type: "refused", mutation, reason }));
      case "passing":
        return this.#hangUp({ code: reason.code, message: `mutation ${seq} was put off: ${reason.message}` }, random);
      case "fatal": {
        const mutation = this.#answered(live, seq, random);
        if (mutation === undefined) return undefined;
        this.#notify({ type: "refused", mutation: kept(mutation), reason });
        return this.#end({ code: reason.code, message: `mutation ${seq} was refused: ${reason.message}` });
      }
    }
  }

  /**
   * The kept mutation that the server speaks of. If it was not sent on this connection, the connection is
   * given up; if it has its final answer already, there is nothing to do.
   */
  #answered(live: Live, seq: number, random: number): Mutation | undefined {
    if (seq > Math.max(live.sent, this.#settled)) {
      this.#hangUp(`the server answered mutation ${seq}, which it was not sent`, random);
      return undefined;
    }
    return seq <= live.sent ? this.#mutations.get(seq) : undefined;
  }

  /** The live query with this id on the wire. `undefined` for one that was closed meanwhile. */
  #byWire(wire: number): [number, Subscription] | undefined {
    const direct = this.#subscriptions.get(wire);
    if (direct?.wire === wire) return [wire, direct];
    return [...this.#subscriptions].find(([, subscription]) => subscription.wire === wire);
  }

  #snapshot(wire: number, columns: readonly string[], rows: WireRows, at: At): void {
    const [sub, subscription] = this.#byWire(wire) ?? [];
    if (sub === undefined || subscription === undefined) return;
    try {
      subscription.rows = ResultRows.snapshot(columns, rows, at, subscription.rows);
    } catch (error) {
      if (!(error instanceof RowsError)) throw error;
      // The same would come again: it is the query, or a fault of the server.
      this.#subscriptions.delete(sub);
      this.#sendIfLive(unsubscribe(wire));
      return this.#notify({ type: "subscription_failed", sub, reason: { code: "bad_rows", message: error.message } });
    }
    subscription.open = true;
    this.#notify({ type: "rows", sub, rows: subscription.rows });
  }

  #delta(wire: number, changes: Changes, at: At): void {
    const [sub, subscription] = this.#byWire(wire) ?? [];
    if (sub === undefined || subscription?.rows === undefined || !subscription.open) return;
    let misfit: RowsError;
    try {
      subscription.rows = subscription.rows.apply(changes, at);
      subscription.misfits = 0;
      return this.#notify({ type: "rows", sub, rows: subscription.rows });
    } catch (error) {
      if (!(error instanceof RowsError)) throw error;
      misfit = error;
    }
    subscription.misfits += 1;
    this.#sendIfLive(unsubscribe(wire));
    if (subscription.misfits >= MISFITS_MAX) {
      this.#subscriptions.delete(sub);
      const message = `${MISFITS_MAX} deltas in a row did not fit the rows: ${misfit.message}; report it`;
      return this.#notify({ type: "subscription_failed", sub, reason: { code: "bad_subscription", message } });
    }
    // A fresh id, so that nothing still on its way for the old one can be taken for the new.
    subscription.wire = this.#nextId++;
    subscription.open = false;
    this.#sendIfLive(subscribe(subscription.wire, subscription.sql, subscription.params, subscription.key));
    this.#notify({ type: "resubscribed", sub, why: misfit.message });
  }

  #subscriptionError(wire: number, reason: Reason, random: number): void {
    const [sub] = this.#byWire(wire) ?? [];
    if (sub === undefined) return;
    // The reconnect opens it again. What is damaged for one query may be whole for all others, so that
    // does not end the connection.
    const passing = meaning(reason.code) === "passing" && reason.code !== "damaged";
    if (passing) return this.#hangUp(reason, random);
    this.#subscriptions.delete(sub);
    this.#notify({ type: "subscription_failed", sub, reason });
  }

  #answer(id: number, columns: readonly string[], rows: WireRows, at: At): void {
    if (!this.#queries.delete(id)) return;
    try {
      this.#notify({ type: "answer", id, rows: ResultRows.snapshot(columns, rows, at) });
    } catch (error) {
      if (!(error instanceof RowsError)) throw error;
      this.#notify({ type: "query_failed", id, reason: { code: "bad_rows", message: error.message } });
    }
  }

  /** Gives numbers to what was called before they were known, and stores it. */
  #numberCalls(): void {
    if (this.#nextSeq === null) return;
    for (const call of this.#calls) {
      const { reducer, args, clock, seed } = call;
      const stored: StoredMutation = { seq: this.#nextSeq, reducer, args, clock, seed };
      this.#nextSeq += 1;
      const ticket = this.#store({ add: stored });
      this.#mutations.set(stored.seq, { ...stored, call: call.call, ticket, phase: "storing" });
      this.#pendingVersion += 1;
    }
    this.#calls = [];
  }

  #store(change: { readonly add?: StoredMutation; readonly remove?: number }): number {
    this.#ticket += 1;
    this.#do({ type: "store", ticket: this.#ticket, ...change });
    return this.#ticket;
  }

  /** Sends kept mutations in order, as far as storage and the window allow. */
  #sendPending(): void {
    const live = this.#state;
    if (live.name !== "live" || this.#nextSeq === null) return;
    if (this.#volumeTicket === null || this.#volumeTicket > this.#storedTicket) return;
    const [first] = this.#mutations.keys();
    if (first === undefined) return;
    for (let seq = Math.max(first, live.sent + 1); seq < this.#nextSeq; seq += 1) {
      const mutation = this.#mutations.get(seq);
      if (mutation === undefined) continue;
      if (mutation.phase === "storing" || live.inFlight >= live.maxInFlight) return;
      live.sent = seq;
      live.inFlight += 1;
      mutation.phase = "sent";
      this.#pendingVersion += 1;
      this.#do({ type: "send", frame: mutate(mutation) });
    }
  }

  #checkOpen(): void {
    if (this.#state.name === "ended") throw new CallError(this.#state.reason);
  }

  #sendIfLive(frame: string): void {
    // Otherwise it is said after the next `welcome`.
    if (this.#state.name === "live") this.#do({ type: "send", frame });
  }

  #notify(notice: Notice): void {
    this.#do({ type: "notify", notice });
  }

  #do(effect: Effect): void {
    this.#effects.push(effect);
  }
}

function kept({ call, seq, reducer, args, phase }: Mutation): Kept {
  return { call, seq, reducer, args, phase };
}

function checkLength(frame: string): void {
  const bytes = byteLength(frame);
  if (bytes > FRAME_BYTES_MAX) {
    const message = `the message has ${bytes} bytes, at most ${FRAME_BYTES_MAX} are accepted; send less at once`;
    throw new CallError({ code: "too_long", message });
  }
}
