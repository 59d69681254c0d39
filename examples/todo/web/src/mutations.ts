/** The reducers of `examples/todo/reducer`, by hand in the shape that `graft codegen ts` will write. */

import type {} from "graft-client";

export interface TodoMutations {
  create_list: { id: string; name: string };
  add_task: { id: string; list: string; title: string };
  set_done: { id: string; done: boolean };
  rename_task: { id: string; title: string };
  move_task: { id: string; position: number };
  delete_task: { id: string };
}

declare module "graft-client" {
  interface Register {
    mutations: TodoMutations;
  }
}
