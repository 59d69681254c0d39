/** Ids of what the panel that tries conflicts makes, so that the rest of the page can tell. */

const PREFIX = "conflict-demo-";

/** A fresh one. */
export function demoId(): string {
  return PREFIX + crypto.randomUUID();
}

/** Whether a mutation is one of the panel's. */
export function isDemo(args: Readonly<Record<string, unknown>>): boolean {
  return ["id", "task", "list"].some((name) => {
    const id = args[name];
    return typeof id === "string" && id.startsWith(PREFIX);
  });
}
