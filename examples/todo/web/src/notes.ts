/**
 * Refusals, each shown where the change was made until it is answered or put away.
 *
 * A refusal of something that somebody wrote keeps the text: on this device, through reloads and in every
 * window, until that person has sent it elsewhere or discarded it. Other refusals last as long as the page,
 * and one a place is enough.
 */

import type { Rejection } from "graft-client";
import { useSyncExternalStore } from "react";

import { isDemo } from "./demo-ids.js";

/** A refusal, as a person reads it. */
export interface Note {
  readonly key: string;
  /** `task:ID`, `list:ID`, `new-task:LIST` or `new-list`. */
  readonly place: string;
  /** What was tried. */
  readonly tried: string;
  /** Why it had no effect. */
  readonly reason: string;
  /** What was written, where it was text of a task or comment. */
  readonly text: string | undefined;
  /** When, in ms since 1970. */
  readonly at: number;
}

const PREFIX = `graft-todo-refused:${new URLSearchParams(location.search).get("volume") ?? "todo"}:`;

let notes: readonly Note[] = stored();
const listeners = new Set<() => void>();

function change(next: readonly Note[]): void {
  notes = next;
  for (const listener of listeners) listener();
}

/** For `onRejected`: also told of what was made before a reload. */
export function noteRejection({ reducer, args, error }: Rejection): void {
  // The panel that tries conflicts shows them itself.
  if (isDemo(args)) return;
  const place = placeOf(reducer, args);
  const note: Note = {
    key: crypto.randomUUID(),
    place,
    tried: tried(reducer, args),
    reason: reasonOf(error.code, error.message),
    text: written(reducer, args),
    at: Date.now(),
  };
  if (note.text === undefined) {
    change([...notes.filter((other) => other.place !== place || other.text !== undefined), note]);
  } else {
    keep(note);
    change([...notes, note]);
  }
}

/** Puts the refusal of a place away: the person tries again, or has read it. What was written stays. */
export function clearNote(place: string): void {
  const gone = (note: Note) => note.place === place && note.text === undefined;
  if (notes.some(gone)) change(notes.filter((note) => !gone(note)));
}

/** Puts one away for good, with its text. */
export function discardNote({ key }: Note): void {
  try {
    localStorage.removeItem(PREFIX + key);
  } catch (error) {
    console.warn("a note could not be removed from this device:", error);
  }
  change(notes.filter((note) => note.key !== key));
}

/** All of them. */
export function useNotes(): readonly Note[] {
  return useSyncExternalStore(subscribe, () => notes);
}

/** That of one place, without those that keep a text. */
export function useNote(place: string): Note | undefined {
  return useNotes().find((note) => note.place === place && note.text === undefined);
}

/** Those that keep a text, at these places. */
export function useKept(at: (place: string) => boolean): readonly Note[] {
  return useNotes().filter((note) => note.text !== undefined && at(note.place));
}

function subscribe(listener: () => void): () => void {
  if (listeners.size === 0) window.addEventListener("storage", elsewhere);
  listeners.add(listener);
  return () => {
    listeners.delete(listener);
    if (listeners.size === 0) window.removeEventListener("storage", elsewhere);
  };
}

/** Another window of this device has kept or discarded one. */
function elsewhere({ key }: StorageEvent): void {
  if (key !== null && !key.startsWith(PREFIX)) return;
  change([...notes.filter(({ text }) => text === undefined), ...stored()]);
}

function keep(note: Note): void {
  try {
    localStorage.setItem(PREFIX + note.key, JSON.stringify(note));
  } catch (error) {
    console.warn("this device keeps nothing for this page; a refused text lasts until it is closed:", error);
  }
}

function stored(): Note[] {
  try {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
    return keys.flatMap((key) => read(localStorage.getItem(key)) ?? []).sort((a, b) => a.at - b.at);
  } catch {
    return []; // Nothing is kept on this device.
  }
}

function read(text: string | null): Note | undefined {
  try {
    const note: unknown = JSON.parse(text ?? "null");
    if (typeof note !== "object" || note === null) return undefined;
    const { key, place, tried, reason, text: written, at } = note as Partial<Record<keyof Note, unknown>>;
    const strings = [key, place, tried, reason, written].every((part) => typeof part === "string");
    return strings && typeof at === "number" ? (note as Note) : undefined;
  } catch {
    return undefined; // Not ours.
  }
}

/** The reducer's reason, but in the second person where it names ids, which say nothing to a person. */
export function reasonOf(code: string, message: string): string {
  if (code !== "refused") return message;
  if (message === "the task was deleted" || message.startsWith("there is no task ")) {
    return "somebody has deleted the task meanwhile";
  }
  return message.startsWith("there is no list ") ? "somebody has deleted the list meanwhile" : message;
}

function placeOf(reducer: string, args: Rejection["args"]): string {
  switch (reducer) {
    case "create_list":
      return "new-list";
    case "add_task":
      return `new-task:${args["list"]}`;
    case "set_capacity":
      return `list:${args["list"]}`;
    case "delete_list":
      return `list:${args["id"]}`;
    case "add_comment":
      return `task:${args["task"]}`;
    default:
      return `task:${args["id"]}`;
  }
}

/** What a person wrote and would have to write again. */
function written(reducer: string, args: Rejection["args"]): string | undefined {
  const name = { add_task: "title", rename_task: "title", add_comment: "text" }[reducer];
  const text = name === undefined ? undefined : args[name];
  return typeof text === "string" && text.trim() !== "" ? text : undefined;
}

function tried(reducer: string, args: Rejection["args"]): string {
  const text = written(reducer, args);
  const quoted = text === undefined ? "" : ` “${text}”`;
  switch (reducer) {
    case "create_list":
      return "The list was not created";
    case "delete_list":
      return "The list was not deleted";
    case "set_capacity":
      return "The limit was not changed";
    case "add_task":
      return `The task${quoted} was not added`;
    case "rename_task":
      return `The new title${quoted} was not taken`;
    case "add_comment":
      return `The comment${quoted} was not added`;
    case "delete_comment":
      return "The comment was not deleted";
    case "claim_task":
      return "It was not claimed for you";
    case "release_task":
      return "It was not released";
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
