// Made by `graft codegen ts` from `todo`. Do not edit.

/** The reducers of `todo`, and what they take. */
export interface TodoMutations {
  /** Creates an empty list. Its name must not be blank; its id must be new. */
  create_list: { id: string; name: string };
  /**
   * Adds a task below the last one of its list.
   * Its title must not be blank, its id must be new, and the list must exist.
   */
  add_task: { id: string; list: string; title: string };
  /** Ticks a task off, or makes it open again. */
  set_done: { id: string; done: boolean };
  /** Gives a task another title, which must not be blank. */
  rename_task: { id: string; title: string };
  /** Moves a task within its list, to a position between those of its new neighbours. */
  move_task: { id: string; position: number };
  /** Deletes a task. It is no error if it is gone already. */
  delete_task: { id: string };
}

declare module "graft-client" {
  interface Register {
    mutations: TodoMutations;
  }
}
