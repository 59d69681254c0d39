import { describe, expect, test } from "vitest";

import { CallError, DEFAULT_CONFIG, Session, backoff, type Event } from "../src/session.js";
import { AT, FRESH, Peer, VOLUME, stored, type Sent } from "./support/peer.js";

const kinds = (frames: readonly Sent[]) => frames.map((frame) => frame["type"]);
const seqs = (frames: readonly Sent[]) => frames.filter((frame) => frame["type"] === "mutate").map((frame) => frame["seq"]);

describe("connecting", () => {
  test("dials, greets, and is live at welcome", () => {
    const peer = new Peer();
    expect(peer.did()).toEqual(["dial", "timer 10000"]);
    expect(peer.session.connection.state).toBe("connecting");
    peer.feed({ type: "opened" });
    expect(peer.sent()).toEqual([{ type: "hello", protocols: [1], client: "c", settled: 0 }]);
    peer.welcome({ module: "abc" });
    expect(peer.session.connection).toEqual({ state: "live", error: undefined, volume: VOLUME, module: "abc" });
  });

  test("an id that made no mutation does not grow old, however long ago it was made", () => {
    const peer = new Peer({ ...FRESH, since: 7 });
    peer.drain();
    peer.feed({ type: "opened" });
    expect(peer.sent()).toEqual([{ type: "hello", protocols: [1], client: "c", settled: 0 }]);
    peer.welcome();
    expect(peer.session.record.since).toBe(Math.max(AT.lsn, 1));
  });

  test("since when an id exists is kept from the welcome before its first mutation, and said in every later hello", () => {
    expect(new Peer().live().session.record.since).toBe(Math.max(AT.lsn, 1));
    const peer = new Peer({ ...FRESH, nextSeq: 2, since: 7 });
    peer.drain();
    peer.feed({ type: "opened" });
    expect(peer.sent()).toEqual([{ type: "hello", protocols: [1], client: "c", settled: 0, since: 7 }]);
    peer.welcome();
    expect(peer.session.record.since).toBe(7);
  });

  test("nothing is dialled before the stored state is known, and calls wait", () => {
    const peer = new Peer(null);
    peer.mutate("first");
    peer.session.subscribe("SELECT 1", undefined, undefined);
    expect(peer.drain().effects).toEqual([]);
    expect(peer.session.pending).toMatchObject([{ reducer: "first", seq: undefined, phase: "storing" }]);
    peer.session.restore(stored(4));
    peer.drain().live({ seq: 3 });
    const sent = peer.sent();
    expect(kinds(sent)).toEqual(["mutate", "mutate", "subscribe"]);
    expect(seqs(sent)).toEqual([4, 5]);
  });

  test.each(["dialling", "greeting"])("gives up %s after a while and dials again", (phase) => {
    const peer = new Peer();
    if (phase === "greeting") peer.feed({ type: "opened" });
    peer.did();
    peer.feed({ type: "timer" });
    expect(peer.did()).toEqual(["hangup", "timer 100"]);
    peer.expectOffline(/within 10000 ms/);
    peer.feed({ type: "timer" });
    expect(peer.did()).toEqual(["dial", "timer 10000"]);
    expect(peer.session.connection.state).toBe("offline");
  });

  test("a silent connection is probed, then given up", () => {
    const peer = new Peer().live();
    peer.feed({ type: "timer" });
    expect(kinds(peer.sent())).toEqual(["ping"]);
    peer.hear({ type: "pong", n: 0 }).feed({ type: "timer" });
    expect(kinds(peer.sent())).toEqual(["ping"]);
    peer.feed({ type: "timer" });
    expect(peer.did()).toContain("hangup");
    peer.expectOffline(/nothing was heard/);
  });

  test("waking dials at once while offline, and probes while live", () => {
    const peer = new Peer().live();
    peer.effects = [];
    peer.feed({ type: "wake" });
    expect(kinds(peer.sent())).toEqual(["ping"]);
    expect(peer.did()).toEqual(["timer 10000"]);
    peer.feed({ type: "timer" });
    peer.did();
    peer.feed({ type: "wake" });
    expect(peer.did()).toEqual(["dial", "timer 10000"]);
    peer.feed({ type: "wake" });
    expect(peer.did()).toEqual([]);
  });

  test("the wait doubles to its bound, up to half of it at random, and starts over after progress", () => {
    expect([0, 1, 2, 6, 7, 100].map((attempt) => backoff(DEFAULT_CONFIG, attempt, 1))).toEqual([100, 200, 400, 6400, 10000, 10000]);
    expect(backoff(DEFAULT_CONFIG, 0, 0)).toBe(50);
    const peer = new Peer();
    const waits = [0, 1, 2].flatMap(() => {
      peer.did();
      peer.feed({ type: "closed", why: "no" });
      const did = peer.did();
      peer.feed({ type: "timer" });
      return did;
    });
    expect(waits).toEqual(["timer 100", "timer 200", "timer 400"]);
    // A welcome alone is no progress: a server may greet and die.
    peer.live().did();
    peer.feed({ type: "closed", why: "no" });
    expect(peer.did()).toEqual(["timer 800"]);
    peer.feed({ type: "timer" }).live().hear({ type: "pong", n: 1 }).did();
    peer.feed({ type: "closed", why: "no" });
    expect(peer.did()).toEqual(["timer 100"]);
  });

  test("a decline is final before the first welcome, and passes after it", () => {
    const reason = { code: "unknown_volume", message: "there is no volume" };
    expect(new Peer().feed({ type: "declined", reason }).ended()).toBe("unknown_volume");
    const known = new Peer(stored(1)).feed({ type: "declined", reason });
    expect(known.ended()).toBeUndefined();
    expect(known.session.connection).toMatchObject({ state: "offline", error: reason });
  });

  test("a server that fails is tried again, and its reason is shown", () => {
    const peer = new Peer().feed({ type: "closed", why: "a page is damaged", code: "damaged" });
    expect(peer.session.connection).toMatchObject({ state: "offline", error: { code: "damaged", message: "a page is damaged" } });
  });

  test("closing ends it, and everything after is refused or dropped", () => {
    const peer = new Peer().live();
    peer.session.end({ code: "closed", message: "bye" });
    expect(peer.drain().did()).toContain("hangup");
    expect(() => peer.mutate()).toThrow(CallError);
    expect(() => peer.session.query("SELECT 1", undefined)).toThrow(/bye/);
    const events: Event[] = [{ type: "frame", text: "{}" }, { type: "timer" }, { type: "wake" }, { type: "closed", why: "x" }];
    for (const event of events) peer.feed(event);
    expect(peer.did()).toEqual([]);
    peer.feed({ type: "opened" });
    expect(peer.did()).toEqual(["hangup"]);
  });
});

