/** The comments on one task, and the form for another. */

import { useMutation, usePending, useQuery, useStatus } from "graft-client/react";
import { useState, type FormEvent, type ReactNode } from "react";

import { Mark } from "./mark.js";
import { myName } from "./me.js";
import { shownComments, type Comment, type Task } from "./model.js";
import { clearNote } from "./notes.js";

const QUERY = "SELECT id, author, text FROM comments WHERE task = ?1 ORDER BY number";

export function Comments(props: { readonly task: Task; readonly id: string }): ReactNode {
  const { task, id } = props;
  const { rows, at, loading, error } = useQuery<Comment>(QUERY, [task.id]);
  const { state } = useStatus();
  const comments = shownComments(task.id, rows, at?.seq, usePending());
  const addComment = useMutation("add_comment");
  const deleteComment = useMutation("delete_comment");
  const [text, setText] = useState("");
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (text.trim() === "") return;
    clearNote(`task:${task.id}`);
    addComment({ id: crypto.randomUUID(), task: task.id, author: myName(), text });
    setText("");
  };
  return (
    <section className="thread" id={id} aria-label={`Comments on ${task.title}`}>
      {error !== undefined && state !== "ended" && (
        <p className="note" role="alert">
          {error.message}
        </p>
      )}
      {loading && error === undefined && <p className="hint">{state === "live" ? "Loading…" : "They show when the server is back."}</p>}
      <ul aria-live="polite">
        {comments.map((comment) => (
          <li key={comment.id}>
            <p>
              <bdi className="author">{comment.author}</bdi> {comment.text}
            </p>
            {comment.pending && <Mark />}
            <button
              type="button"
              className="delete"
              aria-label={`Delete the comment “${comment.text}”`}
              onClick={() => deleteComment({ id: comment.id })}
            >
              <svg viewBox="0 0 14 14" width="11" height="11" aria-hidden="true">
                <path d="M2 2l10 10M12 2L2 12" />
              </svg>
            </button>
          </li>
        ))}
      </ul>
      <form onSubmit={submit}>
        <input
          aria-label={`Comment on ${task.title}`}
          value={text}
          placeholder="Say something about it"
          autoComplete="off"
          enterKeyHint="send"
          onChange={(event) => setText(event.target.value)}
        />
        <button type="submit" className="quiet">
          Comment
        </button>
      </form>
    </section>
  );
}
