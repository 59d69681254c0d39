/** What an app is told when something fails. Each has a stable `code` for programs and a sentence for people. */

import type { Reason } from "./protocol.js";

/**
 * What became of a mutation that had no effect.
 *
 * - `rejected`: the server ran it, or refused to, and that is final and durable. `refused` is the reducer's
 *   own reason; the other codes are in docs/protocol.md.
 * - `refused`: it was not taken: by this client (`bad_arguments`, `too_long`, `too_many_pending`,
 *   `storage`), or by the server without looking at it. With `seq_forgotten` it was applied once, so long
 *   ago that its outcome is no longer known.
 * - `closed`: the client ended before the answer came. What was stored is still there and is sent by the next
 *   client on this storage, unless the reason speaks against it (`volume_changed`, `history_lost`).
 */
export type MutationErrorKind = "rejected" | "refused" | "closed";

/** Why a mutation's promises rejected. */
export class MutationError extends Error {
  override readonly name = "MutationError";
  readonly kind: MutationErrorKind;
  readonly code: string;
  readonly reducer: string;
  /** Its number, if it was given one. */
  readonly seq: number | undefined;

  constructor(kind: MutationErrorKind, reason: Reason, reducer: string, seq: number | undefined) {
    super(reason.message);
    this.kind = kind;
    this.code = reason.code;
    this.reducer = reducer;
    this.seq = seq;
  }
}

/** Why a query or a live query has no rows, or no more. */
export class QueryError extends Error {
  override readonly name = "QueryError";
  readonly code: string;

  constructor(reason: Reason) {
    super(reason.message);
    this.code = reason.code;
  }
}

/** What was to be said of this client is not JSON (`bad_state`), or more than the server takes (`too_large`). */
export class PresenceError extends Error {
  override readonly name = "PresenceError";
  readonly code: string;

  constructor(reason: Reason) {
    super(reason.message);
    this.code = reason.code;
  }
}

/** A fault in the options of `connect`. */
export class ConnectError extends Error {
  override readonly name = "ConnectError";
}

/** Tells a person at the console what no code listens for. */
export function report(error: unknown): void {
  const global: { readonly reportError?: (error: unknown) => void } = globalThis;
  if (global.reportError !== undefined) global.reportError(error);
  else console.error(error);
}

/** What was thrown, as a sentence. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
