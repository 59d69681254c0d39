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
}

export interface Task {
  readonly id: string;
  readonly title: string;
  readonly done: number;
  readonly position: number;
}

/** A row as shown. */
export type Shown<T> = T & {
  /** Something about it is not durable yet. */
  readonly pending: boolean;
};

/** Lists in the order of their names, with those that are being created. */
export function shownLists(rows: readonly List[], pending: readonly PendingMutation[]): Shown<List>[] {
  const shown = new Map<string, Shown<List>>(rows.map((list) => [list.id, { ...list, pending: false }]));
  for (const { reducer, args } of pending) {
    if (reducer !== "create_list") continue;
    const id = String(args["id"]);
    shown.set(id, { id, name: shown.get(id)?.name ?? String(args["name"]), pending: true });
  }
  return [...shown.values()].sort((a, b) => a.name.localeCompare(b.name) || compare(a.id, b.id));
}

/** A list's tasks in order, with the waiting changes to them. `seq` is that of the rows. */
export function shownTasks(
  list: string,
  rows: readonly Task[],
  seq: number | undefined,
  pending: readonly PendingMutation[],
): Shown<Task>[] {
  const shown = new Map<string, Shown<Task>>(rows.map((task) => [task.id, { ...task, pending: false }]));
  for (const mutation of pending) {
    const { reducer, args } = mutation;
    const id = String(args["id"]);
    const inRows = mutation.seq !== undefined && seq !== undefined && mutation.seq <= seq;
    const task = shown.get(id);
    if (reducer === "add_task" && task === undefined && !inRows) {
      if (args["list"] !== list) continue;
      const last = Math.max(0, ...[...shown.values()].map((other) => other.position));
      shown.set(id, { id, title: String(args["title"]), done: 0, position: Math.floor(last) + 1, pending: true });
    }
    if (task === undefined) continue;
    const change = inRows ? {} : changeOf(mutation);
    if (change === "deleted") shown.delete(id);
    else shown.set(id, { ...task, ...change, pending: true });
  }
  return [...shown.values()].sort((a, b) => a.position - b.position || compare(a.id, b.id));
}

function changeOf({ reducer, args }: PendingMutation): Partial<Task> | "deleted" {
  switch (reducer) {
    case "set_done":
      return { done: args["done"] === true ? 1 : 0 };
    case "rename_task":
      return { title: String(args["title"]) };
    case "move_task":
      return { position: Number(args["position"]) };
    case "delete_task":
      return "deleted";
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
