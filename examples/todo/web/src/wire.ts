/** A network cable for one connection of this page: pulled, its socket breaks and the next waits until it is put back. */

import type { WebSocketConstructor, WebSocketLike } from "graft-client";

export class Wire {
  /** What `connect` dials with. */
  readonly webSocket: WebSocketConstructor;
  readonly #sockets = new Set<CuttableSocket>();
  #cut = false;

  constructor() {
    const sockets = this.#sockets;
    const isCut = (): boolean => this.#cut;
    this.webSocket = class extends CuttableSocket {
      constructor(url: string) {
        super(url, sockets);
        if (!isCut()) this.dial();
      }
    };
  }

  cut(): void {
    this.#cut = true;
    for (const socket of this.#sockets) socket.close();
  }

  mend(): void {
    this.#cut = false;
    for (const socket of this.#sockets) socket.dial();
  }
}

/** A socket that is dialled when there is a cable. */
class CuttableSocket implements WebSocketLike {
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: never) => void) | null = null;
  onclose: ((event: never) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  readonly #url: string;
  readonly #all: Set<CuttableSocket>;
  #socket: WebSocket | undefined;

  constructor(url: string, all: Set<CuttableSocket>) {
    this.#url = url;
    this.#all = all;
    all.add(this);
  }

  dial(): void {
    if (this.#socket !== undefined) return;
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    // The browser's events go on as they are; the client's handlers say of each what it needs.
    socket.onopen = (event) => this.onopen?.(event as never);
    socket.onmessage = (event) => this.onmessage?.(event as never);
    socket.onerror = (event) => this.onerror?.(event as never);
    socket.onclose = (event) => {
      this.#all.delete(this);
      this.onclose?.(event as never);
    };
  }

  send(data: string): void {
    this.#socket?.send(data);
  }

  close(code?: number, reason?: string): void {
    if (this.#socket === undefined) this.#all.delete(this);
    else this.#socket.close(code, reason);
  }
}
