/**
 * Who is on this page now: a face for each person in the header, and behind them a list with one's own name to
 * change. Names are kept on this device; the rest is `db.presence`, which is stored nowhere.
 *
 * A person is this browser's: two tabs are one person. What others say of themselves is checked before it is
 * shown; React draws it as text.
 */

import type { Peer, Present } from "graft-client";
import { usePresence } from "graft-client/react";
import { useEffect, useId, useRef, useState, type CSSProperties, type FormEvent, type KeyboardEvent, type ReactNode } from "react";

import "./presence.css";

/** What a page says of its person. */
export interface Person {
  readonly person: string;
  readonly name: string;
}

const KEY = "graft-todo-person";
const NAME_MAX = 40;
const FACES_MAX = 4;

const MANNERS = ["Calm", "Bright", "Quick", "Gentle", "Merry", "Quiet", "Brave", "Sunny", "Swift", "Kind"];
const ANIMALS = ["Otter", "Heron", "Fox", "Badger", "Wren", "Hare", "Seal", "Lynx", "Finch", "Mole"];

export function Presence(): ReactNode {
  const [me, rename] = useMe();
  const { peers, more, known } = usePresence({ ...me });
  const others = people(peers, me.person);
  const [open, setOpen] = useState(false);
  const area = useRef<HTMLDivElement>(null);
  const button = useRef<HTMLButtonElement>(null);
  const panel = useId();

  useEffect(() => {
    if (!open) return undefined;
    const elsewhere = (event: Event) => {
      if (event.target instanceof Node && area.current?.contains(event.target) === false) setOpen(false);
    };
    // Also when the focus goes on by keyboard.
    for (const kind of ["pointerdown", "focusin"]) document.addEventListener(kind, elsewhere);
    return () => {
      for (const kind of ["pointerdown", "focusin"]) document.removeEventListener(kind, elsewhere);
    };
  }, [open]);

  const escape = (event: KeyboardEvent) => {
    if (event.key !== "Escape" || !open) return;
    setOpen(false);
    button.current?.focus();
  };
  const count = 1 + others.length + more;
  const label = !known ? "Who else is here is not known now" : count === 1 ? "Only you are here" : `${count} people are here`;
  return (
    <div className="present" ref={area} onKeyDown={escape} data-known={known} data-count={count}>
      <button
        type="button"
        ref={button}
        className="faces"
        aria-label={label}
        title={label}
        aria-expanded={open}
        aria-controls={panel}
        onClick={() => setOpen(!open)}
      >
        <span className="row-of-faces" aria-hidden="true">
          <Face {...me} />
          {others.slice(0, FACES_MAX - 1).map((other) => (
            <Face key={other.person} {...other} />
          ))}
          {count > FACES_MAX && <span className="face rest">+{count - FACES_MAX}</span>}
        </span>
        <span className="number" aria-hidden="true">
          <svg viewBox="0 0 16 16" width="14" height="14">
            <circle cx="8" cy="5" r="3" />
            <path d="M2.5 14a5.5 5.5 0 0 1 11 0z" />
          </svg>
          {count}
        </span>
      </button>
      <div className="panel" id={panel} hidden={!open} role="group" aria-label="Who is here">
        <ul>
          <li>
            <Face {...me} />
            <bdi className="name">{me.name}</bdi> <span className="you">you</span>
          </li>
          {others.map((other) => (
            <li key={other.person}>
              <Face {...other} />
              <bdi className="name">{other.name}</bdi>
            </li>
          ))}
        </ul>
        {more > 0 && <p className="hint">and {more} more</p>}
        {!known && <p className="hint">Who else is here shows when the server is back.</p>}
        <Rename name={me.name} rename={rename} />
      </div>
    </div>
  );
}

/** Nobody reads it by its letters: the name stands beside it, or in the label around it. */
function Face({ person, name }: Person): ReactNode {
  const hue = { "--hue": hueOf(person) } as CSSProperties;
  return (
    <span className="face" style={hue} aria-hidden="true">
      {initials(name)}
    </span>
  );
}

