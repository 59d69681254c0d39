// Zero: clients of zero-cache, each with a replica in memory.

import { WebSocket } from "ws";

globalThis.WebSocket = WebSocket;
const { Zero } = await import("@rocicorp/zero");
const { mutators, queries, schema } = await import("../zero/shared.mjs");

let clients = 0;

/** One client, in a client group of its own. */
export async function connect(url) {
  clients += 1;
  const zero = new Zero({
    cacheURL: url,
    storageKey: `client-${clients}`,
    schema,
    mutators,
    kvStore: "mem",
    logLevel: "error",
  });
  // The API server has committed in Postgres, and zero-cache has said so.
  const server = async (request) => {
    const result = await zero.mutate(request).server;
    if (result.type === "error") throw new Error(JSON.stringify(result.error));
  };
  return {
    write: (id, text) => server(mutators.writeNote({ id, text })),
    transfer: (from, to, amount) => server(mutators.transfer({ from, to, amount })),
    subscribe: (id, onText) =>
      new Promise((resolve, reject) => {
        const view = zero.materialize(queries.note({ id }));
        view.addListener((rows, state, error) => {
          onText(rows[0]?.text);
          if (state === "complete") resolve();
          if (state === "error") reject(new Error(JSON.stringify(error)));
        });
      }),
    close: () => zero.close(),
  };
}
