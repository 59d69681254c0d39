/** One task: tick, title, handle, delete; whose it is, and what is said about it. */

import { useDb, useMutation } from "graft-client/react";
import { useEffect, useId, useRef, useState, type KeyboardEvent, type ReactNode } from "react";

import { Comments } from "./comments.js";
import { shiftOf, type Drag } from "./drag.js";
import { Mark } from "./mark.js";
import { myName } from "./me.js";
import type { Shown, Task } from "./model.js";
import { clearNote, useNote } from "./notes.js";
import { RefusedTexts } from "./refused.js";

export function TaskRow(props: {
  readonly task: Shown<Task>;
  readonly index: number;
  readonly count: number;
  readonly move: (from: number, to: number) => void;
  readonly drag: Drag;
  readonly list: string;
}): ReactNode {
  const { task, index, count, move, drag, list } = props;
  const [open, setOpen] = useState(false);
  const thread = useId();
  const [editing, setEditing] = useState(false);
  const setDone = useMutation("set_done");
  const deleteTask = useMutation("delete_task");
  const titleButton = useRef<HTMLButtonElement>(null);
  const refocus = useRef(false);
  const place = `task:${task.id}`;
  const note = useNote(place);
  const title = task.title.trim() === "" ? "(no title)" : task.title;
  const { active } = drag;
  const inHand = active?.from === index;

  useEffect(() => {
    if (editing || !refocus.current) return;
    refocus.current = false;
    titleButton.current?.focus();
  }, [editing]);

  const classes = ["item"];
  if (task.done === 1) classes.push("done");
  if (inHand) classes.push("in-hand");
  const shift = shiftOf(active, index);

  const onHandleKey = (event: KeyboardEvent) => {
    const to = { ArrowUp: index - 1, ArrowDown: index + 1, Home: 0, End: count - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(index, to);
  };

  return (
    <li className={classes.join(" ")} data-id={task.id} style={shift === 0 ? undefined : { translate: `0 ${shift}px` }}>
      <div className="row">
        <button
          type="button"
          className="handle"
          aria-label={`Move ${title}`}
          title="Drag, or press the up and down keys"
          onPointerDown={(event) => drag.start(event, index)}
          onKeyDown={onHandleKey}
        >
          <svg viewBox="0 0 12 18" width="12" height="18" aria-hidden="true">
            {[3, 9, 15].flatMap((y) => [3, 9].map((x) => <circle key={`${x} ${y}`} cx={x} cy={y} r="1.5" />))}
          </svg>
        </button>
        <input
          type="checkbox"
          aria-label={title}
          checked={task.done === 1}
          onChange={(event) => {
            clearNote(place);
            setDone({ id: task.id, done: event.target.checked });
          }}
        />
        {editing ? (
          <TitleInput
            task={task}
            end={(byKey) => {
              refocus.current = byKey;
              setEditing(false);
            }}
          />
        ) : (
          <button
            ref={titleButton}
            type="button"
            className="title"
            title="Rename"
            onClick={() => {
              clearNote(place);
              setEditing(true);
            }}
          >
            {title}
          </button>
        )}
        {task.pending && <Mark />}
        <button
          type="button"
          className="delete"
          aria-label={`Delete ${title}`}
          onClick={() => {
            clearNote(place);
            // Refused where somebody has said something about it meanwhile.
            deleteTask({ id: task.id, comments_seen: task.comments });
          }}
        >
          <svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">
            <path d="M2 2l10 10M12 2L2 12" />
          </svg>
        </button>
      </div>
      <div className="about">
        <Claim task={task} title={title} />
        <button type="button" aria-expanded={open} aria-controls={open ? thread : undefined} onClick={() => setOpen(!open)}>
          {task.comments === 0 ? "Comment" : task.comments === 1 ? "1 comment" : `${task.comments} comments`}
        </button>
      </div>
      {open && <Comments task={task} id={thread} />}
      {note !== undefined && (
        <p className="note" role="alert">
          {note.tried}: {note.reason}.
        </p>
      )}
      <RefusedTexts at={(other) => other === place} list={list} />
    </li>
  );
}

/** Claims it, or says whose it is; a claim can be released, also for somebody who is gone. */
function Claim(props: { readonly task: Task; readonly title: string }): ReactNode {
  const { task, title } = props;
  const db = useDb();
  const claimTask = useMutation("claim_task");
  const releaseTask = useMutation("release_task");
  const { claimant, claimer } = task;
  if (claimant === null || claimer === null) {
    const claim = () => {
      clearNote(`task:${task.id}`);
      claimTask({ id: task.id, name: myName() });
    };
    return (
      <button type="button" aria-label={`Claim ${title}`} onClick={claim}>
        Claim
      </button>
    );
  }
  const mine = claimant === db.clientId;
  const release = () => {
    clearNote(`task:${task.id}`);
    releaseTask({ id: task.id, claimant });
  };
  return (
    <span className={mine ? "claim mine" : "claim"}>
      <span className="visually-hidden">Claimed by</span>
      <bdi>{claimer}</bdi>
      {mine && " (you)"}
      <button type="button" aria-label={mine ? `Release ${title}` : `Release ${title} for ${claimer}`} onClick={release}>
        Release
      </button>
    </span>
  );
}

/** Enter and leaving it save, Escape does not. */
function TitleInput(props: { readonly task: Task; readonly end: (byKey: boolean) => void }): ReactNode {
  const { task, end } = props;
  const [title, setTitle] = useState(task.title);
  const renameTask = useMutation("rename_task");
  const ended = useRef(false);
  const finish = (save: boolean, byKey: boolean) => {
    // Removing a focused input blurs it.
    if (ended.current) return;
    ended.current = true;
    if (save && title !== task.title) renameTask({ id: task.id, title });
    end(byKey);
  };
  return (
    <input
      className="title"
      aria-label={`New title of ${task.title}`}
      value={title}
      autoFocus
      autoComplete="off"
      onChange={(event) => setTitle(event.target.value)}
      onBlur={() => finish(true, false)}
      onKeyDown={(event) => {
        if (event.nativeEvent.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
        // The focus goes to the title's button, which the same key would press.
        event.preventDefault();
        finish(event.key === "Enter", true);
      }}
    />
  );
}