describe("mutations", () => {
  test("are numbered, stored, sent, accepted and durable", () => {
    const peer = new Peer().live();
    const call = peer.mutate("add", '{"n":1}');
    expect(peer.sent()).toEqual([
      { type: "mutate", seq: 1, reducer: "add", args: { n: 1 }, clock: 7, seed: "00000000000000aa" },
    ]);
    peer.hear({ type: "accepted", seq: 1, lsn: 9 });
    expect(peer.session.pending).toMatchObject([{ seq: 1, phase: "accepted" }]);
    peer.hear({ type: "durable", seq: 1, lsn: 9 });
    expect(peer.heard()).toMatchObject([
      { type: "stored", call, seq: 1 },
      { type: "accepted", mutation: { call, seq: 1 }, lsn: 9 },
      { type: "durable", mutation: { call, seq: 1 }, lsn: 9 },
    ]);
    expect(peer.session.pending).toEqual([]);
    expect(peer.effects.filter((effect) => effect.type === "store")).toMatchObject([{}, { add: { seq: 1 } }, { remove: 1 }]);
    // A second answer, after a resend, says nothing.
    peer.hear({ type: "durable", seq: 1, lsn: 9 });
    expect(peer.heard()).toEqual([]);
  });

  test("are not sent before they are stored, nor before the volume's identity is", () => {
    const peer = new Peer();
    peer.stores = false;
    peer.live();
    peer.mutate();
    peer.mutate();
    expect(peer.sent()).toEqual([]);
    const [volume, first, second] = peer.effects.filter((effect) => effect.type === "store").map((effect) => effect.ticket);
    peer.feed({ type: "stored", ticket: volume ?? 0 });
    expect(peer.sent()).toEqual([]);
    peer.feed({ type: "stored", ticket: first ?? 0 });
    expect(seqs(peer.sent())).toEqual([1]);
    expect(peer.session.pending.map((mutation) => mutation.phase)).toEqual(["sent", "storing"]);
    peer.feed({ type: "stored", ticket: second ?? 0 });
    expect(seqs(peer.sent())).toEqual([2]);
  });

  test("made before the first welcome wait for the volume's identity to be stored, too", () => {
    const peer = new Peer();
    peer.mutate();
    peer.stores = false;
    peer.live();
    expect(peer.sent()).toEqual([]);
    peer.feed({ type: "stored", ticket: 2 });
    expect(seqs(peer.sent())).toEqual([1]);
  });

  test("that cannot be stored are refused, and their numbers are used again", () => {
    const peer = new Peer().live();
    peer.mutate();
    peer.stores = false;
    peer.mutate("lost");
    peer.mutate("lost too");
    peer.feed({ type: "store_failed", why: "the disk is full" });
    expect(peer.heard().filter((notice) => notice.type === "refused")).toMatchObject([
      { mutation: { reducer: "lost too" }, reason: { code: "storage" } },
      { mutation: { reducer: "lost" }, reason: { code: "storage" } },
    ]);
    peer.stores = true;
    peer.mutate("kept");
    expect(seqs(peer.sent())).toEqual([1, 2]);
    expect(peer.session.record.nextSeq).toBe(3);
  });

  test("wait where the volume's identity cannot be stored", () => {
    const peer = new Peer();
    peer.stores = false;
    peer.live().feed({ type: "store_failed", why: "full" });
    peer.expectOffline(/identity: full/);
    peer.stores = true;
    peer.mutate();
    peer.feed({ type: "timer" }).live();
    expect(seqs(peer.sent())).toEqual([1]);
  });

  test("without a final answer are sent again in order and unchanged", () => {
    const peer = new Peer().live();
    for (const n of [1, 2, 3]) peer.mutate("add", `{"n":${n}}`);
    const first = peer.sent();
    peer.hear({ type: "accepted", seq: 1, lsn: 2 }).hear({ type: "durable", seq: 1, lsn: 2 }).hear({ type: "accepted", seq: 2, lsn: 3 });
    peer.feed({ type: "closed", why: "cut" });
    expect(peer.session.pending.map((mutation) => mutation.phase)).toEqual(["waiting", "waiting"]);
    peer.feed({ type: "timer" }).live({ seq: 2 });
    expect(peer.sent()).toEqual(first.slice(1));
    expect(peer.session.pending.map((mutation) => mutation.phase)).toEqual(["sent", "sent"]);
  });

  test("made offline or by an earlier run are sent after welcome", () => {
    const peer = new Peer(stored(5));
    peer.mutate("new");
    peer.live({ seq: 5 });
    const sent = peer.sent();
    expect(sent).toMatchObject([{ seq: 5, args: { n: 5 }, seed: "00c0ffee00c0ffee" }, { seq: 6, reducer: "new" }]);
    peer.hear({ type: "rejected", seq: 5, lsn: 2, reason: { code: "refused", message: "no" } });
    expect(peer.heard().filter((notice) => notice.type === "rejected")).toMatchObject([
      { mutation: { call: undefined, seq: 5 }, reason: { code: "refused", message: "no" } },
    ]);
  });

  test("in flight are never more than the server allows", () => {
    const peer = new Peer().live({ max_in_flight: 2 });
    for (let n = 0; n < 5; n += 1) peer.mutate();
    expect(seqs(peer.sent())).toEqual([1, 2]);
    peer.hear({ type: "durable", seq: 1, lsn: 1 });
    expect(seqs(peer.sent())).toEqual([3]);
    peer.hear({ type: "rejected", seq: 2, lsn: 1, reason: { code: "refused", message: "" } }).hear({ type: "durable", seq: 3, lsn: 1 });
    expect(seqs(peer.sent())).toEqual([4, 5]);
  });

  test("of a client whose next seq only the server knows wait for the welcome", () => {
    const peer = new Peer({ ...FRESH, nextSeq: null });
    const call = peer.mutate();
    expect(peer.session.pending).toMatchObject([{ call, seq: undefined }]);
    peer.live({ seq: 41 });
    expect(seqs(peer.sent())).toEqual([42]);
    expect(peer.session.record).toMatchObject({ nextSeq: 43, settled: 41 });
  });

  test("too many or too long are not taken", () => {
    const peer = new Peer(FRESH, { pendingMax: 2 }).live();
    peer.mutate();
    expect(() => peer.mutate("add", JSON.stringify({ text: "ü".repeat(3 << 20) }))).toThrow(/at most 4194304/);
    peer.mutate();
    expect(() => peer.mutate()).toThrow(/2 mutations wait/);
    expect(seqs(peer.sent())).toEqual([1, 2]);
  });
});

