/**
 * Dragging rows by their handles, with mouse, pen or finger: pointer events, since HTML's own drag and drop
 * does not work by touch. Nothing moves until the drop; a line shows where the row will go.
 */

import { useCallback, useEffect, useRef, useState, type PointerEvent as ReactPointerEvent, type RefObject } from "react";

/** What a row needs to know. */
export interface Drag {
  /** The row in hand. */
  readonly active: { readonly from: number; readonly gap: number; readonly shift: number } | undefined;
  /** For a handle. */
  readonly start: (event: ReactPointerEvent<HTMLElement>, index: number) => void;
}

/** `move(from, to)` is called at the drop. */
export function useDrag(items: RefObject<HTMLElement | null>, move: (from: number, to: number) => void): Drag {
  const [active, setActive] = useState<Drag["active"]>(undefined);
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
        if (id !== pointerId) return;
        const rows = [...(items.current?.children ?? [])];
        const below = rows.findIndex((row, index) => index !== from && clientY < middle(row));
        gap = below === -1 ? rows.length : below;
        setActive({ from, gap, shift: clientY - startY });
      };
      window.addEventListener("pointermove", follow, { signal });
      window.addEventListener("pointerup", ({ pointerId: id }) => id === pointerId && end(true), { signal });
      window.addEventListener("pointercancel", ({ pointerId: id }) => id === pointerId && end(false), { signal });
      window.addEventListener("keydown", ({ key }) => key === "Escape" && end(false), { signal });
      setActive({ from, gap, shift: 0 });
    },
    [items],
  );
  return { active, start };
}

function middle(row: Element): number {
  const { top, height } = row.getBoundingClientRect();
  return top + height / 2;
}
