/** A scripted server: a `WebSocket` class whose other end is the test. */

import type { WebSocketConstructor, WebSocketLike } from "../../src/index.js";
import { AT, VOLUME, type Sent } from "./peer.js";

/** The server's end of one socket. */
export class Connection {
  readonly url: string;
  readonly sent: Sent[] = [];
  closed = false;
  readonly #socket: WebSocketLike;
  readonly #waiting = new Set<() => void>();

  constructor(url: string, socket: WebSocketLike) {
    this.url = url;
    this.#socket = socket;
  }

  /** A frame from the client. */
  take(frame: string): void {
    this.sent.push(JSON.parse(frame) as Sent);
    for (const look of [...this.#waiting]) look();
  }

  /** The first frame of this type, from `after` on. */
  async saw(type: string, after = 0): Promise<Sent> {
    for (;;) {
      const found = this.sent.slice(after).find((frame) => frame["type"] === type);
      if (found !== undefined) return found;
      await new Promise<void>((resolve) => {
        const look = () => {
          this.#waiting.delete(look);
          resolve();
        };
        this.#waiting.add(look);
      });
    }
  }

  count(type: string): number {
    return this.sent.filter((frame) => frame["type"] === type).length;
  }

  say(message: object): void {
    (this.#socket.onmessage as ((event: { data: string }) => void) | null)?.({ data: JSON.stringify(message) });
  }

  /** The rows of a live query. */
  snapshot(sub: unknown, columns: readonly string[], rows: readonly (readonly unknown[])[]): void {
    this.say({ type: "snapshot", sub, ...AT, columns, key: [], rows });
  }

  drop(): void {
    this.closed = true;
    (this.#socket.onclose as ((event: { code: number; reason: string }) => void) | null)?.({ code: 1006, reason: "" });
  }
}

export class Script {
  readonly connections: Connection[] = [];
  readonly WebSocket: WebSocketConstructor;

  /** With `greets`, every connection is live at once. */
  constructor(greets = true) {
    const script = this;
    this.WebSocket = class implements WebSocketLike {
      onopen: ((event: never) => void) | null = null;
      onmessage: ((event: never) => void) | null = null;
      onclose: ((event: never) => void) | null = null;
      onerror: ((event: never) => void) | null = null;
      readonly #connection: Connection;

      constructor(url: string) {
        this.#connection = new Connection(url, this);
        script.connections.push(this.#connection);
        queueMicrotask(() => (this.onopen as (() => void) | null)?.());
      }

      send(frame: string): void {
        this.#connection.take(frame);
        if (greets && this.#connection.sent.length === 1) {
          queueMicrotask(() =>
            this.#connection.say({ type: "welcome", protocol: 1, volume: VOLUME, ...AT, module: null, max_in_flight: 256 }),
          );
        }
      }

      close(): void {
        this.#connection.closed = true;
      }
    };
  }

  /** The newest connection. */
  get now(): Connection {
    const last = this.connections.at(-1);
    if (last === undefined) throw new Error("nobody has connected");
    return last;
  }
}
