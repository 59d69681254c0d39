// Yjs over y-websocket: one shared document, one map of notes.

import { WebSocket } from "ws";
import { WebsocketProvider } from "y-websocket";
import * as Y from "yjs";

/** One client with a replica of the document `bench`. */
export async function connect(url) {
  const doc = new Y.Doc();
  // Without `disableBc`, clients of one process would talk past the server.
  const provider = new WebsocketProvider(url, "bench", doc, { WebSocketPolyfill: WebSocket, disableBc: true });
  await new Promise((resolve, reject) => {
    provider.once("sync", resolve);
    provider.once("connection-error", () => reject(new Error(`no connection to ${url}`)));
  });
  const notes = doc.getMap("notes");
  return {
    // The protocol has no acknowledgement.
    write: (id, text) => void notes.set(String(id), text),
    subscribe: async (id, onText) => {
      notes.observe(() => onText(notes.get(String(id))));
      onText(notes.get(String(id)));
    },
    close: () => {
      provider.destroy();
      doc.destroy();
    },
  };
}
