/**
 * Runs one session: carries out its effects, feeds it events. The only file here with clocks and randomness.
 *
 * A driver uses a client id that its owner has claimed, and nothing else of the storage.
 */
import { type Address, type Token, type WebSocketConstructor } from "./link.js";
import type { Reason } from "./protocol.js";
import { Session, type ClientState, type Notice, type SessionConfig } from "./session.js";
import type { Storage } from "./storage.js";
export interface DriverOptions {
    readonly address: Address;
    readonly token: Token | undefined;
    readonly webSocket: WebSocketConstructor;
    readonly storage: Storage;
    readonly config: SessionConfig;
}
export declare class Driver {
    #private;
    readonly session: Session;
    /** `notice` is told each notice, `settled` is called after the effects of each event. */
    constructor(options: DriverOptions, notice: (notice: Notice) => void, settled: () => void);
    /** Becomes the client of `state` and dials. */
    start(state: ClientState): void;
    /** Ends the session and resolves once what it stores is stored. */
    stop(reason: Reason): Promise<void>;
    /** Carries out what the session wants. Call it after every call of the session's methods. */
    run(): void;
}
/** A client id that nobody has used: 128 random bits. */
export declare function freshClient(): ClientState;
/** A mutation's seed: 16 hex digits. */
export declare function freshSeed(): string;