describe("a mutation that was not looked at", () => {
  const refuse = (code: string) => {
    const peer = new Peer().live();
    peer.mutate("one");
    peer.mutate("two");
    peer.heard();
    return peer.hear({ type: "refused", seq: 1, reason: { code, message: "m" } });
  };

  test.each(["too_many_in_flight", "seq_gap", "unavailable", "shutdown"])("%s: connects again and resends", (code) => {
    const peer = refuse(code);
    peer.expectOffline(/mutation 1 was put off/);
    expect(peer.heard()).toEqual([]);
    peer.sent();
    peer.feed({ type: "timer" }).live();
    expect(seqs(peer.sent())).toEqual([1, 2]);
  });

  test("seq_forgotten: it is dropped and told, the rest goes on", () => {
    const peer = refuse("seq_forgotten");
    expect(peer.heard()).toMatchObject([{ type: "refused", mutation: { reducer: "one" } }]);
    expect(peer.session.connection.state).toBe("live");
    expect(peer.session.pendingCount).toBe(1);
  });

  test.each(["seq_reused", "a_code_of_tomorrow"])("%s: the session ends and keeps all", (code) => {
    const peer = refuse(code);
    expect(peer.ended()).toBe(code);
    expect(peer.session.pendingCount).toBe(2);
    expect(peer.effects.some((effect) => effect.type === "store" && effect.remove !== undefined)).toBe(false);
  });
});

