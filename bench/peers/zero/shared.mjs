// What Zero's clients and its API server share: tables, queries, mutators.

import {
  createBuilder,
  createSchema,
  defineMutator,
  defineMutators,
  defineQueries,
  defineQuery,
  number,
  string,
  table,
} from "@rocicorp/zero";

const note = table("note").columns({ id: number(), text: string() }).primaryKey("id");
const account = table("account").columns({ id: number(), balance: number() }).primaryKey("id");

export const schema = createSchema({ tables: [note, account] });

const rows = createBuilder(schema);

export const queries = defineQueries({
  note: defineQuery(({ args }) => rows.note.where("id", args.id)),
});

export const mutators = defineMutators({
  writeNote: defineMutator(async ({ tx, args }) => {
    await tx.mutate.note.upsert({ id: args.id, text: args.text });
  }),
  // Checked and done in Postgres, in one round trip. Clients do not hold the accounts, so there is no
  // optimistic effect.
  transfer: defineMutator(async ({ tx, args }) => {
    if (tx.location === "server") {
      await tx.dbTransaction.query("SELECT transfer($1, $2, $3)", [args.from, args.to, args.amount]);
    }
  }),
});
