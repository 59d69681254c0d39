/** What an app is told when something fails. Each has a stable `code` for programs and a sentence for people. */
/** Why a mutation's promises rejected. */
export class MutationError extends Error {
    name = "MutationError";
    kind;
    code;
    reducer;
    /** Its number, if it was given one. */
    seq;
    constructor(kind, reason, reducer, seq) {
        super(reason.message);
        this.kind = kind;
        this.code = reason.code;
        this.reducer = reducer;
        this.seq = seq;
    }
}
/** Why a query or a live query has no rows, or no more. */
export class QueryError extends Error {
    name = "QueryError";
    code;
    constructor(reason) {
        super(reason.message);
        this.code = reason.code;
    }
}
/** A fault in the options of `connect`. */
export class ConnectError extends Error {
    name = "ConnectError";
}
/** Tells a person at the console what no code listens for. */
export function report(error) {
    const global = globalThis;
    if (global.reportError !== undefined)
        global.reportError(error);
    else
        console.error(error);
}
/** What was thrown, as a sentence. */
export function messageOf(error) {
    return error instanceof Error ? error.message : String(error);
}