describe("another history", () => {
  test("a replaced volume ends the session and gets nothing", () => {
    const peer = new Peer(stored(3)).live({ volume: "ffffffffffffffffffffffffffffffff", seq: 2 });
    expect(peer.ended()).toBe("volume_changed");
    expect(peer.sent()).toEqual([]);
    expect(peer.session.pendingCount).toBe(1);
    expect(peer.session.record.volume).toBe(VOLUME);
  });

  test("one replaced between two connections does too", () => {
    const peer = new Peer().live();
    peer.mutate();
    peer.reconnect({ volume: "other" });
    expect(peer.ended()).toBe("volume_changed");
    expect(peer.sent()).toEqual([]);
  });

  test("a server that forgot what it had called final", () => {
    expect(new Peer(stored(3)).live({ seq: 1 }).ended()).toBe("history_lost");
  });

  test("a server that knows more than was ever made", () => {
    expect(new Peer(stored(3)).live({ seq: 4 }).ended()).toBe("cloned_client");
  });

  test("another protocol version", () => {
    expect(new Peer().live({ protocol: 2 }).ended()).toBe("unsupported_protocol");
  });

  test("a seq beyond all that can be made", () => {
    expect(new Peer({ ...FRESH, nextSeq: null }).live({ seq: Number.MAX_SAFE_INTEGER }).ended()).toBe("bad_message");
  });

  test.each([
    { ...stored(3), nextSeq: 3 },
    { ...stored(3), nextSeq: null },
    { ...stored(3), settled: 4 },
    { ...stored(3), settled: -1 },
    { ...stored(3), mutations: [...stored(3).mutations, ...stored(2).mutations] },
    { ...stored(3), mutations: stored(0.5).mutations },
  ])("a stored state that no session ever had (%#)", (state) => {
    const peer = new Peer(state);
    expect(peer.ended()).toBe("storage_damaged");
    expect(peer.did()).toEqual(["hangup"]);
  });
});

