// @vitest-environment happy-dom

import { act, memo, StrictMode, type ReactNode } from "react";
import { createRoot, type Root } from "react-dom/client";
import { afterEach, beforeEach, expect, test } from "vitest";

import { connect, memory, type Db } from "../src/index.js";
import { GraftProvider, useDb, useMutation, usePending, usePresence, useQuery, useStatus } from "../src/react.js";
import { until } from "./support/app.js";
import { AT } from "./support/peer.js";
import { Script } from "./support/script.js";

interface Todo {
  readonly add_task: { title: string };
}

let script: Script;
let db: Db<Todo>;
let root: Root;
let page: HTMLElement;

beforeEach(async () => {
  Object.assign(globalThis, { IS_REACT_ACT_ENVIRONMENT: true });
  script = new Script();
  db = connect<Todo>({ url: "http://h", volume: "todo", webSocket: script.WebSocket, storage: memory() });
  await until(db.status, ({ state }) => state === "live");
  page = document.createElement("main");
  root = createRoot(page);
});
afterEach(async () => {
  await act(async () => root.unmount());
  await db.close();
});

const show = (children: ReactNode) =>
  act(async () => root.render(<StrictMode><GraftProvider<Todo> db={db}>{children}</GraftProvider></StrictMode>));

test("useQuery draws rows as they come, and only those that changed", async () => {
  const drawn: string[] = [];
  const Task = memo(function Task({ task }: { task: { id: string; title: string } }) {
    drawn.push(task.title);
    return <li>{task.title}</li>;
  });
  function Tasks({ list }: { list: string }) {
    const { rows, loading } = useQuery<{ id: string; title: string }>("SELECT id, title FROM tasks WHERE list = ?1", [list], { key: ["id"] });
    return <ul>{loading ? "loading" : rows.map((task) => <Task key={task.id} task={task} />)}</ul>;
  }
  await show(<Tasks list="home" />);
  expect(page.textContent).toBe("loading");
  // Strict mode mounts twice; the subscription is one.
  expect(script.now.sent.filter(({ type }) => type === "subscribe")).toMatchObject([{ params: ["home"], key: ["id"] }]);
  const { sub } = await script.now.saw("subscribe");
  await act(async () => script.now.snapshot(sub, ["id", "title"], [["1", "one"], ["2", "two"]]));
  expect(page.textContent).toBe("onetwo");
  drawn.length = 0;
  await act(async () => script.now.say({ type: "delta", sub, ...AT, changes: { update: [[1, ["2", "TWO"]]] } }));
  expect(page.textContent).toBe("oneTWO");
  expect(new Set(drawn)).toEqual(new Set(["TWO"]));
  // Drawing again with equal parameters changes nothing; with others it is another query.
  await show(<Tasks list="home" />);
  expect(script.now.count("subscribe")).toBe(1);
  await show(<Tasks list="work" />);
  expect(page.textContent).toBe("loading");
  expect(script.now.sent.slice(-2)).toMatchObject([{ type: "subscribe", params: ["work"] }, { type: "unsubscribe", sub }]);
});

test("useQuery shows an error", async () => {
  function Broken() {
    const { error } = useQuery("SELECT nothing");
    return <p>{error?.message ?? "fine"}</p>;
  }
  await show(<Broken />);
  const { sub } = await script.now.saw("subscribe");
  await act(async () => script.now.say({ type: "subscription_error", sub, reason: { code: "bad_query", message: "no such column" } }));
  expect(page.textContent).toBe("no such column");
});

test("useMutation, usePending and useStatus follow a mutation", async () => {
  const functions = new Set<unknown>();
  function Add() {
    const addTask = useMutation<Todo, "add_task">("add_task");
    functions.add(addTask);
    const { state, pending } = useStatus();
    return (
      <button onClick={() => addTask({ title: "x" })}>
        {state} {pending} {usePending().map(({ reducer, state: phase }) => `${reducer} ${phase}`)}
      </button>
    );
  }
  await show(<Add />);
  expect(page.textContent).toBe("live 0 ");
  await act(async () => page.querySelector("button")?.click());
  expect(await script.now.saw("mutate")).toMatchObject({ reducer: "add_task", args: { title: "x" } });
  expect(page.textContent).toBe("live 1 add_task sent");
  await act(async () => script.now.say({ type: "accepted", seq: 1, lsn: 2 }));
  expect(page.textContent).toBe("live 1 add_task accepted");
  await act(async () => script.now.say({ type: "durable", seq: 1, lsn: 2 }));
  expect(page.textContent).toBe("live 0 ");
  await act(async () => script.now.drop());
  expect(page.textContent).toBe("offline 0 ");
  // Strict mode draws twice; over all the drawings after that it is the same function.
  expect(functions.size).toBeLessThanOrEqual(2);
});

test("usePresence says who is here while its component is, and shows the others", async () => {
  function Here({ name }: { name: string }) {
    const { peers, more } = usePresence({ name });
    return <p>{peers.map(({ id, self }) => `${id}${self ? " (you)" : ""}`).join()} {more}</p>;
  }
  await show(<Here name="Ada" />);
  await script.now.saw("watch_presence");
  // Strict mode mounts, unmounts and mounts again.
  await script.now.saw("clear_presence");
  const again = script.now.sent.findIndex(({ type }) => type === "clear_presence");
  expect(await script.now.saw("set_presence", again)).toMatchObject({ state: { name: "Ada" } });
  const said = script.now.sent.length;
  await act(async () => {
    script.now.say({ type: "presence_set", id: 2, ttl_ms: 90_000 });
    script.now.say({ type: "presence", peers: [{ id: 1, state: 0 }, { id: 2, state: { name: "Ada" } }], more: 4 });
  });
  expect(page.textContent).toBe("1,2 (you) 4");
  // Drawing again with an equal state says nothing; another one takes the place of the one before.
  await show(<Here name="Ada" />);
  expect(script.now.sent.length).toBe(said);
  await show(<Here name="Grace" />);
  expect(await script.now.saw("set_presence", said)).toMatchObject({ state: { name: "Grace" } });
  await show(null);
  await script.now.saw("unwatch_presence", said);
  expect(script.now.sent.slice(said).map(({ type }) => type)).toEqual(["set_presence", "clear_presence", "unwatch_presence"]);
});

test("without a provider the hooks say what is missing", async () => {
  function Lost() {
    useDb();
    return null;
  }
  const alone = createRoot(document.createElement("p"));
  await expect(act(async () => alone.render(<Lost />))).rejects.toThrow("<GraftProvider db={…}>");
  await act(async () => alone.unmount());
});
