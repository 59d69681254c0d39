/**
 * Who is connected: what this client says of itself, and whom the server knows of. Never stored, here or there.
 *
 * ```text
 *                  set                gap over, nothing new            refresh due
 * quiet ------------------> gap ------------------------------> rest --------------> (said again) gap
 *                           |  ^ gap over, another state: said
 *                           +--+
 * any --> quiet: cleared, or the connection is lost; a state is said again after the next welcome
 * ```
 *
 * [`PresenceSession`] is part of the session's state machine, without sockets and clocks; [`Presence`] is what
 * an app holds.
 *
 * Invariants: peers are those of the last list of this connection, and none while there is no connection;
 * a state is said at most once in `GAP` ms, and again within a third of the server's TTL.
 */

import { PresenceError } from "./errors.js";
import type { Observable, Source } from "./observable.js";
import {
  clearPresence,
  setPresence,
  unwatchPresence,
  watchPresence,
  type Reason,
  type ServerMessage,
  type WirePeer,
} from "./protocol.js";
import { encodeJson, ValueError, type JsonValue } from "./value.js";

/** One connection that has said it is here. Frozen, its state too. */
export interface Peer {
  /** The server's number for it while it is here. */
  readonly id: number;
  /** What it says of itself: any JSON, from whoever may connect. Look before you trust its shape. */
  readonly state: JsonValue;
  /** It is this client. */
  readonly self: boolean;
}

/** Who is connected. Frozen; a peer that did not change is the same object as before. */
export interface Present {
  /** Those who came first, first. Empty while there is no connection. */
  readonly peers: readonly Peer[];
  /** How many more there are than the server lists. */
  readonly more: number;
  /** Whether the server has said so on this connection. */
  readonly known: boolean;
  /** Why the server did not take what was set; it is not tried again. */
  readonly error: Reason | undefined;
}

/** The longest state the server takes, in bytes of JSON. */
const STATE_BYTES_MAX = 1024;

/** How many levels of arrays and objects it takes. */
const STATE_DEPTH_MAX = 16;

/** States are said this far apart, in ms. */
const GAP = 50;

/** The wait before a state is said again until the server has told its TTL, and the longest wait, in ms. */
const REFRESH_UNTOLD = 10_000;
const REFRESH_MAX = 3_600_000;

const NOBODY: Present = Object.freeze({ peers: Object.freeze([]), more: 0, known: false, error: undefined });

/** What the machine asks of the session around it. */
export interface PresenceEffects {
  /** Send a frame, if there is a connection. */
  readonly send: (frame: string) => void;
  /** Call [`PresenceSession.timer`] after this long. Replaces the wait before. */
  readonly wait: (ms: number) => void;
  /** [`PresenceSession.view`] is another. */
  readonly changed: () => void;
}

export class PresenceSession {
  readonly #effects: PresenceEffects;
  #live = false;
  /** JSON text of what is to be said; `undefined`: nothing. */
  #state: string | undefined;
  /** What this connection has been told. */
  #told: string | undefined;
  #watching = false;
  #phase: "quiet" | "gap" | "rest" = "quiet";
  #refresh = REFRESH_UNTOLD;
  /** Our number. */
  #self: number | undefined;
  #listed: readonly WirePeer[] = [];
  #view = NOBODY;

  constructor(effects: PresenceEffects) {
    this.#effects = effects;
  }

  get view(): Present {
    return this.#view;
  }