describe("live queries", () => {
  const snapshot = (sub: number, rows: unknown[][], more: object = {}) => ({
    type: "snapshot", sub, ...AT, columns: ["id", "n"], key: ["id"], rows, ...more,
  });
  const open = () => {
    const peer = new Peer().live();
    const sub = peer.session.subscribe("SELECT id, n FROM t", "[1]", ["id"]);
    peer.drain();
    return { peer, sub };
  };
  const told = (peer: Peer) => peer.heard().map((notice) => (notice.type === "rows" ? notice.rows.rows : notice));

  test("begin with a snapshot and move by deltas", () => {
    const { peer, sub } = open();
    expect(peer.sent()).toEqual([{ type: "subscribe", sub, sql: "SELECT id, n FROM t", params: [1], key: ["id"] }]);
    peer.hear(snapshot(sub, [["a", 1], ["b", 2]]));
    peer.hear({ type: "delta", sub, ...AT, lsn: 2, seq: 5, changes: { delete: [0], insert: [[1, ["c", 3]]] } });
    expect(told(peer)).toEqual([
      [{ id: "a", n: 1 }, { id: "b", n: 2 }],
      [{ id: "b", n: 2 }, { id: "c", n: 3 }],
    ]);
  });

  test("are opened again after a reconnect; deltas before their snapshot are dropped", () => {
    const { peer, sub } = open();
    peer.hear(snapshot(sub, [["a", 1]]));
    peer.heard();
    peer.reconnect();
    expect(peer.sent()).toMatchObject([{ type: "subscribe", sub }]);
    peer.hear({ type: "delta", sub, ...AT, changes: { delete: [0] } });
    expect(peer.heard()).toEqual([]);
    peer.hear(snapshot(sub, [["a", 1], ["b", 2]]));
    expect(told(peer)).toEqual([[{ id: "a", n: 1 }, { id: "b", n: 2 }]]);
  });

  test("are opened under a fresh id when a delta does not fit, and given up after three", () => {
    const { peer, sub } = open();
    peer.hear(snapshot(sub, [["a", 1]]));
    let wire = sub;
    for (const last of [false, false, true]) {
      peer.sent();
      peer.heard();
      peer.hear({ type: "delta", sub: wire, ...AT, changes: { delete: [7] } });
      const [leave, enter] = peer.sent();
      expect(leave).toEqual({ type: "unsubscribe", sub: wire });
      expect(peer.heard().map((notice) => notice.type)).toEqual([last ? "subscription_failed" : "resubscribed"]);
      if (last) break;
      expect(enter).toMatchObject({ type: "subscribe", sql: "SELECT id, n FROM t" });
      // What is still on its way for the old id says nothing.
      peer.hear(snapshot(wire, [["old", 0]]));
      expect(peer.heard()).toEqual([]);
      wire = enter?.["sub"] as number;
      peer.hear(snapshot(wire, [["a", 1]]));
    }
    expect(peer.session.connection.state).toBe("live");
  });

  test("a delta that fits clears earlier misfits", () => {
    const { peer, sub } = open();
    let wire = sub;
    for (let round = 0; round < 5; round += 1) {
      peer.hear(snapshot(wire, [["a", 1]]));
      peer.hear({ type: "delta", sub: wire, ...AT, changes: { update: [[0, ["a", round]]] } });
      peer.sent();
      peer.hear({ type: "delta", sub: wire, ...AT, changes: { delete: [7] } });
      wire = peer.sent()[1]?.["sub"] as number;
    }
    expect(peer.heard().some((notice) => notice.type === "subscription_failed")).toBe(false);
  });

  test("that cannot be opened fail; a passing reason reconnects", () => {
    const { peer, sub } = open();
    peer.hear({ type: "subscription_error", sub, reason: { code: "unavailable", message: "later" } });
    peer.expectOffline(/later/);
    peer.feed({ type: "timer" }).live();
    expect(kinds(peer.sent())).toEqual(["subscribe"]);
    peer.hear({ type: "subscription_error", sub, reason: { code: "bad_query", message: "no table" } });
    expect(peer.heard()).toEqual([{ type: "subscription_failed", sub, reason: { code: "bad_query", message: "no table" } }]);
    peer.reconnect();
    expect(peer.sent()).toEqual([]);
  });

  test("with two columns of one name fail with advice", () => {
    const { peer, sub } = open();
    peer.hear(snapshot(sub, [], { columns: ["id", "id"] }));
    expect(peer.heard()).toMatchObject([
      { type: "subscription_failed", reason: { code: "bad_rows", message: expect.stringContaining("another name with AS") } },
    ]);
    expect(kinds(peer.sent())).toEqual(["subscribe", "unsubscribe"]);
  });

  test("are closed by the app, and what comes after is dropped", () => {
    const { peer, sub } = open();
    peer.session.unsubscribe(sub);
    peer.session.unsubscribe(sub);
    expect(kinds(peer.drain().sent())).toEqual(["subscribe", "unsubscribe"]);
    peer.hear(snapshot(sub, [["a", 1]]));
    expect(peer.heard()).toEqual([]);
  });

  test("queries are answered once, asked again after a reconnect, and may be forgotten", () => {
    const peer = new Peer().live();
    const ask = () => peer.session.query("SELECT 1", undefined);
    const [one, two, three] = [ask(), ask(), ask()];
    peer.drain().hear({ type: "rows", id: one, ...AT, columns: ["n"], rows: [[1]] });
    peer.hear({ type: "query_error", id: two, reason: { code: "bad_query", message: "no" } });
    peer.hear({ type: "rows", id: one, ...AT, columns: ["n"], rows: [[2]] });
    expect(peer.heard()).toMatchObject([{ type: "answer", id: one }, { type: "query_failed", id: two }]);
    peer.sent();
    peer.reconnect();
    expect(peer.sent()).toEqual([{ type: "query", id: three, sql: "SELECT 1" }]);
    peer.session.forgetQuery(three);
    peer.hear({ type: "rows", id: three, ...AT, columns: ["n"], rows: [[1]] });
    expect(peer.heard()).toEqual([]);
  });
});

