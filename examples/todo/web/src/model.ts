/**
 * What is shown: the server's rows with this device's own waiting changes on top, and the arithmetic of
 * moving. Pure functions, tested in `tests/browser/model.test.ts`.
 *
 * A waiting change is laid over the rows until they contain it: rows name the last mutation whose effect they
 * hold (`seq`), so a guess disappears in the moment in which the real effect arrives. Whether it is *marked*
 * is another matter: the mark stays until it is durable.
 */

import type { PendingMutation } from "graft-client";

export interface List {
  readonly id: string;
  readonly name: string;
  /** How many tasks it has room for; `null` for any number. */
  readonly capacity: number | null;
}

export interface Task {
  readonly id: string;
  readonly title: string;
  readonly done: number;
  readonly position: number;
  /** The id of the client that has claimed it, and what its person is called. */
  readonly claimant: string | null;
  readonly claimer: string | null;
  /** How many there are. */
  readonly comments: number;
}

export interface Comment {
  readonly id: string;
  readonly author: string;
  readonly text: string;
}

/** A row as shown. */
export type Shown<T> = T & {
  /** Something about it is not durable yet. */
  readonly pending: boolean;
};

/** Lists in the order of their names, with those that are being created. */
export function shownLists(
  rows: readonly List[],
  seq: number | undefined,
  pending: readonly PendingMutation[],
): Shown<List>[] {
  const shown = new Map<string, Shown<List>>(rows.map((list) => [list.id, { ...list, pending: false }]));
  for (const mutation of pending) {
    const { reducer, args } = mutation;
    const inRows = isInRows(mutation, seq);
    const id = String(args[reducer === "set_capacity" ? "list" : "id"]);
    const list = shown.get(id);
    if (reducer === "create_list" && (list !== undefined || !inRows)) {
      shown.set(id, { id, name: list?.name ?? String(args["name"]), capacity: list?.capacity ?? null, pending: true });
    }
    if (list === undefined) continue;
    if (reducer === "delete_list" && !inRows) shown.delete(id);
    if (reducer === "set_capacity") {
      const capacity = inRows ? list.capacity : args["capacity"] == null ? null : Number(args["capacity"]);
      shown.set(id, { ...list, capacity, pending: true });
    }
  }
  return [...shown.values()].sort((a, b) => a.name.localeCompare(b.name) || compare(a.id, b.id));
}

/** A list's tasks in order, with the waiting changes to them. `seq` is that of the rows, `me` this client's id. */
export function shownTasks(
  list: string,
  rows: readonly Task[],
  seq: number | undefined,
  pending: readonly PendingMutation[],
  me: string | undefined,
): Shown<Task>[] {
  const shown = new Map<string, Shown<Task>>(rows.map((task) => [task.id, { ...task, pending: false }]));
  for (const mutation of pending) {
    const { reducer, args } = mutation;
    const id = String(args[reducer === "add_comment" ? "task" : "id"]);
    const inRows = isInRows(mutation, seq);
    const task = shown.get(id);
    if (reducer === "add_task" && task === undefined && !inRows) {
      if (args["list"] !== list) continue;
      const last = Math.max(0, ...[...shown.values()].map((other) => other.position));
      const fresh = { claimant: null, claimer: null, comments: 0, pending: true };
      shown.set(id, { id, title: String(args["title"]), done: 0, position: Math.floor(last) + 1, ...fresh });
    }
    if (task === undefined) continue;
    const change = inRows ? {} : changeOf(mutation, task, me);
    if (change === "deleted") shown.delete(id);
    else shown.set(id, { ...task, ...change, pending: true });
  }
  return [...shown.values()].sort((a, b) => a.position - b.position || compare(a.id, b.id));
}

/** A task's comments in order, with those that wait. */
export function shownComments(
  task: string,
  rows: readonly Comment[],
  seq: number | undefined,
  pending: readonly PendingMutation[],
): Shown<Comment>[] {
  const shown = new Map<string, Shown<Comment>>(rows.map((comment) => [comment.id, { ...comment, pending: false }]));
  for (const mutation of pending) {
    const { reducer, args } = mutation;
    const id = String(args["id"]);
    const inRows = isInRows(mutation, seq);
    if (reducer === "add_comment" && args["task"] === task) {
      const comment = shown.get(id);
      if (comment !== undefined) shown.set(id, { ...comment, pending: true });
      else if (!inRows) shown.set(id, { id, author: String(args["author"]), text: String(args["text"]), pending: true });
    }
    if (reducer === "delete_comment" && !inRows) shown.delete(id);
  }
  return [...shown.values()];
}

function isInRows(mutation: PendingMutation, seq: number | undefined): boolean {
  return mutation.seq !== undefined && seq !== undefined && mutation.seq <= seq;
}

function changeOf({ reducer, args }: PendingMutation, task: Task, me: string | undefined): Partial<Task> | "deleted" {
  switch (reducer) {
    case "set_done":
      return { done: args["done"] === true ? 1 : 0 };
    case "rename_task":
      return { title: String(args["title"]) };
    case "move_task":
      return { position: Number(args["position"]) };
    case "delete_task":
      return "deleted";
    case "add_comment":
      return { comments: task.comments + 1 };
    case "claim_task":
      // Somebody else's claim is not taken away, not even for show.
      return task.claimant === null ? { claimant: me ?? "", claimer: String(args["name"]) } : {};
    case "release_task":
      return task.claimant === (args["claimant"] ?? me) ? { claimant: null, claimer: null } : {};
    default:
      return {};
  }
}

/** A task's new place. */
export interface Move {
  readonly id: string;
  readonly position: number;
}

/**
 * What to write so that the task at `from` comes to stand at `to`: one row, unless there is no number left
 * between its new neighbours; then the list is numbered anew.
 */
export function moves(tasks: readonly Task[], from: number, to: number): Move[] {
  const moved = tasks[from];
  if (moved === undefined || from === to || to < 0 || to >= tasks.length) return [];
  const others = tasks.filter((_, index) => index !== from);
  const before = others[to - 1]?.position;
  const after = others[to]?.position;
  const position =
    before === undefined
      ? Math.ceil(after ?? 1) - 1
      : after === undefined
        ? Math.floor(before) + 1
        : before + (after - before) / 2;
  const fits = (before === undefined || before < position) && (after === undefined || position < after);
  if (fits && Number.isFinite(position)) return [{ id: moved.id, position }];
  const order = [...others.slice(0, to), moved, ...others.slice(to)];
  return order
    .map(({ id }, index) => ({ id, position: index + 1 }))
    .filter(({ id, position }) => tasks.find((task) => task.id === id)?.position !== position);
}

/** By code units, as SQLite's BINARY orders ids of ASCII. */
function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
