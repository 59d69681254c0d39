/**
 * A browser does not say why a WebSocket was declined; the page says it all the same, in the server's words.
 */

import { join } from "node:path";

import { expect, test } from "vitest";

import { Server } from "../../client/test/support/server.js";
import { PATIENCE, ROOT, launch } from "./person.js";

test("a page for a volume that does not exist says so", async () => {
  process.env["GRAFT_WEB"] = join(ROOT, "examples/todo/web/dist");
  const server = await Server.start();
  const browser = await launch();
  try {
    const page = await browser.newPage();
    page.setDefaultTimeout(PATIENCE);
    await page.goto(`${server.url}/?volume=nowhere`);
    const banner = page.getByRole("alert");
    await banner.getByText("there is no volume `nowhere`").waitFor();
    expect(await page.locator(".status").getAttribute("data-state")).toBe("ended");
  } finally {
    await browser.close();
    await server.kill();
  }
});