describe("hostile servers", () => {
  const frames = [
    "", "{}", "null", "[1]", "\u0000", "7", '"welcome"', '{"type":7}', '{"type":"nope"}', '{"type":"__proto__"}',
    "[".repeat(200_000), '{"type":"accepted","seq":-1,"lsn":1}', '{"type":"accepted","seq":1.5,"lsn":1}',
    '{"type":"accepted","seq":1e300,"lsn":1}', '{"type":"durable","seq":"1","lsn":1}', '{"type":"rejected","seq":1,"lsn":1}',
    '{"type":"rejected","seq":1,"lsn":1,"reason":{"code":1,"message":""}}',
    '{"type":"snapshot","sub":1,"epoch":1,"lsn":1,"seq":0,"columns":[1],"rows":[]}',
    '{"type":"snapshot","sub":1,"epoch":1,"lsn":1,"seq":0,"columns":["a"],"rows":[7]}',
    '{"type":"delta","sub":1,"epoch":1,"lsn":1,"seq":0}',
    '{"type":"delta","sub":1,"epoch":1,"lsn":1,"seq":0,"changes":{"delete":[-1]}}',
    '{"type":"delta","sub":1,"epoch":1,"lsn":1,"seq":0,"changes":{"insert":[[0]]}}',
    '{"type":"delta","sub":1,"epoch":1,"lsn":1,"seq":0,"changes":{"update":[[0,[],1]]}}',
    '{"type":"welcome"}',
  ];
  test.each(frames.map((frame) => [frame.slice(0, 60), frame]))("%s hangs up", (_name, frame) => {
    for (const greeted of [false, true]) {
      const peer = new Peer().feed({ type: "opened" });
      if (greeted) peer.welcome();
      peer.did();
      peer.feed({ type: "frame", text: frame });
      expect(peer.did()).toEqual(["hangup", "timer 100"]);
      peer.expectOffline(/the server sent a malformed message/);
    }
  });

  test("words out of turn hang up", () => {
    new Peer().feed({ type: "opened" }).hear({ type: "pong", n: 1 }).expectOffline(/before its welcome/);
    new Peer().live().welcome().expectOffline(/second welcome/);
    const peer = new Peer().live();
    peer.feed({ type: "opened" }).expectOffline(/second connection/);
  });

  test("answers to what was not sent hang up", () => {
    const lies = [
      { type: "accepted", seq: 1, lsn: 1 },
      { type: "durable", seq: 1, lsn: 1 },
      { type: "rejected", seq: 9, lsn: 1, reason: { code: "refused", message: "" } },
      { type: "refused", seq: 1, reason: { code: "seq_reused", message: "" } },
    ];
    for (const lie of lies) {
      const peer = new Peer();
      peer.stores = false;
      peer.live();
      peer.mutate();
      peer.hear(lie).expectOffline(/which it was not sent/);
      expect(peer.session.pendingCount).toBe(1);
    }
  });

  test("an error passes or ends, by its code", () => {
    new Peer().live().hear({ type: "error", reason: { code: "shutdown", message: "bye" } }).expectOffline(/bye/);
    const ended = new Peer().live().hear({ type: "error", reason: { code: "bad_message", message: "what?" } });
    expect(ended.ended()).toBe("bad_message");
  });

  test("members that this version does not know are ignored", () => {
    const peer = new Peer().live({ news: [1] });
    expect(peer.session.connection.state).toBe("live");
  });
});

test("a session that was never restored does nothing", () => {
  const session = new Session();
  for (const event of [{ type: "opened" }, { type: "timer" }, { type: "wake" }, { type: "closed", why: "" }] as const) session.handle(event, 0);
  expect(session.takeEffects()).toEqual([{ type: "hangup" }]);
});
