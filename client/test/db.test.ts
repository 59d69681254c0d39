import { afterEach, expect, test, vi } from "vitest";

import { connect, ConnectError, memory, type ConnectOptions, type Db, type Row, type WebSocketLike } from "../src/index.js";
import { until } from "./support/app.js";
import { Script } from "./support/script.js";
import { AT } from "./support/peer.js";

const dbs: Db[] = [];
afterEach(async () => {
  await Promise.all(dbs.splice(0).map((db) => db.close()));
  vi.restoreAllMocks();
  vi.unstubAllGlobals();
});

function open(script: Script, more: Partial<ConnectOptions> = {}): Db {
  const db = connect({ url: "http://h:1/under/", volume: "todo", webSocket: script.WebSocket, storage: memory(), ...more });
  dbs.push(db);
  return db;
}

const live = (db: Db) => until(db.status, ({ state }) => state === "live");
const failure = (promise: Promise<unknown>) => promise.then(() => undefined, (error: unknown) => error);
const task = () => new Promise<void>((resolve) => void setImmediate(resolve));

test("wrong options are said at once, with what is right", () => {
  const wrong: [Partial<ConnectOptions>, RegExp][] = [
    [{ url: "127.0.0.1:4600" }, /http:\/\/127.0.0.1:4600/],
    [{ url: "file:///x" }, /file:.*http:\/\/127.0.0.1:4600/],
    [{ url: "/relative" }, /is not an address/],
    [{ volume: ".hidden" }, /volume's name/],
    [{ volume: "a/b" }, /volume's name/],
    [{ volume: "" }, /volume's name/],
    [{ clientId: "a b" }, /client id/],
    [{ clientId: "x".repeat(65) }, /client id/],
  ];
  for (const [more, message] of wrong) {
    const bad = () => open(new Script(), more);
    expect(bad).toThrow(ConnectError);
    expect(bad).toThrow(message);
  }
});

test("addresses and tokens make the socket's address; a token is asked for at each dial", async () => {
  const plain = new Script();
  await live(open(plain));
  expect(plain.now.url).toBe("ws://h:1/under/v1/volumes/todo/sync");
  const secure = new Script();
  let asked = 0;
  const db = open(secure, { url: "https://h", token: async () => `t&${(asked += 1)}`, config: { backoffMin: 0 } });
  await live(db);
  expect(secure.now.url).toBe("wss://h/v1/volumes/todo/sync?access_token=t%261");
  secure.now.drop();
  await until(db.status, ({ state }) => state === "offline");
  await live(db);
  expect(secure.now.url).toContain("t%262");
});

test("what comes from a connection that was given up is dropped", async () => {
  const script = new Script();
  const db = open(script, { config: { backoffMin: 0 } });
  await live(db);
  const old = script.now;
  old.say({ type: "nonsense" });
  expect(old.closed).toBe(true);
  await live(db);
  old.say({ type: "nonsense" });
  old.drop();
  expect(db.status.get().state).toBe("live");
  expect(script.connections).toHaveLength(2);
});

/** A WebSocket that never opens, as a browser shows a declined one. */
class Declined implements WebSocketLike {
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: never) => void) | null = null;
  onclose: ((event: never) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  constructor() {
    queueMicrotask(() => (this.onclose as ((event: object) => void) | null)?.({ code: 1006, reason: "" }));
  }
  send(): void {}
  close(): void {}
}

test("why a server declines is asked over HTTP, but not across origins", async () => {
  const answers = { "bad-name": [400, "bad_name"], upgrade: [400, "not_a_websocket"], broken: [500, "damaged"], strange: [404, undefined] } as const;
  const asked: string[] = [];
  vi.stubGlobal("fetch", async (url: string) => {
    asked.push(url);
    const [status, code] = answers[/volumes\/([^/]*)/.exec(url)?.[1] as keyof typeof answers];
    return Response.json(code === undefined ? null : { error: { code, message: "the reason" } }, { status });
  });
  const said = async (volume: string) => {
    const db = open(new Script(), { webSocket: Declined, volume });
    const { state, error } = await until(db.status, (status) => status.error !== undefined);
    return `${state}: ${error?.code}`;
  };
  expect(await said("bad-name")).toBe("ended: bad_name");
  expect(asked).toEqual(["http://h:1/under/v1/volumes/bad-name/sync"]);
  // What may pass is tried again, and the reason is shown meanwhile.
  expect(await said("broken")).toBe("offline: damaged");
  for (const volume of ["upgrade", "strange"]) expect(await said(volume), volume).toBe("offline: connection_lost");
  vi.stubGlobal("location", { origin: "http://elsewhere", href: "http://elsewhere/" });
  asked.length = 0;
  expect(await said("bad-name")).toBe("offline: connection_lost");
  expect(asked).toEqual([]);
});

test("a token that cannot be had is a failure that may pass", async () => {
  const db = open(new Script(), { token: () => Promise.reject(new Error("signed out")) });
  expect((await until(db.status, ({ error }) => error !== undefined)).error?.message).toMatch(/signed out/);
  expect(db.status.get().state).toBe("offline");
});

test("reducers are called by either name, and a proxy is no promise", async () => {
  const script = new Script();
  const db = open(script);
  await live(db);
  const mutate = await db.mutate;
  mutate.addTask?.({ id: "1" });
  mutate.add_2Tasks?.();
  mutate("then", { at: [1] });
  await script.now.saw("mutate");
  await task();
  expect(script.now.sent.filter(({ type }) => type === "mutate")).toMatchObject([
    { seq: 1, reducer: "add_task", args: { id: "1" } },
    { seq: 2, reducer: "add_2_tasks", args: {} },
    { seq: 3, reducer: "then", args: { at: [1] } },
  ]);
  expect(db.mutate.addTask).toBe(db.mutate.addTask);
});

test("arguments that cannot be sent are refused by the promises, not thrown", async () => {
  const db = open(new Script());
  const handle = db.mutate("add", { title: NaN });
  for (const promise of [handle.seq, handle.accepted, handle.durable]) {
    expect(await failure(promise)).toMatchObject({ kind: "refused", code: "bad_arguments", message: "`title`: NaN has no SQL value; use null" });
  }
  expect(db.pending.get()).toEqual([]);
});

test("promises that nobody looks at make no noise", async () => {
  const noise: unknown[] = [];
  const hear = (error: unknown) => void noise.push(error);
  process.on("unhandledRejection", hear);
  const db = open(new Script());
  db.mutate("add", { title: NaN });
  db.mutate("add", {});
  await db.close();
  await task();
  process.off("unhandledRejection", hear);
  expect(noise).toEqual([]);
});

test("storage that fails refuses the mutation, and the client goes on", async () => {
  const script = new Script();
  const storage = memory();
  let full = false;
  const db = open(script, {
    storage: { ...storage, write: (...write) => (full ? Promise.reject(new Error("quota exceeded")) : storage.write(...write)) },
  });
  await live(db);
  full = true;
  expect(await failure(db.mutate("a").seq)).toMatchObject({ kind: "refused", code: "storage", message: expect.stringContaining("quota") });
  full = false;
  expect(await db.mutate("b").seq).toBe(1);
  expect(await script.now.saw("mutate")).toMatchObject({ seq: 1, reducer: "b" });
});

test("storage that cannot be read ends the client with a reason", async () => {
  const db = open(new Script(), { storage: { ...memory(), clients: () => Promise.reject(new Error("no access")) } });
  const early = db.mutate("a");
  const ended = await until(db.status, ({ state }) => state === "ended");
  expect(ended.error).toMatchObject({ code: "storage", message: expect.stringContaining("no access") });
  expect(await failure(early.durable)).toMatchObject({ kind: "closed", code: "storage" });
});

test("all who watch one query share one subscription, which ends with the last of them", async () => {
  const script = new Script();
  const db = open(script);
  await live(db);
  const seen: string[] = [];
  const watch = (name: string, sql = "SELECT n") => db.subscribe(sql, [1], (rows) => seen.push(`${name}${rows.length}`));
  const [a, b] = [watch("a"), watch("b")];
  const { sub } = await script.now.saw("subscribe");
  script.now.snapshot(sub, ["n"], [[1]]);
  expect(seen).toEqual(["a1", "b1"]);
  const c = watch("c");
  await task();
  expect(seen).toEqual(["a1", "b1", "c1"]);
  expect(script.now.count("subscribe")).toBe(1);
  a();
  b();
  // Left and entered again in one task: nothing is said to the server.
  c();
  const d = watch("d");
  await task();
  expect(script.now.count("unsubscribe")).toBe(0);
  expect(seen.at(-1)).toBe("d1");
  d();
  d();
  await task();
  expect(script.now.count("unsubscribe")).toBe(1);
  watch("e");
  await script.now.saw("subscribe", 3);
  expect(seen.at(-1)).toBe("d1");
  // Leaving twice does not leave for those who came since.
  d();
  await task();
  watch("f");
  await task();
  expect([script.now.count("subscribe"), script.now.count("unsubscribe")]).toEqual([2, 1]);
});

test("a listener that throws disturbs nobody, and is reported", async () => {
  const reported = vi.spyOn(console, "error").mockImplementation(() => undefined);
  const script = new Script();
  const db = open(script, {
    onRejected: () => {
      throw new Error("mine");
    },
  });
  await live(db);
  const seen: (readonly Row[])[] = [];
  db.subscribe("SELECT n", [], () => {
    throw new Error("ouch");
  });
  db.subscribe("SELECT n", [], (rows) => seen.push(rows));
  script.now.snapshot((await script.now.saw("subscribe"))["sub"], ["n"], [[7]]);
  expect(seen).toEqual([[{ n: 7 }]]);
  const handle = db.mutate("a");
  await script.now.saw("mutate");
  script.now.say({ type: "rejected", seq: 1, lsn: 1, reason: { code: "refused", message: "no" } });
  expect(await failure(handle.durable)).toMatchObject({ code: "refused" });
  expect(reported.mock.calls.map(([error]) => (error as Error).message)).toEqual(["ouch", "mine"]);
  expect(db.status.get().state).toBe("live");
});

test("a listener may call back into the client", async () => {
  const script = new Script();
  const db = open(script);
  await live(db);
  const unsubscribe = db.subscribe("SELECT n", [], () => {
    unsubscribe();
    db.mutate("seen");
  });
  script.now.snapshot((await script.now.saw("subscribe"))["sub"], ["n"], []);
  expect(await script.now.saw("mutate")).toMatchObject({ reducer: "seen" });
  await script.now.saw("unsubscribe");
});

test("a live query that fails without anybody to hear it is reported", async () => {
  const reported = vi.spyOn(console, "error").mockImplementation(() => undefined);
  const script = new Script();
  const db = open(script);
  await live(db);
  db.subscribe("SELECT nothing", [], () => undefined);
  const { sub } = await script.now.saw("subscribe");
  script.now.say({ type: "subscription_error", sub, reason: { code: "bad_query", message: "no such column" } });
  expect(reported.mock.calls).toMatchObject([[{ code: "bad_query", message: "no such column" }]]);
});

test("a question that is given up is not asked again", async () => {
  const script = new Script();
  const db = open(script, { config: { backoffMin: 0 } });
  await live(db);
  const stop = new AbortController();
  const [kept, dropped] = [db.query("SELECT 1 AS a"), db.query("SELECT 2 AS a", [], { signal: stop.signal })];
  await script.now.saw("query", 2);
  stop.abort(new Error("enough"));
  await expect(dropped).rejects.toThrow("enough");
  await expect(db.query("SELECT 3", [], { signal: stop.signal })).rejects.toThrow("enough");
  script.now.drop();
  await until(db.status, ({ state }) => state === "offline");
  await live(db);
  const again = await script.now.saw("query");
  script.now.say({ type: "rows", id: again["id"], ...AT, columns: ["a"], rows: [[1]] });
  expect(await kept).toEqual([{ a: 1 }]);
  expect(script.now.count("query")).toBe(1);
});

test("status and pending are the same objects until they change", async () => {
  const script = new Script();
  const db = open(script);
  await live(db);
  const changes: number[] = [];
  db.status.subscribe(({ pending }) => changes.push(pending));
  const before = db.status.get();
  script.now.say({ type: "pong", n: 0 });
  expect(db.status.get()).toBe(before);
  const [first] = [db.mutate("a"), db.mutate("b")];
  await first.seq;
  await task();
  const [a, b] = db.pending.get();
  script.now.say({ type: "accepted", seq: 1, lsn: 2 });
  expect(db.pending.get()[0]).toMatchObject({ seq: 1, state: "accepted" });
  expect(db.pending.get()[0]).not.toBe(a);
  expect(db.pending.get()[1]).toBe(b);
  expect([db.status.get(), db.pending.get(), b].every(Object.isFrozen)).toBe(true);
  script.now.say({ type: "durable", seq: 1, lsn: 2 });
  expect(changes).toEqual([1, 2, 1]);
});

test("closing twice is closing once, and nothing is heard afterwards", async () => {
  const reported = vi.spyOn(console, "error").mockImplementation(() => undefined);
  const script = new Script();
  const db = open(script);
  await live(db);
  db.subscribe("SELECT n", [], () => undefined);
  expect(db.close()).toBe(db.close());
  await db.close();
  expect(script.now.closed).toBe(true);
  expect(db.status.get()).toMatchObject({ state: "ended", error: { code: "closed" } });
  expect(await failure(db.query("SELECT 1"))).toMatchObject({ code: "closed" });
  expect(await failure(db.mutate("a").seq)).toMatchObject({ kind: "closed", code: "closed" });
  expect(reported).not.toHaveBeenCalled();
});

test("an id is free again after closing, also before the storage was read", async () => {
  const storage = memory();
  const slow = { ...storage, claim: (...claim: Parameters<typeof storage.claim>) => task().then(() => storage.claim(...claim)) };
  const first = open(new Script(), { storage: slow, clientId: "kiosk" });
  await first.close();
  await task();
  await task();
  const second = open(new Script(), { storage, clientId: "kiosk" });
  await live(second);
  expect(second.clientId).toBe("kiosk");
});
