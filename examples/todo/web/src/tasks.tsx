/** One list: its tasks in order, and the form for a new one. */

import { useDb, useMutation, usePending, useQuery, useStatus } from "graft-client/react";
import { useCallback, useEffect, useMemo, useRef, useState, type FormEvent, type ReactNode } from "react";

import { Capacity, ListNote } from "./capacity.js";
import { useDrag } from "./drag.js";
import { moves, shownTasks, type Task } from "./model.js";
import { clearNote, useNote, useNotes } from "./notes.js";
import { RefusedTexts } from "./refused.js";
import { TaskRow } from "./task.js";

const QUERY = `
  SELECT id, title, done, position, claimant, name AS claimer,
    (SELECT count(*) FROM comments WHERE task = tasks.id) AS comments
  FROM tasks LEFT JOIN claims ON task = tasks.id
  WHERE list = ?1
  ORDER BY position, id`;

export function Tasks(props: {
  readonly list: string;
  readonly name: string | undefined;
  readonly capacity: number | null;
}): ReactNode {
  const { list, name, capacity } = props;
  const me = useDb().clientId;
  const { rows, at, loading, error } = useQuery<Task>(QUERY, [list]);
  const { state } = useStatus();
  const pending = usePending();
  const tasks = useMemo(() => shownTasks(list, rows, at?.seq, pending, me), [list, rows, at, pending, me]);
  const moveTask = useMutation("move_task");
  const [said, say] = useState("");
  const items = useRef<HTMLUListElement>(null);
  const refocus = useRef<string>(undefined);

  const move = useCallback(
    (from: number, to: number) => {
      const task = tasks[from];
      const changes = moves(tasks, from, to);
      if (task === undefined || changes.length === 0) return;
      clearNote(`task:${task.id}`);
      for (const change of changes) moveTask(change);
      refocus.current = task.id;
      say(`${task.title}: now ${to + 1} of ${tasks.length}`);
    },
    [tasks, moveTask],
  );
  // A row that changed places in the document has lost the focus.
  useEffect(() => {
    if (refocus.current === undefined) return;
    items.current?.querySelector<HTMLElement>(`[data-id="${CSS.escape(refocus.current)}"] .handle`)?.focus();
    refocus.current = undefined;
  }, [tasks]);
  const drag = useDrag(items, move);
  const done = tasks.filter((task) => task.done === 1).length;

  return (
    <section className="tasks" aria-labelledby="list-name">
      <a className="back" href="#/">
        ‹ All lists
      </a>
      <div className="title-line">
        <h1 id="list-name">{name ?? "List"}</h1>
        <div className="tools">
          <Capacity list={list} capacity={capacity} tasks={tasks.length} />
          <CopyLink />
        </div>
      </div>
      <ListNote list={list} />
      <NewTask list={list} />
      <RefusedTexts at={(place) => !tasks.some(({ id }) => place === `task:${id}`)} list={list} />
      <LooseNotes tasks={tasks} />
      {error !== undefined && state !== "ended" && (
        <p className="note" role="alert">
          {error.message}
        </p>
      )}
      {loading && (
        <p className="hint">
          {state === "offline" || state === "ended"
            ? "The tasks of this list show when the server is back. What you add now is kept."
            : "Loading…"}
        </p>
      )}
      {!loading && tasks.length === 0 && (
        <p className="hint">
          Nothing to do. Add the first task above. <DeleteList list={list} />
        </p>
      )}
      <ul ref={items} className={drag.active ? "items dragging" : "items"} aria-busy={loading}>
        {tasks.map((task, index) => (
          <TaskRow key={task.id} task={task} index={index} count={tasks.length} move={move} drag={drag} list={list} />
        ))}
      </ul>
      {tasks.length > 0 && (
        <p className="summary">
          {done} of {tasks.length} done
        </p>
      )}
      <p className="visually-hidden" aria-live="polite">
        {said}
      </p>
    </section>
  );
}

function NewTask(props: { readonly list: string }): ReactNode {
  const { list } = props;
  const [title, setTitle] = useState("");
  const input = useRef<HTMLInputElement>(null);
  const addTask = useMutation("add_task");
  const place = `new-task:${list}`;
  const note = useNote(place);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    clearNote(place);
    addTask({ id: crypto.randomUUID(), list, title });
    setTitle("");
    input.current?.focus();
  };
  return (
    <form className="add" onSubmit={submit}>
      <label className="visually-hidden" htmlFor="new-task">
        Title of a new task
      </label>
      <input
        id="new-task"
        ref={input}
        value={title}
        placeholder="What is to be done?"
        autoComplete="off"
        enterKeyHint="done"
        aria-invalid={note !== undefined}
        aria-describedby={note === undefined ? undefined : "new-task-note"}
        onChange={(event) => {
          setTitle(event.target.value);
          clearNote(place);
        }}
      />
      <button type="submit">Add</button>
      {note !== undefined && (
        <p className="note" id="new-task-note" role="alert">
          {note.tried}: {note.reason}.
        </p>
      )}
    </form>
  );
}

/** Refusals of changes to tasks that are gone: there is no row to show them in. */
function LooseNotes(props: { readonly tasks: readonly Task[] }): ReactNode {
  const loose = useNotes().filter(
    ({ place, text }) => text === undefined && place.startsWith("task:") && !props.tasks.some(({ id }) => place === `task:${id}`),
  );
  return loose.map((note) => (
    <p key={note.key} className="note loose" role="alert">
      <span>
        {note.tried}: {note.reason}.
      </span>
      <button type="button" onClick={() => clearNote(note.place)}>
        Put away
      </button>
    </p>
  ));
}

function DeleteList(props: { readonly list: string }): ReactNode {
  const deleteList = useMutation("delete_list");
  const { list } = props;
  return (
    <button
      type="button"
      className="link"
      onClick={() => {
        clearNote(`list:${list}`);
        const { accepted } = deleteList({ id: list });
        // A refusal is shown here.
        void accepted.then(
          () => (location.hash = "#/"),
          () => undefined,
        );
      }}
    >
      Delete this list
    </button>
  );
}

function CopyLink(): ReactNode {
  const [copied, setCopied] = useState<boolean>();
  useEffect(() => {
    if (copied === undefined) return undefined;
    const timer = setTimeout(() => setCopied(undefined), 3000);
    return () => clearTimeout(timer);
  }, [copied]);
  const copy = () => {
    // Absent without HTTPS; refused without permission.
    const written = navigator.clipboard?.writeText(location.href) ?? Promise.reject(new Error("no clipboard"));
    written.then(
      () => setCopied(true),
      () => setCopied(false),
    );
  };
  return (
    <button type="button" className="quiet" onClick={copy} aria-live="polite">
      {copied === undefined ? "Copy link" : copied ? "Link copied" : "Copy it from the address bar"}
    </button>
  );
}
