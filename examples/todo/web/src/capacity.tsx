/** How full a list is, and the form for its limit. */

import { useMutation } from "graft-client/react";
import { useEffect, useRef, useState, type FormEvent, type ReactNode } from "react";

import { clearNote, useNote } from "./notes.js";

/** `tasks` of `capacity`; the button opens the form. */
export function Capacity(props: { readonly list: string; readonly capacity: number | null; readonly tasks: number }): ReactNode {
  const { list, capacity, tasks } = props;
  const [editing, setEditing] = useState(false);
  const [value, setValue] = useState("");
  const setCapacity = useMutation("set_capacity");
  const button = useRef<HTMLButtonElement>(null);
  const refocus = useRef(false);
  const place = `list:${list}`;

  useEffect(() => {
    if (editing || !refocus.current) return;
    refocus.current = false;
    button.current?.focus();
  }, [editing]);

  const end = () => {
    refocus.current = true;
    setEditing(false);
  };
  const save = (next: number | null) => {
    clearNote(place);
    if (next !== capacity) setCapacity({ list, capacity: next });
    end();
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    save(value.trim() === "" ? null : Number(value));
  };
  if (!editing) {
    const full = capacity !== null && tasks >= capacity;
    return (
      <button
        ref={button}
        type="button"
        className={full ? "quiet capacity full" : "quiet capacity"}
        aria-label={capacity === null ? "Limit how many tasks fit" : `${tasks} of ${capacity} tasks; change the limit`}
        onClick={() => {
          setValue(capacity === null ? "" : String(capacity));
          setEditing(true);
        }}
      >
        {capacity === null ? "Set a limit" : `${tasks} of ${capacity}`}
      </button>
    );
  }
  return (
    <form
      className="capacity-form"
      onSubmit={submit}
      onKeyDown={(event) => {
        if (event.key === "Escape") end();
      }}
    >
      <label htmlFor="capacity">Room for</label>
      <input
        id="capacity"
        type="number"
        min={1}
        max={9999}
        step={1}
        autoFocus
        value={value}
        placeholder="any"
        onChange={(event) => setValue(event.target.value)}
      />
      <button type="submit" className="quiet">
        Save
      </button>
      {capacity !== null && (
        <button type="button" className="quiet" onClick={() => save(null)}>
          No limit
        </button>
      )}
      <button type="button" className="quiet" onClick={end}>
        Cancel
      </button>
    </form>
  );
}

/** Why the list is not as somebody wanted it. */
export function ListNote(props: { readonly list: string }): ReactNode {
  const note = useNote(`list:${props.list}`);
  return (
    note !== undefined && (
      <p className="note" role="alert">
        {note.tried}: {note.reason}.
      </p>
    )
  );
}
