/** Against the real coordinator: `graft serve` as a process, sockets through a wire that can be cut. */

import { readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { IDBFactory, IDBKeyRange } from "fake-indexeddb";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import {
  inProcessLocks,
  indexedDb,
  memory,
  MutationError,
  QueryError,
  type ConnectOptions,
  type MutationHandle,
  type Rejection,
  type SqlValue,
  type Storage,
} from "../src/index.js";
import { Opened, todo, until, View, type TodoDb } from "./support/app.js";
import { Server, temporaryStore, Wire } from "./support/server.js";

let opened: Opened;
beforeEach(() => void (opened = new Opened()));
afterEach(async () => {
  await opened.close();
  vi.unstubAllGlobals();
});

async function serve(store?: string, listen?: string): Promise<Server> {
  return opened.add(await Server.start(store, listen), (server) => server.kill());
}

async function served(): Promise<Server> {
  const server = await serve();
  await server.deploy("todo");
  return server;
}

function open(url: string, more: Partial<ConnectOptions> = {}): TodoDb {
  return opened.add(todo(url, more), (db) => db.close());
}

const live = (db: TodoDb) => until(db.status, ({ state }) => state === "live");
const failure = (promise: Promise<unknown>) => promise.then(() => undefined, (error: unknown) => error);
const idle = (db: TodoDb) => until(db.status, ({ pending }) => pending === 0);

async function withList(db: TodoDb): Promise<void> {
  await db.mutate.createList({ id: "home", name: "Home" }).durable;
}

describe("two clients", () => {
  test("see each other's changes, from the same rows", async () => {
    const server = await served();
    const [ada, bob] = [open(server.url), open(server.url)];
    const [seenByAda, seenByBob] = [new View(ada), new View(bob)];
    await withList(ada);
    const handle = ada.mutate.addTask({ id: "t1", list: "home", title: "Buy milk" });
    const [seq, accepted, durable] = await Promise.all([handle.seq, handle.accepted, handle.durable]);
    expect(seq).toBe(2);
    expect(accepted).toEqual({ seq: 2, lsn: durable.lsn });
    await seenByBob.sees((view) => view.rows.length === 1);
    await bob.mutate("set_done", { id: "t1", done: true }).durable;
    await bob.mutate.renameTask({ id: "t1", title: "Buy oat milk" }).durable;
    await Promise.all([seenByAda, seenByBob].map((view) => view.sees(({ rows }) => rows[0]?.["title"] === "Buy oat milk")));
    expect(seenByAda.rows).toEqual([{ id: "t1", title: "Buy oat milk", done: 1, position: 1 }]);
    expect(seenByBob.rows).toEqual(seenByAda.rows);
    expect(ada.status.get()).toMatchObject({ state: "live", pending: 0, error: undefined });
    expect(ada.status.get().module).toMatch(/^[0-9a-f]{64}$/);
  });

  test("rows that did not change are the same objects", async () => {
    const server = await served();
    const db = open(server.url);
    const view = new View(db);
    await withList(db);
    for (const id of ["a", "b", "c"]) await db.mutate.addTask({ id, list: "home", title: id }).durable;
    await view.sees(({ rows }) => rows.length === 3);
    const before = view.rows;
    await db.mutate.renameTask({ id: "b", title: "B" }).durable;
    await view.sees(({ titles }) => titles[1] === "B");
    expect(view.rows[0]).toBe(before[0]);
    expect(view.rows[1]).not.toBe(before[1]);
    expect(view.rows[2]).toBe(before[2]);
  });

  test("a rejection reaches the one who asked, with the app's reason", async () => {
    const server = await served();
    const rejections: Rejection[] = [];
    const db = open(server.url, { onRejected: (rejection) => rejections.push(rejection) });
    const error = await failure(db.mutate.addTask({ id: "t", list: "nowhere", title: "x" }).durable);
    expect(error).toBeInstanceOf(MutationError);
    expect(error).toMatchObject({ kind: "rejected", code: "refused", message: "there is no list nowhere", reducer: "add_task", seq: 1 });
    expect(rejections).toMatchObject([{ reducer: "add_task", args: { list: "nowhere" }, error, restored: false }]);
    const unknown = await failure(db.mutate("no_such" as "add_task", { id: "", list: "", title: "" }).accepted);
    expect(unknown).toMatchObject({ kind: "rejected", code: "unknown_reducer" });
    // The promises that nobody looked at have not made this process end.
    await withList(db);
    expect(db.pending.get()).toEqual([]);
  });

  test("questions are answered, also wrong ones", async () => {
    const server = await served();
    const db = open(server.url);
    const value = async (sql: string, params: readonly SqlValue[] = []) => (await db.query<{ v: SqlValue }>(sql, params))[0]?.v;
    for (const sent of [null, 1, -0.5, 1e19, Infinity, -Infinity, 2n ** 63n - 1n, -(2n ** 63n), "ü😀\u0000", new Uint8Array([0, 255])]) {
      expect(await value("SELECT ?1 AS v", [sent])).toEqual(sent);
    }
    expect(await value("SELECT typeof(?1) AS v", [1e19])).toBe("real");
    expect(await db.query("SELECT :a + $b AS sum", { a: 1, $b: 2 })).toEqual([{ sum: 3 }]);
    const error = await failure(db.query("DELETE FROM tasks"));
    expect(error).toBeInstanceOf(QueryError);
    expect(error).toMatchObject({ code: "bad_query" });
    await expect(db.query("SELECT 1 AS a, 2 AS a")).rejects.toThrow(/two columns are called `a`/);
    const errors: QueryError[] = [];
    await new Promise<void>((resolve) => {
      db.subscribe("SELECT * FROM nothing", [], () => undefined, { onError: (failed) => resolve(void errors.push(failed)) });
    });
    expect(errors).toMatchObject([{ code: "bad_query", message: expect.stringContaining("nothing") }]);
  });

  test("many mutations at once are all applied, in order", async () => {
    const server = await served();
    const db = open(server.url);
    const view = new View(db);
    await withList(db);
    // More than the server lets be in flight.
    const handles = Array.from({ length: 600 }, (_, n) => db.mutate.addTask({ id: `t${n}`, list: "home", title: String(n) }));
    await Promise.all(handles.map((handle) => handle.durable));
    await view.sees(({ rows }) => rows.length === 600);
    expect(view.titles).toEqual(handles.map((_, n) => String(n)));
  });
});

describe("the connection", () => {
  test("a cut is survived: both sides edit, and agree when it is mended", async () => {
    const server = await served();
    const wire = opened.add(await Wire.to(server), (one) => one.close());
    const [ada, bob] = [open(wire.url), open(server.url)];
    const [seenByAda, seenByBob] = [new View(ada), new View(bob)];
    await withList(ada);
    await ada.mutate.addTask({ id: "t1", list: "home", title: "one" }).durable;
    wire.cut();
    await until(ada.status, ({ state }) => state === "offline");
    const offline = [
      ada.mutate.addTask({ id: "t2", list: "home", title: "two" }),
      ada.mutate.renameTask({ id: "t1", title: "uno" }),
    ];
    await Promise.all(offline.map((handle) => handle.seq));
    expect(ada.status.get()).toMatchObject({ state: "offline", pending: 2 });
    expect(ada.pending.get()).toMatchObject([
      { reducer: "add_task", args: { id: "t2" }, state: "waiting" },
      { reducer: "rename_task", state: "waiting" },
    ]);
    expect(seenByAda.titles).toEqual(["one"]);
    await bob.mutate.addTask({ id: "t3", list: "home", title: "three" }).durable;
    wire.mend();
    await Promise.all(offline.map((handle) => handle.durable));
    for (const view of [seenByAda, seenByBob]) await view.sees(({ titles }) => titles.join() === "uno,three,two");
    await live(ada);
    expect(ada.status.get()).toMatchObject({ state: "live", pending: 0, error: undefined });
  });

  test("a network that is back is dialled at once", async () => {
    const server = await served();
    const wire = opened.add(await Wire.to(server), (one) => one.close());
    // A page's window hears of the network; Node has no such event.
    const page = new EventTarget();
    vi.stubGlobal("addEventListener", page.addEventListener.bind(page));
    vi.stubGlobal("removeEventListener", page.removeEventListener.bind(page));
    // Waits so long that the test would not see the end of one.
    const db = open(wire.url, { config: { backoffMin: 3_600_000, backoffMax: 3_600_000 } });
    await live(db);
    wire.cut();
    await until(db.status, ({ state }) => state === "offline");
    wire.mend();
    page.dispatchEvent(new Event("online"));
    await live(db);
  });

  test("the server is killed and comes back: nothing is lost or done twice, nobody reloads", async () => {
    const { store, remove } = await temporaryStore();
    opened.add(undefined, remove);
    let server = await serve(store);
    await server.deploy("todo");
    const [ada, bob] = [open(server.url), open(server.url)];
    const [seenByAda, seenByBob] = [new View(ada), new View(bob)];
    await withList(ada);
    const handles: MutationHandle[] = [];
    // In full traffic.
    for (let n = 0; n < 300; n += 1) {
      handles.push((n % 2 === 0 ? ada : bob).mutate.addTask({ id: `t${n}`, list: "home", title: String(n) }));
      if (n === 150) {
        await handles[20]?.durable;
        await server.kill();
      }
    }
    server = await serve(store, server.listen);
    const landed = await Promise.all(handles.map((handle) => handle.durable));
    expect(new Set(landed.map(({ seq }, n) => `${n % 2} ${seq}`)).size).toBe(300);
    for (const view of [seenByAda, seenByBob]) {
      await view.sees(({ rows }) => rows.length === 300);
      // Each exactly once, and each client's own in its order.
      const order = view.titles.map(Number);
      expect(order.filter((n) => n % 2 === 0)).toEqual(Array.from({ length: 150 }, (_, n) => 2 * n));
      expect(order.filter((n) => n % 2 === 1)).toEqual(Array.from({ length: 150 }, (_, n) => 2 * n + 1));
    }
    expect(ada.status.get()).toMatchObject({ state: "live", pending: 0 });
  });

  test("a wrong address is a lasting problem that is shown, and a volume that is not there is named", async () => {
    const server = await served();
    const nobody = open("http://127.0.0.1:9");
    expect((await until(nobody.status, ({ error }) => error !== undefined)).state).toBe("offline");
    const misnamed = opened.add(todo(server.url, { volume: "nope" }), (db) => db.close());
    const { error } = await until(misnamed.status, (status) => status.error !== undefined);
    expect(error?.message).toMatch(/404|nope/);
  });
});

describe("a reload", () => {
  const storages: [string, () => Storage][] = [
    ["memory", memory],
    ["indexedDb", () => indexedDb({ factory: new IDBFactory(), locks: inProcessLocks() })],
  ];
  test.each(storages)("with pending mutations in %s delivers each exactly once, under the same id", async (_name, make) => {
    vi.stubGlobal("IDBKeyRange", IDBKeyRange);
    const server = await served();
    const wire = opened.add(await Wire.to(server), (one) => one.close());
    const storage = make();
    const first = open(wire.url, { storage });
    await withList(first);
    wire.cut();
    await until(first.status, ({ state }) => state === "offline");
    const handles = ["a", "b"].map((id) => first.mutate.addTask({ id, list: "home", title: id }));
    const bad = first.mutate.addTask({ id: "", list: "home", title: "refused" });
    await bad.seq;
    const id = first.clientId;
    await first.close();
    expect(await failure(handles[0]?.durable ?? Promise.resolve())).toMatchObject({ kind: "closed", code: "closed", seq: 2 });

    const rejections: Rejection[] = [];
    const second = open(wire.url, { storage, onRejected: (rejection) => rejections.push(rejection) });
    const later = second.mutate.addTask({ id: "c", list: "home", title: "c" });
    expect(await later.seq).toBe(5);
    expect(second.clientId).toBe(id);
    expect(second.pending.get().map(({ seq, args }) => [seq, args["id"]])).toEqual([[2, "a"], [3, "b"], [4, ""], [5, "c"]]);
    wire.mend();
    await later.durable;
    await idle(second);
    const view = new View(second);
    await view.sees(({ titles }) => titles.join() === "a,b,c");
    expect(rejections).toMatchObject([{ reducer: "add_task", restored: true, error: { kind: "rejected", message: "a task needs an id" } }]);

    // And after another one there is nothing left to send.
    await second.close();
    const third = open(wire.url, { storage });
    await live(third);
    expect(third.clientId).toBe(id);
    expect(third.pending.get()).toEqual([]);
  });

  test("after the server applied them, and before the client knew, does not apply them again", async () => {
    const server = await served();
    const wire = opened.add(await Wire.to(server), (one) => one.close());
    const storage = memory();
    // What this client stores after `forgetful` is set is lost, as if its process had been killed.
    let forgetful = false;
    const first = open(wire.url, {
      storage: { ...storage, write: async (...write) => (forgetful ? undefined : storage.write(...write)) },
    });
    await withList(first);
    const handle = first.mutate.addTask({ id: "a", list: "home", title: "a" });
    await handle.seq;
    forgetful = true;
    await handle.durable;
    await first.close();
    const stored = await storage.clients(`ws${wire.url.slice(4)}/v1/volumes/todo/sync`);
    expect(stored).toEqual([{ client: first.clientId, mutations: 1 }]);

    const rejections: Rejection[] = [];
    const second = open(wire.url, { storage, onRejected: (rejection) => rejections.push(rejection) });
    await live(second);
    await idle(second);
    // A second run would have been refused: there is a task `a` already.
    expect(rejections).toEqual([]);
    expect(await second.query("SELECT count(*) AS n FROM tasks")).toEqual([{ n: 1 }]);
  });

  test("two tabs never share an id, and what a closed one left is sent by the other", async () => {
    const server = await served();
    const wire = opened.add(await Wire.to(server), (one) => one.close());
    const storage = memory();
    const [first, second] = [open(wire.url, { storage }), open(wire.url, { storage })];
    await Promise.all([live(first), live(second)]);
    expect(first.clientId).not.toBe(second.clientId);
    await withList(first);
    wire.cut();
    await until(second.status, ({ state }) => state === "offline");
    await second.mutate.addTask({ id: "left", list: "home", title: "left behind" }).seq;
    await second.close();
    wire.mend();
    const view = new View(first);
    await view.sees(({ titles }) => titles.join() === "left behind");
    await expect.poll(() => storage.clients(`ws${wire.url.slice(4)}/v1/volumes/todo/sync`)).toEqual([{ client: first.clientId, mutations: 0 }]);
  });

  test("a named client goes on where the server saw it last, and is used once at a time", async () => {
    const server = await served();
    const first = open(server.url, { clientId: "kiosk-1", storage: memory() });
    await withList(first);
    await first.close();
    const storage = memory();
    const second = open(server.url, { clientId: "kiosk-1", storage });
    expect(await second.mutate.addTask({ id: "a", list: "home", title: "a" }).seq).toBe(2);
    const third = open(server.url, { clientId: "kiosk-1", storage });
    expect((await until(third.status, ({ state }) => state === "ended")).error?.code).toBe("client_in_use");
  });
});

describe("a volume that cannot be used", () => {
  test("is told by name: one that does not exist for good, a damaged one while it is tried again", async () => {
    const server = await served();
    const { state, error } = await until(open(server.url, { volume: "nowhere" }).status, (status) => status.error !== undefined);
    expect({ state, code: error?.code }).toEqual({ state: "ended", code: "unknown_volume" });
    expect(error?.message).toContain("there is no volume `nowhere`");

    const { store } = opened.add(await temporaryStore(), (place) => place.remove());
    const before = await serve(store);
    await before.deploy("todo");
    await before.kill();
    const dir = store.slice("file://".length);
    const [commit] = (await readdir(dir, { recursive: true })).filter((path) => /\/log\/[^/]+$/.test(path)).sort();
    if (commit === undefined) throw new Error("no commit in the store");
    await rm(join(dir, commit));
    await writeFile(join(dir, commit), "no commit");
    const after = await serve(store);
    const damaged = await until(open(after.url).status, (status) => status.error?.code === "damaged");
    expect(damaged.state).toBe("offline");
    expect(damaged.error?.message).toContain("volume `todo` is damaged");
  });
});

describe("another history", () => {
  test("a volume that was replaced gets nothing, and the app is told", async () => {
    const before = await served();
    const { listen } = before;
    const storage = memory();
    const first = open(before.url, { storage });
    await withList(first);
    await before.kill();
    const handle = first.mutate.addTask({ id: "a", list: "home", title: "for the old volume" });
    await handle.seq;
    const errors: QueryError[] = [];
    first.subscribe("SELECT 1 AS one", [], () => undefined, { onError: (error) => errors.push(error) });

    // The same name, at the same place, and nothing of what was there.
    const after = await serve("memory:", listen);
    await after.deploy("todo");
    const { error } = await until(first.status, ({ state }) => state === "ended");
    expect(error?.code).toBe("volume_changed");
    expect(await failure(handle.durable)).toMatchObject({ kind: "closed", code: "volume_changed", seq: 2 });
    expect(errors).toMatchObject([{ code: "volume_changed" }]);
    expect(await failure(first.query("SELECT 1"))).toMatchObject({ code: "volume_changed" });
    await first.close();

    // Neither does a reload send it; the app decides.
    const second = open(after.url, { storage });
    expect((await until(second.status, ({ state }) => state === "ended")).error?.code).toBe("volume_changed");
    expect(await second.discard()).toMatchObject([{ seq: 2, reducer: "add_task", args: { title: "for the old volume" } }]);
    const third = open(after.url, { storage });
    await withList(third);
    expect(await third.query("SELECT count(*) AS n FROM tasks")).toEqual([{ n: 0 }]);
  });
});
