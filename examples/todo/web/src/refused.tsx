/** What somebody wrote and nobody took: why, and what to do with the text. */

import { useDb, useQuery } from "graft-client/react";
import { useId, useState, type FormEvent, type ReactNode } from "react";

import { myName } from "./me.js";
import type { List, Task } from "./model.js";
import { discardNote, useKept, type Note } from "./notes.js";

/** Every kept refusal at the places that `at` names. */
export function RefusedTexts(props: { readonly at: (place: string) => boolean; readonly list?: string | undefined }): ReactNode {
  const kept = useKept(props.at);
  if (kept.length === 0) return null;
  return (
    <ul className="refused-texts" aria-label="Not accepted">
      {kept.map((note) => (
        <Refused key={note.key} note={note} list={props.list} />
      ))}
    </ul>
  );
}

function Refused(props: { readonly note: Note; readonly list: string | undefined }): ReactNode {
  const { note, list } = props;
  const text = note.text ?? "";
  return (
    <li className="note kept">
      <p role="alert">
        {note.tried}: {note.reason}.
      </p>
      <div className="actions">
        <Elsewhere note={note} list={list} />
        <CopyText text={text} />
        <button type="button" onClick={() => discardNote(note)}>
          Discard
        </button>
      </div>
    </li>
  );
}

export function CopyText(props: { readonly text: string }): ReactNode {
  const [copied, setCopied] = useState<boolean>();
  const copy = () => {
    // Absent without HTTPS; refused without permission.
    const written = navigator.clipboard?.writeText(props.text) ?? Promise.reject(new Error("no clipboard"));
    written.then(
      () => setCopied(true),
      () => setCopied(false),
    );
  };
  return (
    <button type="button" onClick={copy} aria-live="polite">
      {copied === undefined ? "Copy text" : copied ? "Copied" : "Cannot copy here"}
    </button>
  );
}

/** Sends the text again: as a task of any list, or as a comment on a task of the list in view. */
function Elsewhere(props: { readonly note: Note; readonly list: string | undefined }): ReactNode {
  const { note, list } = props;
  const db = useDb();
  const lists = useQuery<List>("SELECT id, name FROM lists ORDER BY name, id").rows;
  const tasks = useQuery<Task>("SELECT id, title FROM tasks WHERE list = ?1 ORDER BY position, id", [list ?? ""]).rows;
  const id = useId();
  const here = lists.find((other) => other.id === list)?.id ?? lists[0]?.id;
  const [chosen, choose] = useState<string>();
  const [sending, setSending] = useState(false);
  const target = chosen ?? (here === undefined ? undefined : `list:${here}`);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (target === undefined || note.text === undefined) return;
    const at = target.slice(target.indexOf(":") + 1);
    const id = crypto.randomUUID();
    const { seq } = target.startsWith("list:")
      ? db.mutate.addTask({ id, list: at, title: note.text })
      : db.mutate.addComment({ id, task: at, author: myName(), text: note.text });
    setSending(true);
    // Kept here until it is kept there. If it is refused as well, that makes a note of its own.
    seq.then(
      () => discardNote(note),
      () => setSending(false),
    );
  };
  return (
    <form className="elsewhere" onSubmit={submit}>
      <label htmlFor={id} className="visually-hidden">
        Where to put it instead
      </label>
      <select id={id} value={target ?? ""} onChange={(event) => choose(event.target.value)}>
        <optgroup label="As a task in">
          {lists.map((other) => (
            <option key={other.id} value={`list:${other.id}`}>
              {other.name}
            </option>
          ))}
        </optgroup>
        {tasks.length > 0 && (
          <optgroup label="As a comment on">
            {tasks.map((task) => (
              <option key={task.id} value={`task:${task.id}`}>
                {task.title}
              </option>
            ))}
          </optgroup>
        )}
      </select>
      <button type="submit" disabled={target === undefined || sending}>
        Put it there
      </button>
    </form>
  );
}
