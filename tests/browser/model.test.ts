/** What the todo page shows of rows and waiting changes, and where a moved task goes. */

import type { PendingMutation } from "graft-client";
import { expect, test } from "vitest";

import { moves, shownComments, shownLists, shownTasks, type Task } from "../../examples/todo/web/src/model.js";

const row = (id: string, position: number, more: Partial<Task> = {}): Task => ({
  id,
  title: id,
  done: 0,
  position,
  claimant: null,
  claimer: null,
  comments: 0,
  ...more,
});

const waiting = (seq: number | undefined, reducer: string, args: PendingMutation["args"]): PendingMutation => ({
  seq,
  reducer,
  args,
  state: "waiting",
});

test("waiting changes lie over the rows, in the order in which they were made", () => {
  const rows = [row("a", 1), row("b", 2), row("c", 3)];
  const shown = shownTasks(
    "l",
    rows,
    0,
    [
      waiting(1, "add_task", { id: "d", list: "l", title: "D" }),
      waiting(2, "add_task", { id: "x", list: "other", title: "X" }),
      waiting(3, "rename_task", { id: "d", title: "Dates" }),
      waiting(4, "set_done", { id: "a", done: true }),
      waiting(5, "move_task", { id: "c", position: 0.5 }),
      waiting(6, "delete_task", { id: "b" }),
      waiting(undefined, "rename_task", { id: "gone", title: "?" }),
    ],
    "me",
  );
  expect(shown).toEqual([
    { ...row("c", 0.5), pending: true },
    { ...row("a", 1, { done: 1 }), pending: true },
    { ...row("d", 4, { title: "Dates" }), pending: true },
  ]);
});

test("what the rows already hold is marked, but not laid over them again", () => {
  const rows = [row("a", 1, { title: "theirs, later" })];
  const pending = [waiting(1, "rename_task", { id: "a", title: "mine" }), waiting(2, "set_done", { id: "a", done: true })];
  expect(shownTasks("l", rows, 1, pending, "me")).toEqual([{ ...row("a", 1, { title: "theirs, later", done: 1 }), pending: true }]);
  // Added, seen, and deleted by somebody else before it was durable: it does not come back.
  expect(shownTasks("l", [], 1, [waiting(1, "add_task", { id: "n", list: "l", title: "N" })], "me")).toEqual([]);
});

test("a waiting claim takes nothing away from anybody, and a waiting release only what it names", () => {
  const theirs = { claimant: "other", claimer: "Ada" };
  const mine = { claimant: "me", claimer: "Bob" };
  const rows = [row("a", 1), row("b", 2, theirs), row("c", 3, mine), row("d", 4, theirs), row("e", 5, theirs)];
  const shown = shownTasks(
    "l",
    rows,
    0,
    [
      waiting(1, "claim_task", { id: "a", name: "Bob" }),
      waiting(2, "claim_task", { id: "b", name: "Bob" }),
      waiting(3, "release_task", { id: "c" }),
      waiting(4, "release_task", { id: "d", claimant: "me" }),
      waiting(5, "release_task", { id: "e", claimant: "other" }),
      waiting(6, "add_comment", { id: "k", task: "a", author: "Bob", text: "?" }),
    ],
    "me",
  );
  expect(shown.map(({ claimer, comments }) => [claimer, comments])).toEqual([["Bob", 1], ["Ada", 0], [null, 0], ["Ada", 0], [null, 0]]);
});

test("waiting comments stand below the others until they are among them", () => {
  const rows = [{ id: "1", author: "Ada", text: "one" }, { id: "2", author: "Ada", text: "two" }];
  const pending = [
    waiting(1, "add_comment", { id: "2", task: "t", author: "Ada", text: "two" }),
    waiting(2, "add_comment", { id: "3", task: "t", author: "Bob", text: "three" }),
    waiting(3, "add_comment", { id: "4", task: "another", author: "Bob", text: "four" }),
    waiting(4, "delete_comment", { id: "1" }),
  ];
  const shown = shownComments("t", rows, 1, pending).map(({ text, pending: waits }) => [text, waits]);
  expect(shown).toEqual([["two", true], ["three", true]]);
});

test("lists that are being created, deleted or limited stand as they will", () => {
  const list = (id: string, name: string, capacity: number | null = null) => ({ id, name, capacity });
  const rows = [list("b", "Books"), list("c", "Cars", 3), list("d", "Dogs")];
  const shown = shownLists(rows, 1, [
    waiting(1, "set_capacity", { list: "d", capacity: 9 }), // in the rows, and another one after it
    waiting(2, "create_list", { id: "a", name: "Art" }),
    waiting(3, "set_capacity", { list: "a", capacity: 2 }),
    waiting(4, "set_capacity", { list: "c", capacity: null }),
    waiting(5, "delete_list", { id: "b" }),
  ]);
  expect(shown).toEqual([
    { ...list("a", "Art", 2), pending: true },
    { ...list("c", "Cars"), pending: true },
    { ...list("d", "Dogs"), pending: true },
  ]);
});

/** Order after writing what `moves` says. */
function after(tasks: readonly Task[], from: number, to: number): string[] {
  const changed = new Map(moves(tasks, from, to).map(({ id, position }) => [id, position]));
  return tasks
    .map((task) => ({ ...task, position: changed.get(task.id) ?? task.position }))
    .sort((a, b) => a.position - b.position || (a.id < b.id ? -1 : 1))
    .map(({ id }) => id);
}

test("every move ends where it should, whatever the positions", () => {
  const close = 1 + Number.EPSILON;
  const lists = [
    [1, 2, 3, 4],
    [1, 1, 1, 1], // equal: only ids order them
    [0, 1, close, 2], // no number between
    [-3.5, 0, 0, 1e300],
    [Number.MAX_VALUE, Number.MAX_VALUE, Number.MAX_VALUE, Number.MAX_VALUE], // nothing beyond the last
    [-Number.MAX_VALUE, 0, 1, Number.MAX_VALUE],
  ];
  for (const positions of lists) {
    const tasks = positions.map((position, index) => row("abcd"[index] ?? "", position));
    for (let from = 0; from < tasks.length; from++) {
      for (let to = 0; to < tasks.length; to++) {
        const expected = tasks.map(({ id }) => id).filter((_, index) => index !== from);
        expected.splice(to, 0, "abcd"[from] ?? "");
        expect(after(tasks, from, to), `${positions} from ${from} to ${to}`).toEqual(expected);
      }
    }
  }
  const tasks = [1, 2, 3].map((position, index) => row("abc"[index] ?? "", position));
  expect(moves(tasks, 2, 0)).toEqual([{ id: "c", position: 0 }]);
  expect(moves(tasks, 2, 1)).toEqual([{ id: "c", position: 1.5 }]);
  expect(moves(tasks, 0, 2)).toEqual([{ id: "a", position: 4 }]);
  expect(moves(tasks, 1, 1)).toEqual([]);
  expect(moves(tasks, 0, -1)).toEqual([]);
  expect(moves(tasks, 2, 3)).toEqual([]);
});
