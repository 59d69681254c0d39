// Our own TypeScript client. GRAFT_CLIENT names its built `index.js`.

import { pathToFileURL } from "node:url";
import { WebSocket } from "ws";

const { connect: open } = await import(pathToFileURL(process.env.GRAFT_CLIENT).href);

/** One client of the volume `bench`. */
export async function connect(url) {
  const db = open({ url, volume: "bench", webSocket: WebSocket });
  return {
    // Durable: the commit is in the store. `accepted` is what subscribers are shown.
    write: (id, text) => db.mutate("write_note", { id, text }).durable,
    transfer: (from, to, amount) => db.mutate("transfer", { from, to, amount }).durable,
    subscribe: (id, onText) =>
      new Promise((resolve, reject) => {
        db.subscribe(
          "SELECT id, text FROM notes WHERE id = ?1",
          [id],
          (rows) => {
            onText(rows[0]?.text);
            resolve();
          },
          { onError: reject },
        );
      }),
    close: () => db.close(),
  };
}
