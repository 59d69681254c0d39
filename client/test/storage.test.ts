import "fake-indexeddb/auto"; // IDBKeyRange too, which is looked up globally
import { IDBFactory } from "fake-indexeddb";
import { describe, expect, test } from "vitest";

import { indexedDb } from "../src/indexeddb.js";
import { Journal } from "../src/journal.js";
import type { ClientRecord, StoredMutation } from "../src/session.js";
import { claimByLock, inProcessLocks, memory, type Storage } from "../src/storage.js";
import { Random } from "./support/random.js";

const SCOPE = "ws://h/v1/volumes/todo/sync";
const record = (client: string, nextSeq: number, settled = 0): ClientRecord => ({ client, volume: "v", nextSeq, settled });
const mutation = (seq: number): StoredMutation => ({ seq, reducer: "add", args: `{"n":${seq}}`, clock: 1, seed: "00" });

const kinds: [string, () => Storage][] = [
  ["memory", () => memory()],
  ["indexedDb", () => indexedDb({ factory: new IDBFactory(), locks: inProcessLocks() })],
];

describe.each(kinds)("%s", (_name, make) => {
  test("nothing is there at first", async () => {
    const storage = make();
    expect(await storage.clients(SCOPE)).toEqual([]);
    expect(await storage.load(SCOPE, "a")).toBeUndefined();
    await storage.remove(SCOPE, "a");
    await storage.write(SCOPE, { client: "a", volume: null, nextSeq: null, settled: 0 }, [], [9]);
    expect(await storage.load(SCOPE, "a")).toEqual({ client: "a", volume: null, nextSeq: null, settled: 0, mutations: [] });
  });

  test("what is written is read, by ascending seq", async () => {
    const storage = make();
    await storage.write(SCOPE, record("a", 12), [mutation(10), mutation(9), mutation(11)], []);
    await storage.write(SCOPE, record("a", 13, 10), [mutation(12)], [10]);
    expect(await storage.load(SCOPE, "a")).toEqual({ ...record("a", 13, 10), mutations: [9, 11, 12].map(mutation) });
  });

  test("a write that fails has no effect", async () => {
    const storage = make();
    await storage.write(SCOPE, record("a", 3), [mutation(1), mutation(2)], []);
    await expect(storage.write(SCOPE, record("a", 9), [mutation(3), mutation(2)], [1])).rejects.toThrow();
    expect(await storage.load(SCOPE, "a")).toEqual({ ...record("a", 3), mutations: [1, 2].map(mutation) });
    // The next one is not disturbed by it.
    await storage.write(SCOPE, record("a", 4), [mutation(3)], []);
    expect((await storage.load(SCOPE, "a"))?.mutations).toHaveLength(3);
  });

  test("clients and scopes do not mix, and those with most mutations come first", async () => {
    const storage = make();
    await storage.write(SCOPE, record("a", 1), [], []);
    await storage.write(SCOPE, record("b", 3), [mutation(1), mutation(2)], []);
    await storage.write(SCOPE, record("b2", 2), [mutation(1)], []);
    await storage.write(`${SCOPE}2`, record("b", 5), [mutation(4)], []);
    expect(await storage.clients(SCOPE)).toEqual([
      { client: "b", mutations: 2 },
      { client: "b2", mutations: 1 },
      { client: "a", mutations: 0 },
    ]);
    await storage.remove(SCOPE, "b");
    expect(await storage.load(SCOPE, "b")).toBeUndefined();
    expect((await storage.load(SCOPE, "b2"))?.mutations).toEqual([mutation(1)]);
    expect((await storage.load(`${SCOPE}2`, "b"))?.mutations).toEqual([mutation(4)]);
  });

  test("what was read or written is not changed by its user", async () => {
    const storage = make();
    const own = { ...mutation(1) };
    await storage.write(SCOPE, record("a", 2), [own], []);
    Object.assign(own, { reducer: "other" });
    expect((await storage.load(SCOPE, "a"))?.mutations).toEqual([mutation(1)]);
  });

  test("any history reads as the model says", async () => {
    for (let seed = 0; seed < 8; seed += 1) {
      const random = new Random(seed);
      const storage = make();
      const model = new Map<string, { record: ClientRecord; mutations: Map<number, StoredMutation> }>();
      for (let step = 0; step < 40; step += 1) {
        const client = random.pick(["a", "b", "c"]);
        const known = model.get(client) ?? { record: record(client, 1), mutations: new Map<number, StoredMutation>() };
        if (random.chance(0.1)) {
          await storage.remove(SCOPE, client);
          model.delete(client);
        } else {
          const from = known.record.nextSeq ?? 1;
          const add = Array.from({ length: random.below(4) }, (_, at) => mutation(from + at));
          const remove = [...known.mutations.keys()].filter(() => random.chance(0.5));
          const next = record(client, from + add.length, random.below(from));
          await storage.write(SCOPE, next, add, remove);
          for (const added of add) known.mutations.set(added.seq, added);
          for (const seq of remove) known.mutations.delete(seq);
          model.set(client, { ...known, record: next });
        }
        const expected = model.get(client);
        const story = `seed ${seed}, step ${step}`;
        expect(await storage.load(SCOPE, client), story).toEqual(
          expected && { ...expected.record, mutations: [...expected.mutations.values()].sort((x, y) => x.seq - y.seq) },
        );
      }
      const counts = new Map((await storage.clients(SCOPE)).map((client) => [client.client, client.mutations]));
      expect(counts, `seed ${seed}`).toEqual(new Map([...model].map(([client, { mutations }]) => [client, mutations.size])));
    }
  });

  test("an id has one user at a time, and who waits gets it next", async () => {
    const storage = make();
    const first = await storage.claim(SCOPE, "a");
    expect(first.state).toBe("owned");
    expect((await storage.claim(SCOPE, "a")).state).toBe("taken");
    expect((await storage.claim(SCOPE, "b")).state).toBe("owned");
    expect((await storage.claim("other", "a")).state).toBe("owned");

    const impatient = new AbortController();
    const aborted = storage.claim(SCOPE, "a", impatient.signal);
    const waiting = storage.claim(SCOPE, "a", new AbortController().signal);
    impatient.abort(new Error("enough"));
    await expect(aborted).rejects.toThrow("enough");
    if (first.state === "owned") first.release();
    const second = await waiting;
    expect(second.state).toBe("owned");
    expect((await storage.claim(SCOPE, "a")).state).toBe("taken");
    if (second.state === "owned") second.release();
    await expect.poll(async () => (await storage.claim(SCOPE, "a")).state).toBe("owned");
  });
});

