import type { ReactNode } from "react";

/** Beside what is not durable yet. */
export function Mark(): ReactNode {
  return (
    <span className="mark" role="img" aria-label="not saved yet" title="Not saved yet">
      <span aria-hidden="true" />
    </span>
  );
}
