/** What this browser's person is called, as kept on this device for everybody who is here to see. */

/** Where presence keeps the person: `{"person": …, "name": …}`. */
const KEY = "graft-todo-person";

/** The name under which this person comments and claims. */
export function myName(): string {
  try {
    const stored: unknown = JSON.parse(localStorage.getItem(KEY) ?? "null");
    if (typeof stored === "object" && stored !== null && "name" in stored) {
      const { name } = stored;
      if (typeof name === "string" && name.trim() !== "") return name.trim();
    }
  } catch {
    // Nothing is kept, or nothing of ours: a person without a name.
  }
  return "Somebody";
}