test("IndexedDB outlives its user", async () => {
  const factory = new IDBFactory();
  await indexedDb({ factory }).write(SCOPE, record("a", 2), [mutation(1)], []);
  expect(await indexedDb({ factory }).load(SCOPE, "a")).toEqual({ ...record("a", 2), mutations: [mutation(1)] });
  expect(await indexedDb({ factory, name: "other" }).clients(SCOPE)).toEqual([]);
});

test("IndexedDB that another page wants to upgrade is let go, and opened again at the next use", async () => {
  const factory = new IDBFactory();
  const storage = indexedDb({ factory });
  await storage.write(SCOPE, record("a", 1), [], []);
  await new Promise<void>((resolve, reject) => {
    const request = factory.deleteDatabase("graft-client");
    request.onsuccess = () => resolve();
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("it was not let go"));
  });
  expect(await storage.clients(SCOPE)).toEqual([]);
});

test("without locks nothing can be said about an id", async () => {
  expect(await claimByLock(undefined, "a")).toEqual({ state: "unknown" });
});

describe("the journal", () => {
  /** Storage whose writes are held until they are let go or made to fail. */
  function held() {
    const storage = memory();
    const writes: { add: number[]; remove: number[]; pass: () => void; fail: () => void }[] = [];
    const told: string[] = [];
    const writer: Storage = {
      ...storage,
      write: (scope, of, add, remove) =>
        new Promise((resolve, reject) => {
          writes.push({
            add: add.map((one) => one.seq),
            remove: [...remove],
            pass: () => void storage.write(scope, of, add, remove).then(resolve, reject),
            fail: () => reject(new Error("full")),
          });
        }),
    };
    const journal = new Journal(writer, SCOPE, () => record("a", 100), (ticket) => told.push(`done ${ticket}`), (why) => told.push(why));
    return { storage, journal, writes, told };
  }

  test("writes in order, and what waits goes together", async () => {
    const { storage, journal, writes, told } = held();
    journal.push({ type: "store", ticket: 1 });
    journal.push({ type: "store", ticket: 2, add: mutation(1) });
    await expect.poll(() => writes.length).toBe(1);
    journal.push({ type: "store", ticket: 3, add: mutation(2) });
    journal.push({ type: "store", ticket: 4, remove: 1 });
    writes[0]?.pass();
    await expect.poll(() => writes.length).toBe(2);
    expect(told).toEqual(["done 2"]);
    writes[1]?.pass();
    await journal.flush();
    expect(told).toEqual(["done 2", "done 4"]);
    expect(writes.map(({ add, remove }) => ({ add, remove }))).toEqual([{ add: [1], remove: [] }, { add: [2], remove: [1] }]);
    expect((await storage.load(SCOPE, "a"))?.mutations).toEqual([mutation(2)]);
  });

  test("a failure gives up additions and keeps removals for later", async () => {
    const { journal, writes, told } = held();
    journal.push({ type: "store", ticket: 1, add: mutation(1) });
    journal.push({ type: "store", ticket: 2, remove: 7 });
    await expect.poll(() => writes.length).toBe(1);
    journal.push({ type: "store", ticket: 3, add: mutation(2) });
    writes[0]?.fail();
    await journal.flush();
    expect(told).toEqual(["full"]);
    journal.push({ type: "store", ticket: 4, add: mutation(1) });
    await expect.poll(() => writes.length).toBe(2);
    writes[1]?.pass();
    await journal.flush();
    expect(writes[1]).toMatchObject({ add: [1], remove: [7] });
    expect(told).toEqual(["full", "done 4"]);
    journal.push({ type: "store", ticket: 5, remove: 8 });
    await expect.poll(() => writes.length).toBe(3);
    expect(writes[2]).toMatchObject({ add: [], remove: [8] });
  });
});