  /** `state` is JSON text. */
  set(state: string): void {
    this.#state = state;
    if (this.#live && this.#phase !== "gap" && state !== this.#told) this.#say(state);
  }

  clear(): void {
    this.#state = undefined;
    if (this.#told === undefined) return;
    this.#told = undefined;
    this.#self = undefined;
    this.#effects.send(clearPresence());
    this.#show({ error: undefined });
  }

  watch(watching: boolean): void {
    if (watching === this.#watching) return;
    this.#watching = watching;
    if (this.#live) this.#effects.send(watching ? watchPresence() : unwatchPresence());
    if (!watching) this.#forget();
  }

  /** The connection is live. */
  welcome(): void {
    this.#live = true;
    if (this.#watching) this.#effects.send(watchPresence());
    if (this.#state !== undefined) this.#say(this.#state);
  }

  /** There is no connection any more. */
  lost(): void {
    this.#live = false;
    this.#phase = "quiet";
    this.#told = undefined;
    this.#self = undefined;
    this.#forget();
  }

  /** The wait is over. */
  timer(): void {
    if (this.#state === undefined || this.#phase === "quiet") {
      this.#phase = "quiet";
    } else if (this.#phase === "gap" && this.#state === this.#told) {
      this.#phase = "rest";
      this.#effects.wait(Math.max(this.#refresh - GAP, 0));
    } else {
      this.#say(this.#state);
    }
  }

  hear(message: Extract<ServerMessage, { type: "presence" | "presence_set" | "presence_error" }>): void {
    switch (message.type) {
      case "presence":
        if (!this.#watching) return; // It was on its way when we stopped.
        this.#listed = message.peers;
        return this.#show({ more: message.more, known: true });
      case "presence_set": {
        const refresh = Math.min(Math.max(message.ttlMs / 3, GAP), REFRESH_MAX);
        if (refresh !== this.#refresh && this.#phase === "rest") this.#effects.wait(Math.max(refresh - GAP, 0));
        this.#refresh = refresh;
        if (this.#told === undefined) return; // It was cleared meanwhile.
        this.#self = message.id;
        return this.#show({ error: undefined });
      }
      case "presence_error":
        // Unless there is another one to be said already.
        if (this.#state === this.#told) this.#state = undefined;
        return this.#show({ error: message.reason });
    }
  }

  #say(state: string): void {
    this.#effects.send(setPresence(state));
    this.#told = state;
    this.#phase = "gap";
    this.#effects.wait(GAP);
  }

  #forget(): void {
    this.#listed = [];
    this.#show({ more: 0, known: false, error: undefined });
  }

  #show(change: Partial<Present>): void {
    const before = this.#view;
    const known = new Map(before.peers.map((peer) => [peer.id, peer]));
    const peers = this.#listed.map(({ id, state }): Peer => {
      const self = id === this.#self;
      const same = known.get(id);
      if (same?.self === self && JSON.stringify(same.state) === JSON.stringify(state)) return same;
      return Object.freeze({ id, state: freeze(state as JsonValue), self });
    });
    const same = peers.length === before.peers.length && peers.every((peer, at) => peer === before.peers[at]);
    const view: Present = { ...before, ...change, peers: same ? before.peers : Object.freeze(peers) };
    if (same && view.more === before.more && view.known === before.known && view.error === before.error) return;
    this.#view = Object.freeze(view);
    this.#effects.changed();
  }
}

/** `db.presence`: says who is here, and hears of the others while anybody listens. */
export class Presence implements Observable<Present> {
  readonly #session: PresenceSession;
  readonly #source: Source<Present>;
  /** Carries out what follows from a call. */
  readonly #call: (call: () => void) => void;
  #listeners = 0;

  /** Made by [`Db`]. */
  constructor(session: PresenceSession, source: Source<Present>, call: (call: () => void) => void) {
    this.#session = session;
    this.#source = source;
    this.#call = call;
  }

  /**
   * Says that this client is here, and what the others are to see of it, until it is cleared or the `Db` ends:
   * it is said again as often as the server wants, and after every reconnect. States that follow each other
   * faster than 20 in a second are gathered. Throws a [`PresenceError`], and what was set before still holds.
   */
  set(state: JsonValue): void {
    const text = encodeState(state);
    this.#call(() => this.#session.set(text));
  }

  /** Says that this client is here no more. It may go on listening. */
  clear(): void {
    this.#call(() => this.#session.clear());
  }

  get(): Present {
    return this.#source.get();
  }

  /** Calls `listener` after each change, until the returned function is called. */
  subscribe(listener: (present: Present) => void): () => void {
    const remove = this.#source.subscribe(listener);
    this.#listeners += 1;
    if (this.#listeners === 1) this.#call(() => this.#session.watch(true));
    let listening = true;
    return () => {
      if (!listening) return;
      listening = false;
      remove();
      this.#listeners -= 1;
      // Not at once: a component that is drawn anew listens again in the same breath.
      queueMicrotask(() => {
        if (this.#listeners === 0) this.#call(() => this.#session.watch(false));
      });
    };
  }
}

function encodeState(state: JsonValue): string {
  let text: string;
  try {
    text = encodeJson(state, 0, STATE_DEPTH_MAX);
  } catch (error) {
    if (error instanceof ValueError) throw new PresenceError({ code: "bad_state", message: `the state: ${error.message}` });
    throw error;
  }
  const bytes = new TextEncoder().encode(text).length;
  if (bytes > STATE_BYTES_MAX) {
    const message = `the state has ${bytes} bytes, at most ${STATE_BYTES_MAX} are accepted; send less`;
    throw new PresenceError({ code: "too_large", message });
  }
  return text;
}

function freeze(json: JsonValue): JsonValue {
  if (typeof json === "object" && json !== null) for (const member of Object.values(Object.freeze(json))) freeze(member as JsonValue);
  return json;
}
