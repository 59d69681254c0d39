/** All lists, and the form for a new one. */

import type { LiveResult } from "graft-client";
import { useMutation, useStatus } from "graft-client/react";
import { useRef, useState, type FormEvent, type ReactNode } from "react";

import type { List, Shown } from "./model.js";
import { clearNote, useNote } from "./notes.js";
import { Mark } from "./mark.js";

export function Lists(props: {
  readonly lists: readonly Shown<List>[];
  readonly selected: string | undefined;
  readonly result: LiveResult<List>;
}): ReactNode {
  const { lists, selected, result } = props;
  const { state } = useStatus();
  return (
    <nav className="lists" aria-label="Lists">
      <h2>Lists</h2>
      {result.error !== undefined && state !== "ended" && (
        <p className="note" role="alert">
          {result.error.message}
        </p>
      )}
      {lists.length === 0 && (
        <p className="hint">
          {!result.loading ? "None yet." : state === "offline" || state === "ended" ? "They show when the server is back." : "Loading…"}
        </p>
      )}
      <ul>
        {lists.map((list) => (
          <li key={list.id}>
            <a href={listUrl(list.id)} aria-current={list.id === selected ? "page" : undefined}>
              <span>{list.name}</span>
              {list.pending && <Mark />}
            </a>
          </li>
        ))}
      </ul>
      <NewList />
    </nav>
  );
}

export function listUrl(id: string): string {
  return `#/list/${encodeURIComponent(id)}`;
}

function NewList(): ReactNode {
  const [name, setName] = useState("");
  const input = useRef<HTMLInputElement>(null);
  const createList = useMutation("create_list");
  const note = useNote("new-list");
  const submit = (event: FormEvent) => {
    event.preventDefault();
    clearNote("new-list");
    const id = crypto.randomUUID();
    const { durable } = createList({ id, name });
    if (name.trim() === "") {
      input.current?.focus();
    } else {
      location.hash = listUrl(id);
      // A refusal is shown below; then there is nothing at that URL.
      durable.catch(() => location.hash === listUrl(id) && (location.hash = "#/"));
    }
    setName("");
  };
  return (
    <form className="add" onSubmit={submit}>
      <label className="visually-hidden" htmlFor="new-list">
        Name of a new list
      </label>
      <input
        id="new-list"
        ref={input}
        value={name}
        placeholder="New list"
        autoComplete="off"
        aria-invalid={note !== undefined}
        aria-describedby={note === undefined ? undefined : "new-list-note"}
        onChange={(event) => {
          setName(event.target.value);
          clearNote("new-list");
        }}
      />
      <button type="submit">Create</button>
      {note !== undefined && (
        <p className="note" id="new-list-note" role="alert">
          {note.tried}: {note.reason}.
        </p>
      )}
    </form>
  );
}
