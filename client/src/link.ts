/**
 * One socket at a time, as a session's events.
 *
 * A browser does not tell a page why a WebSocket was declined. So when one fails before it opens, the same
 * address is asked over HTTP, which a server answers with a reason where it has one. A 4xx is a `declined`; a
 * 5xx is a `closed`, since it may pass, that says the server's reason. (Not by a page of another origin: it
 * could not read the answer.)
 */

import { messageOf } from "./errors.js";
import type { Reason } from "./protocol.js";
import type { Event } from "./session.js";

/** What is used of a WebSocket: the browser's and `ws` both fit. */
export interface WebSocketLike {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

/** The browser's `WebSocket`, or that of the package `ws`. */
export type WebSocketConstructor = new (url: string) => WebSocketLike;

/** Asked for before each dial, so that it can be renewed. */
export type Token = string | (() => string | Promise<string>);

/** Where a volume is. */
export interface Address {
  /** The `sync` address, `ws:` or `wss:`. */
  readonly socket: string;
  /** The same over HTTP. */
  readonly http: string;
}

/** How long the question why a socket was declined may take, in ms. */
const DIAGNOSIS_MAX = 5_000;

export class Link {
  readonly #address: Address;
  readonly #token: Token | undefined;
  readonly #WebSocket: WebSocketConstructor;
  readonly #emit: (event: Event) => void;
  #socket: WebSocketLike | undefined;
  /** Of the present dial; whatever comes from an older one is dropped. */
  #generation = 0;

  constructor(address: Address, token: Token | undefined, webSocket: WebSocketConstructor, emit: (event: Event) => void) {
    this.#address = address;
    this.#token = token;
    this.#WebSocket = webSocket;
    this.#emit = emit;
  }

  /** Opens a socket; answers by `opened`, `declined` or `closed`. */
  dial(): void {
    this.hangUp();
    const generation = this.#generation;
    this.#url().then(
      (url) => {
        if (generation === this.#generation) this.#open(url, generation);
      },
      (error: unknown) => this.#closed(generation, `no token: ${messageOf(error)}`),
    );
  }

  /** Closes the socket, or gives up dialling. No event answers. */
  hangUp(): void {
    this.#generation += 1;
    const socket = this.#socket;
    this.#socket = undefined;
    // Its handlers stay: `ws` throws an error that nobody listens for.
    socket?.close(1000);
  }

  /** Sends a frame; one that comes too late is dropped with its connection. */
  send(frame: string): void {
    this.#socket?.send(frame);
  }

  async #url(): Promise<string> {
    const token = typeof this.#token === "function" ? await this.#token() : this.#token;
    if (token === undefined) return this.#address.socket;
    const url = new URL(this.#address.socket);
    url.searchParams.set("access_token", token);
    return url.href;
  }

  #open(url: string, generation: number): void {
    let socket: WebSocketLike;
    try {
      socket = new this.#WebSocket(url);
    } catch (error) {
      return this.#closed(generation, messageOf(error));
    }
    this.#socket = socket;
    let opened = false;
    let failure = "";
    const current = () => generation === this.#generation;
    socket.onopen = () => {
      opened = true;
      if (current()) this.#emit({ type: "opened" });
    };
    socket.onmessage = (event: { readonly data: unknown }) => {
      if (!current()) return;
      if (typeof event.data === "string") return this.#emit({ type: "frame", text: event.data });
      this.hangUp();
      this.#emit({ type: "closed", why: "the server sent a binary frame" });
    };
    socket.onerror = (event: { readonly message?: unknown }) => {
      if (typeof event.message === "string") failure = event.message;
    };
    socket.onclose = (event: { readonly code: number; readonly reason: string }) => {
      if (!current()) return;
      this.#socket = undefined;
      const why = failure || event.reason || (opened ? `the connection was lost (${event.code})` : "the server cannot be reached");
      if (opened) this.#closed(generation, why);
      else void this.#diagnose(generation, why);
    };
  }

  async #diagnose(generation: number, why: string): Promise<void> {
    const answer = await declined(this.#address.http);
    if (generation !== this.#generation) return;
    if (answer === undefined) return this.#closed(generation, why);
    const { reason, passing } = answer;
    this.#generation += 1;
    this.#emit(passing ? { type: "closed", why: reason.message, code: reason.code } : { type: "declined", reason });
  }

  #closed(generation: number, why: string): void {
    if (generation !== this.#generation) return;
    this.#generation += 1;
    this.#emit({ type: "closed", why });
  }
}

/** The server's reason against a connection, and whether it may pass; `undefined` where none can be heard. */
async function declined(url: string): Promise<{ readonly reason: Reason; readonly passing: boolean } | undefined> {
  const page = globalThis.location?.origin;
  if (page !== undefined && page !== new URL(url).origin) return undefined;
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(DIAGNOSIS_MAX) });
    if (response.status < 400) return undefined;
    const body = (await response.json()) as { readonly error?: { readonly code?: unknown; readonly message?: unknown } } | null;
    const { code, message } = body?.error ?? {};
    // Without an upgrade this is what a server says that would have taken the socket.
    if (typeof code !== "string" || typeof message !== "string" || code === "not_a_websocket") return undefined;
    return { reason: { code, message }, passing: response.status > 499 };
  } catch {
    return undefined; // As unreachable as the socket, or another page's: the socket's own failure stands.
  }
}

/** The addresses of a volume. Throws an `Error` that says what is wrong with `url` or `volume`. */
export function addressOf(url: string, volume: string, base: string | undefined): Address {
  if (!/^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$/.test(volume)) {
    throw new Error(`\`${volume}\` is no volume's name: 1 to 100 of A-Z a-z 0-9 - _ . and not beginning with a dot`);
  }
  let parsed: URL;
  try {
    parsed = new URL(url, base);
  } catch {
    throw new Error(`\`${url}\` is not an address; it looks like http://127.0.0.1:4600`);
  }
  const secure = parsed.protocol === "https:" || parsed.protocol === "wss:";
  if (!secure && parsed.protocol !== "http:" && parsed.protocol !== "ws:") {
    throw new Error(`\`${url}\` begins with ${parsed.protocol}; it looks like http://127.0.0.1:4600`);
  }
  const rest = `//${parsed.host}${parsed.pathname.replace(/\/+$/, "")}/v1/volumes/${volume}/sync`;
  return { socket: `${secure ? "wss:" : "ws:"}${rest}`, http: `${secure ? "https:" : "http:"}${rest}` };
}
