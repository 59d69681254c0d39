/**
 * Runs one session: carries out its effects, feeds it events. The only file here with clocks and randomness.
 *
 * A driver uses a client id that its owner has claimed, and nothing else of the storage.
 */

import { report } from "./errors.js";
import { Journal } from "./journal.js";
import { Link, type Address, type Token, type WebSocketConstructor } from "./link.js";
import type { Reason } from "./protocol.js";
import { Session, type ClientState, type Effect, type Event, type Notice, type SessionConfig } from "./session.js";
import type { Storage } from "./storage.js";

export interface DriverOptions {
  readonly address: Address;
  readonly token: Token | undefined;
  readonly webSocket: WebSocketConstructor;
  readonly storage: Storage;
  readonly config: SessionConfig;
}

export class Driver {
  readonly session: Session;
  readonly #journal: Journal;
  readonly #link: Link;
  readonly #notice: (notice: Notice) => void;
  readonly #settled: () => void;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #presenceTimer: ReturnType<typeof setTimeout> | undefined;
  #running = false;

  /** `notice` is told each notice, `settled` is called after the effects of each event. */
  constructor(options: DriverOptions, notice: (notice: Notice) => void, settled: () => void) {
    this.session = new Session(options.config);
    this.#journal = new Journal(
      options.storage,
      options.address.socket,
      () => this.session.record,
      (ticket) => this.#feed({ type: "stored", ticket }),
      (why) => this.#feed({ type: "store_failed", why }),
    );
    this.#link = new Link(options.address, options.token, options.webSocket, (event) => this.#feed(event));
    this.#notice = notice;
    this.#settled = settled;
  }

  /** Becomes the client of `state` and dials. */
  start(state: ClientState): void {
    this.session.restore(state);
    globalThis.addEventListener?.("online", this.#wake);
    globalThis.document?.addEventListener("visibilitychange", this.#seen);
    this.run();
  }

  /** Ends the session and resolves once what it stores is stored. */
  async stop(reason: Reason): Promise<void> {
    this.session.end(reason);
    this.run();
    await this.#journal.flush();
  }

  /** Carries out what the session wants. Call it after every call of the session's methods. */
  run(): void {
    if (this.#running) return; // The loop below is under way and goes on to what was added.
    this.#running = true;
    try {
      for (let effects = this.session.takeEffects(); effects.length > 0; effects = this.session.takeEffects()) {
        for (const effect of effects) this.#carryOut(effect);
      }
    } finally {
      this.#running = false;
    }
    if (this.session.connection.state === "ended") this.#stopListening();
    this.#settled();
  }

  #feed(event: Event): void {
    this.session.handle(event, Math.random());
    this.run();
  }

  #carryOut(effect: Effect): void {
    switch (effect.type) {
      case "dial":
        return this.#link.dial();
      case "hangup":
        return this.#link.hangUp();
      case "send":
        return this.#link.send(effect.frame);
      case "timer":
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => this.#feed({ type: "timer" }), effect.ms);
        return undefined;
      case "presence_timer":
        clearTimeout(this.#presenceTimer);
        this.#presenceTimer = setTimeout(() => this.#feed({ type: "presence_timer" }), effect.ms);
        return undefined;
      case "store":
        return this.#journal.push(effect);
      case "notify":
        try {
          return this.#notice(effect.notice);
        } catch (error) {
          return report(error);
        }
    }
  }

  readonly #wake = (): void => this.#feed({ type: "wake" });

  /** A page that nobody sees has its timers slowed down; one that is seen again should not wait for them. */
  readonly #seen = (): void => {
    if (globalThis.document.visibilityState === "visible") this.#wake();
  };

  #stopListening(): void {
    clearTimeout(this.#timer);
    clearTimeout(this.#presenceTimer);
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.document?.removeEventListener("visibilitychange", this.#seen);
  }
}

/** A client id that nobody has used: 128 random bits. */
export function freshClient(): ClientState {
  const client = hex(crypto.getRandomValues(new Uint8Array(16)));
  return { client, volume: null, nextSeq: 1, settled: 0, mutations: [] };
}

/** A mutation's seed: 16 hex digits. */
export function freshSeed(): string {
  return hex(crypto.getRandomValues(new Uint8Array(8)));
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