function Rename(props: { readonly name: string; readonly rename: (name: string) => void }): ReactNode {
  const [name, setName] = useState(props.name);
  const input = useId();
  // Renamed here or in another tab; the field keeps the focus.
  useEffect(() => setName(props.name), [props.name]);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    const next = tidy(name);
    setName(next ?? props.name);
    if (next !== undefined) props.rename(next);
  };
  return (
    <form className="rename" onSubmit={submit}>
      <label htmlFor={input}>Your name</label>
      <div>
        <input id={input} value={name} maxLength={NAME_MAX} autoComplete="nickname" onChange={(event) => setName(event.target.value)} />
        <button type="submit" className="quiet">
          Save
        </button>
      </div>
    </form>
  );
}

/** This browser's person, and how to rename them; the same in all tabs. */
function useMe(): [Person, (name: string) => void] {
  const [me, setMe] = useState(load);
  useEffect(() => {
    const changed = (event: StorageEvent) => {
      if (event.key === KEY) setMe((now) => read(event.newValue) ?? now);
    };
    window.addEventListener("storage", changed);
    return () => window.removeEventListener("storage", changed);
  }, []);
  const rename = (name: string) => {
    const next = { ...me, name };
    keep(next);
    setMe(next);
  };
  return [me, rename];
}

function load(): Person {
  let stored: string | null = null;
  try {
    stored = localStorage.getItem(KEY);
  } catch (error) {
    console.warn("this browser keeps nothing for this page; your name lasts until it is closed:", error);
  }
  const known = read(stored);
  if (known !== undefined) return known;
  const [manner = 0, animal = 0] = crypto.getRandomValues(new Uint8Array(2));
  const name = `${MANNERS[manner % MANNERS.length]} ${ANIMALS[animal % ANIMALS.length]}`;
  const fresh = { person: crypto.randomUUID(), name };
  keep(fresh);
  return fresh;
}

function keep(me: Person): void {
  try {
    localStorage.setItem(KEY, JSON.stringify(me));
  } catch (error) {
    console.warn("your name lasts until this page is closed:", error);
  }
}

function read(text: string | null): Person | undefined {
  if (text === null) return undefined;
  try {
    return personOf(JSON.parse(text));
  } catch {
    return undefined; // Not ours, or damaged: as if there were none.
  }
}

/** What somebody says of themselves, if it is a person. */
export function personOf(state: unknown): Person | undefined {
  if (typeof state !== "object" || state === null || !("person" in state) || !("name" in state)) return undefined;
  const { person, name } = state;
  if (typeof person !== "string" || person === "" || typeof name !== "string") return undefined;
  const tidied = tidy(name);
  return tidied === undefined ? undefined : { person, name: tidied };
}

/** The others, each once, in the order in which they came. */
export function people(peers: Present["peers"], me: string): readonly Person[] {
  const found = new Map<string, Person>();
  for (const { id, state, self } of peers as readonly Peer[]) {
    const person = personOf(state) ?? { person: `peer ${id}`, name: "Somebody" };
    // Of two tabs the later one has the newer name, or will have it in a moment.
    if (!self && person.person !== me) found.set(person.person, person);
  }
  return [...found.values()];
}

/** On one line, not too long, without turning the text around it; `undefined` where nothing is left. */
function tidy(name: string): string | undefined {
  const line = name.replace(/[\p{Cc}\p{Cs}\u200e\u200f\u202a-\u202e\u2066-\u2069\s]+/gu, " ").trim();
  return line === "" ? undefined : [...line].slice(0, NAME_MAX).join("");
}

function initials(name: string): string {
  const words = name.split(" ");
  const first = [words[0] ?? "", words.length > 1 ? (words.at(-1) ?? "") : ""];
  return first.map((word) => [...word][0] ?? "").join("").toUpperCase();
}

/** The same colour for a person in every window. */
function hueOf(person: string): number {
  let hash = 0;
  for (const char of person) hash = (hash * 31 + (char.codePointAt(0) ?? 0)) % 65_521;
  return hash % 360;
}
