/** Who is connected: the machine against a script, then the whole against the real coordinator. */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { WebSocket } from "ws";

import { PresenceError, type ConnectOptions, type JsonValue, type Present } from "../src/index.js";
import { Opened, todo, until, type TodoDb } from "./support/app.js";
import { Peer } from "./support/peer.js";
import { Server, Wire, temporaryStore } from "./support/server.js";

const kinds = (peer: Peer) => peer.sent().map((frame) => frame["type"]);
const states = ({ peers }: Present) => peers.map(({ state }) => state);

/** Says something, and carries out what follows. */
function call(peer: Peer, what: (presence: Peer["session"]["presence"]) => void): Peer {
  what(peer.session.presence);
  return peer.drain();
}

describe("the machine", () => {
  const waits = (peer: Peer) => {
    const found = peer.effects.flatMap((effect) => (effect.type === "presence_timer" ? [effect.ms] : []));
    peer.effects = [];
    return found;
  };

  test("says a state once it is live, again before the TTL, and again after a reconnect", () => {
    const peer = new Peer();
    call(peer, (presence) => presence.set('"here"'));
    expect(kinds(peer)).toEqual([]);
    peer.live();
    expect(peer.sent()).toEqual([{ type: "set_presence", state: "here" }]);
    expect(waits(peer)).toEqual([50]);
    peer.hear({ type: "presence_set", id: 7, ttl_ms: 90_000 }).feed({ type: "presence_timer" });
    expect(waits(peer)).toEqual([29_950]);
    peer.feed({ type: "presence_timer" });
    expect(kinds(peer)).toEqual(["set_presence"]);
    peer.feed({ type: "presence_timer" });
    // Another server, another TTL.
    waits(peer);
    peer.hear({ type: "presence_set", id: 7, ttl_ms: 300 });
    expect(waits(peer)).toEqual([50]);
    peer.feed({ type: "closed", why: "cut" });
    peer.feed({ type: "presence_timer" });
    expect(kinds(peer)).toEqual([]);
    peer.feed({ type: "timer" }).live();
    expect(kinds(peer)).toEqual(["set_presence"]);
    peer.session.end({ code: "closed", message: "" });
    peer.drain().feed({ type: "presence_timer" });
    expect(kinds(peer)).toEqual([]);
  });

  test("gathers states that come fast, and says nothing twice", () => {
    const peer = new Peer().live();
    for (let n = 0; n < 100; n += 1) call(peer, (presence) => presence.set(String(n)));
    expect(peer.sent()).toEqual([{ type: "set_presence", state: 0 }]);
    peer.feed({ type: "presence_timer" });
    expect(peer.sent()).toEqual([{ type: "set_presence", state: 99 }]);
    call(peer, (presence) => presence.set("99"));
    peer.feed({ type: "presence_timer" });
    call(peer, (presence) => presence.set("99"));
    expect(peer.sent()).toEqual([]);
    call(peer, (presence) => presence.clear());
    call(peer, (presence) => presence.clear());
    expect(kinds(peer)).toEqual(["clear_presence"]);
    // The answer to what was said before comes after all: we are not there.
    peer.hear({ type: "presence_set", id: 1, ttl_ms: 90_000 }).feed({ type: "presence_timer" });
    expect(kinds(peer)).toEqual([]);
    call(peer, (presence) => presence.set("99"));
    expect(kinds(peer)).toEqual(["set_presence"]);
  });

  test("shows the last list of this connection, and nobody while there is none", () => {
    const peer = new Peer().live();
    const { presence } = peer.session;
    call(peer, () => presence.watch(true));
    expect(kinds(peer)).toEqual(["watch_presence"]);
    expect(presence.view).toEqual({ peers: [], more: 0, known: false, error: undefined });
    const [ada, bob] = [{ id: 1, state: { name: "Ada" } }, { id: 2, state: { name: "Bob" } }];
    peer.hear({ type: "presence", peers: [ada, bob], more: 3 });
    expect(presence.view).toMatchObject({ peers: [{ ...ada, self: false }, { ...bob, self: false }], more: 3, known: true });
    const before = presence.view.peers;
    call(peer, () => presence.set("1"));
    peer.hear({ type: "presence_set", id: 2, ttl_ms: 1000 });
    expect(presence.view.peers[1]).toMatchObject({ id: 2, self: true });
    expect(presence.view.peers[0]).toBe(before[0]);
    expect(() => void ((presence.view.peers[0]?.state as { name: string }).name = "Eve")).toThrow(TypeError);
    peer.notices = [];
    peer.hear({ type: "presence", peers: [ada, bob], more: 3 });
    expect(peer.heard(), "the same again is no news").toEqual([]);
    peer.feed({ type: "closed", why: "cut" });
    expect(presence.view).toEqual({ peers: [], more: 0, known: false, error: undefined });
    peer.feed({ type: "timer" }).live();
    expect(kinds(peer)).toEqual(["watch_presence", "set_presence"]);
    peer.hear({ type: "presence", peers: [ada] });
    call(peer, () => presence.watch(false));
    expect(kinds(peer)).toEqual(["unwatch_presence"]);
    peer.hear({ type: "presence", peers: [ada, bob] });
    expect(presence.view.peers).toEqual([]);
  });

  test("what the server does not take is told, and not tried again", () => {
    const reason = { code: "too_large", message: "too much" };
    const peer = new Peer().live();
    const { presence } = peer.session;
    call(peer, () => presence.set("1"));
    peer.hear({ type: "presence_error", reason });
    expect(presence.view.error).toEqual(reason);
    kinds(peer);
    peer.feed({ type: "presence_timer" }).reconnect();
    expect(kinds(peer)).toEqual([]);
    // A refusal of the one before does not take the next one away.
    call(peer, () => presence.set("2"));
    call(peer, () => presence.set("3"));
    peer.hear({ type: "presence_error", reason }).feed({ type: "presence_timer" });
    expect(peer.sent().map((frame) => frame["state"])).toEqual([2, 3]);
    peer.hear({ type: "presence_set", id: 1, ttl_ms: 1000 });
    expect(presence.view.error).toBeUndefined();
  });

  test.each([
    { type: "presence" },
    { type: "presence", peers: [{ id: 1 }] },
    { type: "presence", peers: [{ state: 1 }] },
    { type: "presence", peers: [null] },
    { type: "presence", peers: [], more: -1 },
    { type: "presence_set", id: 1 },
    { type: "presence_error", reason: "no" },
  ])("a malformed message costs the connection: %j", (message) => {
    new Peer().live().hear(message).expectOffline(/malformed/);
  });
});

