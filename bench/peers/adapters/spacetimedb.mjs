// SpacetimeDB by its `v1.json` WebSocket protocol, which needs no generated code.

import { WebSocket } from "ws";

/** One connection to the database `bench`, in the lightest form that the server offers. */
export async function connect(url) {
  const address = `${url.replace("http", "ws")}/v1/database/bench/subscribe?compression=None&light=true`;
  const socket = new WebSocket(address, "v1.json.spacetimedb");
  const calls = new Map();
  let next = 1;
  let onNote = () => {};
  let failed;
  const gone = (error) => {
    failed = error;
    for (const { reject } of calls.values()) reject(error);
    calls.clear();
  };
  await new Promise((resolve, reject) => {
    socket.once("open", resolve);
    socket.once("error", reject);
  });
  socket.on("error", gone);
  socket.on("close", () => gone(new Error("the connection to SpacetimeDB is closed")));
  socket.on("message", (data) => {
    const message = JSON.parse(data);
    if (message.TransactionUpdate) {
      const { status, reducer_call } = message.TransactionUpdate;
      const call = calls.get(reducer_call.request_id);
      calls.delete(reducer_call.request_id);
      if (status.Committed) call?.resolve();
      else call?.reject(new Error(JSON.stringify(status)));
    } else if (message.TransactionUpdateLight) {
      for (const table of message.TransactionUpdateLight.update.tables) shown(table);
    } else if (message.SubscribeApplied) {
      shown(message.SubscribeApplied.rows.table_rows);
      onNote(undefined, true);
    } else if (message.SubscriptionError) {
      gone(new Error(message.SubscriptionError.error));
    }
  });
  const shown = (table) => {
    for (const update of table.updates) {
      // A row is JSON inside of JSON; its columns are in the order of the table.
      for (const row of update.inserts) onNote(JSON.parse(row)[1], false);
    }
  };
  const call = (reducer, args) => {
    if (failed) return Promise.reject(failed);
    const request_id = next++;
    const answer = new Promise((resolve, reject) => calls.set(request_id, { resolve, reject }));
    socket.send(JSON.stringify({ CallReducer: { reducer, args: JSON.stringify(args), request_id, flags: 0 } }));
    return answer;
  };
  return {
    write: (id, text) => call("write_note", [id, text]),
    transfer: (from, to, amount) => call("transfer", [from, to, amount]),
    subscribe: (id, onText) =>
      new Promise((resolve, reject) => {
        calls.set(0, { resolve, reject });
        onNote = (text, applied) => (applied ? resolve() : onText(text));
        const query = `SELECT * FROM note WHERE id = ${id}`;
        const request_id = next++;
        socket.send(JSON.stringify({ SubscribeSingle: { query, request_id, query_id: { id: request_id } } }));
      }),
    close: () => socket.close(),
  };
}
