/** What this browser's person is called, as `presence.tsx` keeps it on this device. */

import { personOf } from "./presence.js";

/** Where presence keeps the person. */
const KEY = "graft-todo-person";

/** The name under which this person comments and claims. */
export function myName(): string {
  try {
    return personOf(JSON.parse(localStorage.getItem(KEY) ?? "null"))?.name ?? "Somebody";
  } catch {
    return "Somebody"; // Nothing is kept, or nothing of ours.
  }
}
