// Made by `graft codegen ts` from `todo`. Do not edit.

/** The reducers of `todo`, and what they take. */
export interface TodoMutations {
  /** Creates an empty list. Its name must not be blank; its id must be new. */
  create_list: { id: string; name: string };
  /**
   * Adds a task below the last one of its list.
   * Its title must not be blank, its id must be new, and the list must exist and have room.
   */
  add_task: { id: string; list: string; title: string };
  /** Ticks a task off, or makes it open again. */
  set_done: { id: string; done: boolean };
  /** Gives a task another title, which must not be blank. */
  rename_task: { id: string; title: string };
  /** Moves a task within its list, to a position between those of its new neighbours. */
  move_task: { id: string; position: number };
  /**
   * Deletes a task with its comments and its claim. It is no error if it is gone already.
   * With `comments_seen`, how many comments the caller knows of, it is refused where there are more.
   */
  delete_task: { id: string; comments_seen?: number | bigint | null };
  /** Deletes a list, which must be empty. It is no error if it is gone already. */
  delete_list: { id: string };
  /**
   * Says how many tasks a list has room for, ticked ones included: at least 1, and at least as many as it
   * has. Null, or none given: without end.
   */
  set_capacity: { list: string; capacity?: number | bigint | null };
  /** Adds a comment below the others of its task. `author` is what the caller wants to be called. */
  add_comment: { id: string; task: string; author: string; text: string };
  /** Deletes a comment. It is no error if it is gone already. */
  delete_comment: { id: string };
  /** Claims a task for the caller, who wants to be called `name`. It is refused while somebody else has it. */
  claim_task: { id: string; name: string };
  /**
   * Releases a task that the caller has claimed, or `claimant` where given, who may be gone for good. It is
   * no error if it is free already, and refused if by now somebody else has it.
   */
  release_task: { id: string; claimant?: string | null };
}

declare module "graft-client" {
  interface Register {
    mutations: TodoMutations;
  }
}
