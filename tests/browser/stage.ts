/** What the page's tests stand on: a store, a server that serves the page from it, and a browser. */

import { access } from "node:fs/promises";
import { join } from "node:path";

import type { Browser } from "playwright-core";
import { afterAll, beforeAll } from "vitest";

import { Server, temporaryStore } from "../../client/test/support/server.js";
import { ROOT, launch } from "./person.js";

const WEB = join(ROOT, "examples/todo/web/dist");

export let browser: Browser;
export let server: Server;
let place: Awaited<ReturnType<typeof temporaryStore>>;

/** Sets the stage before a file's tests, and clears it after them. */
export function stage(): void {
  beforeAll(async () => {
    await access(join(WEB, "index.html")).catch(() => {
      throw new Error(`${WEB} holds no page; \`npm run build -w client -w examples/todo/web\` makes it`);
    });
    process.env["GRAFT_WEB"] = WEB;
    place = await temporaryStore();
    server = await Server.start(place.store);
    browser = await launch();
  });

  afterAll(async () => {
    await browser?.close();
    await server?.kill();
    await place?.remove();
  });
}

/** Starts a server where the last one, which was killed, listened. */
export async function restart(): Promise<void> {
  server = await Server.start(place.store, server.listen);
}
