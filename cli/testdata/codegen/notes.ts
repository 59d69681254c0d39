// Made by `graft codegen ts` from `notes`. Do not edit.

/** The reducers of `notes`, and what they take. */
export interface NotesMutations {
  /** Creates a note. Without an id it gets a random one. */
  create_note: { id?: string | null; body: string };
  /** Replaces a note's text. The last edit to be applied wins. */
  edit_note: { id: string; body: string };
  /** Deletes a note. It is no error if it is gone already. */
  delete_note: { id: string };
}

declare module "graft-client" {
  interface Register {
    mutations: NotesMutations;
  }
}
