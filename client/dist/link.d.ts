/**
 * One socket at a time, as a session's events.
 *
 * A browser does not tell a page why a WebSocket was declined. So when one fails before it opens, the same
 * address is asked over HTTP, which a server answers with a reason where it has one.
 */
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
export declare class Link {
    #private;
    constructor(address: Address, token: Token | undefined, webSocket: WebSocketConstructor, emit: (event: Event) => void);
    /** Opens a socket; answers by `opened`, `declined` or `closed`. */
    dial(): void;
    /** Closes the socket, or gives up dialling. No event answers. */
    hangUp(): void;
    /** Sends a frame; one that comes too late is dropped with its connection. */
    send(frame: string): void;
}
/** The addresses of a volume. Throws an `Error` that says what is wrong with `url` or `volume`. */
export declare function addressOf(url: string, volume: string, base: string | undefined): Address;
