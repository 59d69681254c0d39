/** A session under test with a scripted server and storage. No time passes, nothing is random. */

import { expect } from "vitest";

import { DEFAULT_CONFIG, Session, type ClientState, type Effect, type Event, type Notice, type SessionConfig } from "../../src/session.js";

export const VOLUME = "0123456789abcdef0123456789abcdef";
export const AT = { epoch: 1, lsn: 1, seq: 0 };

/** A client id that is new. */
export const FRESH: ClientState = { client: "c", volume: null, nextSeq: 1, settled: 0, mutations: [] };

/** A stored mutation. */
export function stored(seq: number, volume: string | null = VOLUME): ClientState {
  const mutation = { seq, reducer: "add", args: `{"n":${seq}}`, clock: 1, seed: "00c0ffee00c0ffee" };
  return { client: "c", volume, nextSeq: seq + 1, settled: seq - 1, mutations: [mutation] };
}

/** Frames that were sent, parsed. */
export type Sent = Readonly<Record<string, unknown>>;

export class Peer {
  readonly session: Session;
  /** All effects since the last look, but for notices. */
  effects: Effect[] = [];
  notices: Notice[] = [];
  /** Whether storing succeeds at once. */
  stores = true;

  constructor(state: ClientState | null = FRESH, config: Partial<SessionConfig> = {}) {
    this.session = new Session({ ...DEFAULT_CONFIG, ...config });
    if (state !== null) this.session.restore(state);
    this.drain();
  }

  drain(): this {
    for (let effects = this.session.takeEffects(); effects.length > 0; effects = this.session.takeEffects()) {
      for (const effect of effects) {
        if (effect.type === "notify") this.notices.push(effect.notice);
        else this.effects.push(effect);
        if (effect.type === "store" && this.stores) this.session.handle({ type: "stored", ticket: effect.ticket }, 0);
      }
    }
    return this;
  }

  feed(event: Event, random = 1): this {
    this.session.handle(event, random);
    return this.drain();
  }

  /** The server says this. */
  hear(message: object): this {
    return this.feed({ type: "frame", text: JSON.stringify(message) });
  }

  welcome(more: object = {}): this {
    return this.hear({ type: "welcome", protocol: 1, volume: VOLUME, ...AT, module: null, max_in_flight: 256, ...more });
  }

  /** Opens a connection up to its welcome, and forgets what was sent before. */
  live(more: object = {}): this {
    this.feed({ type: "opened" });
    this.sent();
    return this.welcome(more);
  }

  /** Loses the connection and has the next one live. */
  reconnect(more: object = {}): this {
    this.feed({ type: "closed", why: "cut" }).feed({ type: "timer" });
    this.effects = [];
    return this.live(more);
  }

  mutate(reducer = "add", args = "{}"): number {
    const call = this.session.mutate(reducer, args, 7, "00000000000000aa");
    this.drain();
    return call;
  }

  /** Takes the frames sent since the last look. */
  sent(): Sent[] {
    const frames = this.effects.flatMap((effect) => (effect.type === "send" ? [JSON.parse(effect.frame) as Sent] : []));
    this.effects = this.effects.filter((effect) => effect.type !== "send");
    return frames;
  }

  /** Takes the kinds of the other effects. */
  did(): string[] {
    const kinds = this.effects.map((effect) => (effect.type === "timer" ? `timer ${effect.ms}` : effect.type));
    this.effects = [];
    return kinds;
  }

  /** Takes the notices since the last look, without changes of status. */
  heard(): Exclude<Notice, { type: "status" }>[] {
    const notices = this.notices;
    this.notices = [];
    return notices.filter((notice) => notice.type !== "status");
  }

  ended(): string | undefined {
    const { state, error } = this.session.connection;
    return state === "ended" ? error?.code : undefined;
  }

  expectOffline(why: RegExp): void {
    expect(this.session.connection).toMatchObject({ state: "offline" });
    expect(this.session.connection.error?.message).toMatch(why);
  }
}