describe("with the real coordinator", () => {
  let opened: Opened;
  beforeEach(() => void (opened = new Opened()));
  afterEach(() => opened.close());

  async function serve(listen?: string, presenceTtl?: number): Promise<Server> {
    const server = opened.add(await Server.start("memory:", listen, presenceTtl), (one) => one.kill());
    await server.deploy("todo");
    return server;
  }
  const open = (url: string, more: Partial<ConnectOptions> = {}): TodoDb => opened.add(todo(url, more), (db) => db.close());
  const sees = (db: TodoDb, ...wanted: JsonValue[]) =>
    until(db.presence, (present) => present.known && JSON.stringify(states(present)) === JSON.stringify(wanted));

  test("two see each other; a killed socket vanishes, and comes back as the same peer", async () => {
    const server = await serve();
    const wire = opened.add(await Wire.to(server), (one) => one.close());
    const [ada, bob] = [open(server.url), open(wire.url)];
    ada.presence.set({ name: "Ada" });
    const seen = await sees(ada, { name: "Ada" });
    expect(seen.peers).toMatchObject([{ self: true }]);
    bob.presence.set({ name: "Bob" });
    const both = await sees(ada, { name: "Ada" }, { name: "Bob" });
    expect(both.peers.map(({ self }) => self)).toEqual([true, false]);
    expect(both.peers[0]).toBe(seen.peers[0]);
    bob.presence.set({ name: "Robert" });
    await Promise.all([ada, bob].map((db) => sees(db, { name: "Ada" }, { name: "Robert" })));
    await until(bob.presence, ({ peers }) => peers[1]?.self === true);

    wire.cut();
    await sees(ada, { name: "Ada" });
    wire.mend();
    await sees(ada, { name: "Ada" }, { name: "Robert" });
    bob.presence.clear();
    await sees(ada, { name: "Ada" });
    await until(bob.presence, ({ peers }) => peers.length === 1);
    bob.presence.set({ name: "Bob" });
    await sees(ada, { name: "Ada" }, { name: "Bob" });
    await bob.close();
    await sees(ada, { name: "Ada" });
    expect(ada.pending.get()).toEqual([]);
  });

  test("a client that lives says so before its TTL is over; one that does not is gone", async () => {
    const server = await serve(undefined, 2);
    const ada = open(server.url);
    ada.presence.set("Ada");
    const id = (await sees(ada, "Ada")).peers[0]?.id;
    // Says it once, and then no more, though its socket stays open.
    const raw = opened.add(new WebSocket(`${server.url.replace("http", "ws")}/v1/volumes/todo/sync`), async (socket) => socket.terminate());
    raw.on("open", () => {
      raw.send('{"type":"hello","protocols":[1],"client":"raw"}');
      raw.send('{"type":"set_presence","state":"once"}');
    });
    await sees(ada, "Ada", "once");
    const gone = new Promise<string>((resolve) => raw.on("close", () => resolve("closed")));
    await sees(ada, "Ada");
    expect(await Promise.race([gone, Promise.resolve("open")])).toBe("open");
    // Two of its own TTLs have gone by as well when a second one has come and gone.
    raw.send('{"type":"set_presence","state":"twice"}');
    await sees(ada, "Ada", "twice");
    expect((await sees(ada, "Ada")).peers[0]?.id, "it was never gone").toBe(id);
  });

  test("after a restart of the coordinator everybody says again who they are", async () => {
    const { store } = opened.add(await temporaryStore(), ({ remove }) => remove());
    const before = opened.add(await Server.start(store), (one) => one.kill());
    await before.deploy("todo");
    const [ada, bob] = [open(before.url), open(before.url)];
    const told: Present[] = [];
    ada.presence.subscribe((present) => told.push(present));
    ada.presence.set("Ada");
    await sees(ada, "Ada");
    bob.presence.set("Bob");
    await sees(ada, "Ada", "Bob");
    await before.kill();
    await until(ada.status, ({ state }) => state === "offline");
    expect(ada.presence.get()).toEqual({ peers: [], more: 0, known: false, error: undefined });
    expect(told.at(-1)).toBe(ada.presence.get());
    // Set while there is no connection.
    bob.presence.set("Robert");
    opened.add(await Server.start(store, before.listen), (one) => one.kill());
    const after = await until(ada.presence, ({ peers }) => peers.length === 2);
    expect(states(after).sort()).toEqual(["Ada", "Robert"]);
  });

  test("what is not JSON, too long or too deep is refused before it is sent", async () => {
    const server = await serve();
    const ada = open(server.url);
    ada.presence.set("good");
    const loop: { self?: unknown } = {};
    loop.self = loop;
    let deep: JsonValue = 1;
    for (let level = 0; level < 17; level += 1) deep = [deep];
    for (const [bad, code] of [
      ["x".repeat(1023), "too_large"],
      ["ü".repeat(600), "too_large"],
      [deep, "bad_state"],
      [loop, "bad_state"],
      [NaN, "bad_state"],
      [new Date(), "bad_state"],
      [undefined, "bad_state"],
    ] as const) {
      const tried = () => ada.presence.set(bad as JsonValue);
      expect(tried).toThrow(PresenceError);
      expect(tried).toThrow(expect.objectContaining({ code }) as Error);
    }
    await sees(ada, "good");
    // Half a character would not be JSON to the server, and the longest state that is taken here is taken there.
    ada.presence.set({ half: "\ud800", text: "x".repeat(1000) });
    await sees(ada, { half: "\ufffd", text: "x".repeat(1000) });
    expect(ada.presence.get().error).toBeUndefined();
    expect(ada.status.get().state).toBe("live");
  });

  test("what the server refuses is told with its reason", async () => {
    const server = await serve();
    const raw = opened.add(new WebSocket(`${server.url.replace("http", "ws")}/v1/volumes/todo/sync`), async (socket) => socket.terminate());
    const answers: string[] = [];
    raw.on("message", (text: Buffer) => answers.push(text.toString()));
    raw.on("open", () => {
      raw.send('{"type":"hello","protocols":[1],"client":"raw"}');
      raw.send(JSON.stringify({ type: "set_presence", state: "x".repeat(1023) }));
      raw.send('{"type":"ping","n":9}');
    });
    await expect.poll(() => answers.find((text) => text.includes("presence_error"))).toContain('"code":"too_large"');
    // The connection goes on.
    await expect.poll(() => answers.at(-1)).toBe('{"type":"pong","n":9}');
  });
});
