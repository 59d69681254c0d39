/** Not run: `npm run check` compiles it. What must not compile is marked, and the mark must be right. */

import { connect, type CamelName } from "../src/index.js";
import { useMutation } from "../src/react.js";

export interface TodoMutations {
  add_task: { id: string; list: string; title: string };
  set_done: { id: string; done: boolean };
  clear: { list?: string | null };
  add_2_tasks: { id: bigint | number };
}

const camel: [CamelName<"add_task">, CamelName<"a__b">, CamelName<"add_2_tasks">, CamelName<"clear">] = [
  "addTask",
  "a_B",
  "add_2Tasks",
  "clear",
];

export function typed(): unknown {
  const db = connect<TodoMutations>({ url: "http://127.0.0.1:4600", volume: "todo" });
  db.mutate.addTask({ id: "1", list: "home", title: "x" });
  db.mutate("add_task", { id: "1", list: "home", title: "x" });
  db.mutate.clear();
  db.mutate.add_2Tasks({ id: 1n });
  // @ts-expect-error: a missing argument
  db.mutate.addTask({ id: "1", list: "home" });
  // @ts-expect-error: no arguments at all
  db.mutate.addTask();
  // @ts-expect-error: no such reducer
  db.mutate.addTaks({});
  // @ts-expect-error: no such reducer
  db.mutate("addTask", {});
  db.subscribe<{ id: string; done: 0 | 1 }>("SELECT id, done FROM tasks", [], (rows) => rows[0]?.done);
  return camel;
}

export function Component(): null {
  const setDone = useMutation<TodoMutations, "set_done">("set_done");
  setDone({ id: "1", done: true });
  // @ts-expect-error: done is a boolean
  setDone({ id: "1", done: 1 });
  return null;
}

export function untyped(): void {
  const db = connect({ url: "http://127.0.0.1:4600", volume: "todo" });
  db.mutate("anything", { at: [1, { all: null }] });
  db.mutate.addTask?.({ id: "1" });
}
