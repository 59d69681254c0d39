/**
 * Dragging rows by their handles, with mouse, pen or finger: pointer events, since HTML's own drag and drop
 * does not work by touch. The other rows make room on the screen; nothing is written until the drop.
 */

import { useCallback, useEffect, useRef, useState, type PointerEvent as ReactPointerEvent, type RefObject } from "react";

/** The row in hand. */
interface InHand {
  readonly from: number;
  /** It goes above the row that has this index now; the number of rows for the end. */
  readonly gap: number;
  /** How far it is from its place, px. */
  readonly shift: number;
  /** How much room it takes, px. */
  readonly room: number;
}

/** What a row needs to know. */
export interface Drag {
  readonly active: InHand | undefined;
  /** For a handle. */
  readonly start: (event: ReactPointerEvent<HTMLElement>, index: number) => void;
}

/** How far a row stands from its place while one is in hand, px. */
export function shiftOf(active: InHand | undefined, index: number): number {
  if (active === undefined) return 0;
  const { from, gap, shift, room } = active;
  if (index === from) return shift;
  if (from < index && index < gap) return -room;
  return gap <= index && index < from ? room : 0;
}

/** `move(from, to)` is called at the drop. */
export function useDrag(items: RefObject<HTMLElement | null>, move: (from: number, to: number) => void): Drag {
  const [active, setActive] = useState<InHand>();
  const stop = useRef<() => void>(undefined);
  // The rows may change while one is in hand.
  const latest = useRef(move);
  useEffect(() => {
    latest.current = move;
  });
  useEffect(() => () => stop.current?.(), []);

  const start = useCallback(
    (event: ReactPointerEvent<HTMLElement>, from: number) => {
      if (event.button !== 0 || !event.isPrimary) return;
      event.preventDefault();
      event.currentTarget.focus();
      stop.current?.();
      const { pointerId, clientY: startY } = event;
      let gap = from;
      const controller = new AbortController();
      const { signal } = controller;
      const end = (drop: boolean) => {
        controller.abort();
        stop.current = undefined;
        setActive(undefined);
        // The row itself stood before the gaps below it.
        const to = gap > from ? gap - 1 : gap;
        if (drop && to !== from) latest.current(from, to);
      };
      stop.current = () => end(false);
      const follow = ({ pointerId: id, clientY }: PointerEvent) => {
        const list = items.current;
        if (id !== pointerId || list === null) return;
        // By the places in the list, not by where rows stand that are making room.
        const rows = [...list.children].filter((row) => row instanceof HTMLElement);
        const y = clientY - list.getBoundingClientRect().top;
        const below = rows.findIndex((row, index) => index !== from && y < row.offsetTop + row.offsetHeight / 2);
        gap = below === -1 ? rows.length : below;
        const row = rows[from];
        const room = row === undefined ? 0 : row.offsetHeight + parseFloat(getComputedStyle(row).marginBottom);
        setActive({ from, gap, shift: clientY - startY, room });
      };
      window.addEventListener("pointermove", follow, { signal });
      window.addEventListener("pointerup", ({ pointerId: id }) => id === pointerId && end(true), { signal });
      window.addEventListener("pointercancel", ({ pointerId: id }) => id === pointerId && end(false), { signal });
      window.addEventListener("keydown", ({ key }) => key === "Escape" && end(false), { signal });
      setActive({ from, gap, shift: 0, room: 0 });
    },
    [items],
  );
  return { active, start };
}
