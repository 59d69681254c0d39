/** Refusals, each kept for the place where the change was made until it is answered or put away. */

import type { Rejection } from "graft-client";
import { useSyncExternalStore } from "react";

/** A refusal, as a person reads it. */
export interface Note {
  readonly key: number;
  /** `task:ID`, `new-task:LIST` or `new-list`. */
  readonly place: string;
  /** What was tried. */
  readonly tried: string;
  /** Why it had no effect. */
  readonly reason: string;
}

let notes: readonly Note[] = [];
let nextKey = 0;
const listeners = new Set<() => void>();

function change(next: readonly Note[]): void {
  notes = next;
  for (const listener of listeners) listener();
}

/** For `onRejected`: also told of what was made before a reload. */
export function noteRejection({ reducer, args, error }: Rejection): void {
  const place =
    reducer === "create_list" ? "new-list" : reducer === "add_task" ? `new-task:${args["list"]}` : `task:${args["id"]}`;
  // The reducer names the task by its id, which says nothing to a person.
  const gone = error.code === "refused" && error.message === `there is no task ${args["id"]}`;
  const reason = gone ? "somebody has deleted the task meanwhile" : error.message;
  const note = { key: nextKey++, place, tried: tried(reducer, args), reason };
  // One refusal a place is enough: the latest.
  change([...notes.filter((other) => other.place !== place), note]);
}

/** Puts the refusal of a place away: the person tries again, or has read it. */
export function clearNote(place: string): void {
  if (notes.some((note) => note.place === place)) change(notes.filter((note) => note.place !== place));
}

/** All of them. */
export function useNotes(): readonly Note[] {
  return useSyncExternalStore(subscribe, () => notes);
}

/** That of one place. */
export function useNote(place: string): Note | undefined {
  return useNotes().find((note) => note.place === place);
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tried(reducer: string, args: Rejection["args"]): string {
  const title = typeof args["title"] === "string" && args["title"].trim() !== "" ? ` “${args["title"]}”` : "";
  switch (reducer) {
    case "create_list":
      return "The list was not created";
    case "add_task":
      return `The task${title} was not added`;
    case "rename_task":
      return `The new title${title} was not taken`;
    case "set_done":
      return args["done"] === true ? "It was not ticked" : "It was not unticked";
    case "move_task":
      return "It was not moved";
    case "delete_task":
      return "It was not deleted";
    default:
      return `${reducer} had no effect`;
  }
}
