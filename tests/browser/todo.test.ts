/**
 * The main job in a real browser: people in windows of their own, the built page of examples/todo/web, the
 * real coordinator on a directory. Wants `npm run build` in client/ and examples/todo/web/ first;
 * `cargo xtask test` does it all.
 */


import { expect, test } from "vitest";

import { Server, Wire, temporaryStore } from "../../client/test/support/server.js";
import { Person } from "./person.js";
import { browser, restart, server, stage } from "./stage.js";

stage();

/** A volume of its own for each test, with one list; and the URL of that list. */
async function alice(volume: string, list: string): Promise<{ alice: Person; shared: URL }> {
  await server.deploy(volume);
  const person = await Person.at(browser, `${server.url}/?volume=${volume}`);
  await person.createList(list);
  await person.settled();
  return { alice: person, shared: new URL(person.page.url()) };
}

/** The same address through another server or wire. */
function by(url: string, shared: URL): string {
  const { search, hash } = shared;
  return new URL(search + hash, url).href;
}

test("two windows on one list see each other's changes", async () => {
  const { alice: a, shared } = await alice("live", "Groceries");
  const b = await Person.at(browser, shared.href);
  await b.page.getByRole("heading", { level: 1, name: "Groceries" }).waitFor();

  await a.add("Milk", "Bread", "Cheese");
  await b.sees("Milk", "Bread", "Cheese");
  await b.add("Dates");
  await a.sees("Milk", "Bread", "Cheese", "Dates");

  await b.rename("Bread", "Brown bread");
  await a.sees("Milk", "Brown bread", "Cheese", "Dates");
  await a.page.getByRole("checkbox", { name: "Milk" }).check();
  await b.sees("x Milk", "Brown bread", "Cheese", "Dates");

  // By keyboard: the handle keeps the focus, so it can be pressed again.
  const handle = a.page.getByRole("button", { name: "Move Cheese" });
  await handle.focus();
  await a.page.keyboard.press("ArrowUp");
  await b.sees("x Milk", "Cheese", "Brown bread", "Dates");
  await expect.poll(() => handle.evaluate((button) => document.activeElement === button)).toBe(true);
  await a.page.keyboard.press("ArrowUp");
  await b.sees("Cheese", "x Milk", "Brown bread", "Dates");
  await a.page.getByText("Cheese: now 1 of 4").waitFor({ state: "attached" });

  // By drag: below the last, then above the first.
  for (const [title, target, edge, order] of [
    ["Cheese", "Dates", 0.9, ["x Milk", "Brown bread", "Dates", "Cheese"]],
    ["Dates", "Milk", 0.1, ["Dates", "x Milk", "Brown bread", "Cheese"]],
  ] as const) {
    const from = await b.page.getByRole("button", { name: `Move ${title}` }).boundingBox();
    const to = await b.task(target).boundingBox();
    if (from === null || to === null) throw new Error("not on the page");
    await b.page.mouse.move(from.x + from.width / 2, from.y + from.height / 2);
    await b.page.mouse.down();
    await b.page.mouse.move(from.x + from.width / 2, to.y + to.height * edge, { steps: 8 });
    if (title === "Dates") await b.picture("dragging");
    await b.page.mouse.up();
    await a.sees(...order);
    await b.settled();
    await b.sees(...order);
  }

  await a.delete("Brown bread");
  await b.sees("Dates", "x Milk", "Cheese");
  // Another list appears in both windows; its tasks are its own.
  await b.createList("Weekend");
  await b.sees();
  await b.add("Repot the fern");
  await b.settled();
  await a.page.getByRole("navigation").getByRole("link", { name: "Weekend" }).waitFor();
  await a.settled();
  await a.sees("Dates", "x Milk", "Cheese");
  await a.picture("desktop");
  await a.leave();
  await b.leave();
});

test("a refusal is shown where it happened, and goes when one tries again", async () => {
  const { alice: a } = await alice("refusal", "Groceries");
  await a.add("Milk", "  ");
  const note = a.page.locator("form.add").getByRole("alert");
  await expect.poll(() => note.allTextContents()).toEqual(["The task was not added: a task needs a title."]);
  await a.settled();
  await a.sees("Milk");
  const input = a.page.getByLabel("Title of a new task");
  expect(await input.getAttribute("aria-invalid")).toBe("true");
  await a.rename("Milk", " ");
  await a.task("Milk").getByText("The new title was not taken: a task needs a title.").waitFor();
  await a.settled();
  await a.sees("Milk");
  await a.picture("refusal");
  await a.add("Bread");
  await a.settled();
  expect(await note.count()).toBe(0);
  await a.sees("Milk", "Bread");
  await a.page.getByLabel("Name of a new list").press("Enter");
  await a.page.getByText("The list was not created: a list needs a name.").waitFor();
  await a.leave();
});

test("both edit while one is offline; a reload keeps what waits; then both agree", async () => {
  const { alice: a, shared } = await alice("offline", "Groceries");
  const wire = await Wire.to(server);
  const b = await Person.at(browser, by(wire.url, shared));
  await a.add("Milk", "Bread", "Cheese");
  await b.sees("Milk", "Bread", "Cheese");
  // The page itself is kept once its service worker is installed.
  await b.page.evaluate(async () => void (await navigator.serviceWorker.ready));

  wire.cut();
  await b.offline(true);
  await b.state("offline");
  await b.add("Dates");
  await b.rename("Milk", "Oat milk");
  await b.page.getByRole("checkbox", { name: "Cheese" }).check();
  await b.rename("Bread", "Brown bread");
  await b.sees("Oat milk *", "Brown bread *", "x Cheese *", "Dates *");
  await b.page.getByText("4 changes wait on this device").waitFor();
  await b.picture("offline");
  await a.add("Eggs");
  await a.delete("Bread");
  await a.settled();
  await a.sees("Milk", "Cheese", "Eggs");

  await b.page.reload();
  await b.pending(4);
  await b.state("offline");
  // The server's rows are not kept on this device yet; what is one's own is.
  await b.sees("Dates *");
  await b.page.getByText("4 changes wait on this device").waitFor();
  await b.add("Figs");
  await b.sees("Dates *", "Figs *");
  await b.picture("offline-reloaded");

  wire.mend();
  await b.offline(false);
  await b.settled();
  const agreed = ["Oat milk", "x Cheese", "Eggs", "Dates", "Figs"];
  await a.sees(...agreed);
  await b.sees(...agreed);
  // The rename of what was deleted meanwhile had no effect, and whoever made it is told.
  await b.page.getByText(/The new title “Brown bread” was not taken: somebody has deleted the task/).waitFor();
  await b.picture("told-after-return");
  await a.leave();
  await b.leave();
  await wire.close();
});

test("the server is killed and started again; nobody reloads", async () => {
  const { alice: a, shared } = await alice("killed", "Groceries");
  const b = await Person.at(browser, shared.href);
  await a.add("Milk");
  await b.sees("Milk");
  await a.settled();
  for (const { page } of [a, b]) await page.evaluate(() => (document.body.dataset["loaded"] = "once"));

  for (const round of [1, 2]) {
    await a.add(`In flight ${round}`); // Perhaps accepted, perhaps not even received.
    await server.kill();
    await a.state("offline");
    await b.state("offline");
    await a.add(`From A ${round}`);
    await b.add(`From B ${round}`);
    await a.page.getByText(/wait on this device/).or(a.page.getByText(/waits on this device/)).waitFor();
    await restart();
    await a.settled();
    await b.settled();
    const seen = await a.shown();
    await b.sees(...seen);
    for (const title of [`In flight ${round}`, `From A ${round}`, `From B ${round}`]) {
      expect(seen.filter((task) => task === title), "exactly once").toEqual([title]);
    }
  }
  for (const { page } of [a, b]) expect(await page.evaluate(() => document.body.dataset["loaded"])).toBe("once");
  await a.leave();
  await b.leave();
});

test("another volume under the same name is not written to until one starts over", async () => {
  const first = await temporaryStore();
  const second = await temporaryStore();
  let own = await Server.start(first.store);
  try {
    await own.deploy("todo");
    const a = await Person.at(browser, own.url);
    await a.createList("Groceries");
    await a.add("Milk");
    await a.settled();
    await own.kill();
    await a.state("offline");
    await a.add("Bread");
    own = await Server.start(second.store, own.listen);
    await own.deploy("todo");
    await a.page.getByText("The server now keeps another database under this name.").waitFor();
    await a.picture("volume-changed");
    await a.page.getByRole("button", { name: "Start over" }).click();
    await a.settled();
    await a.page.getByText("One change was given up: add task “Bread”.").waitFor();
    await a.page.getByText("There is no list here.").waitFor();
    await a.page.getByRole("link", { name: "All lists" }).first().click();
    await a.createList("Anew");
    await a.settled();
    await a.leave();
  } finally {
    await own.kill();
    await first.remove();
    await second.remove();
  }
});

test("it is readable on a phone, in the dark, and by keyboard alone", async () => {
  const { alice: a, shared } = await alice("looks", "Groceries");
  await a.createList("A list whose name is rather long, as names of lists can be");
  await a.page.goBack();
  await a.add("Milk", "Bread", "A task with a long title that does not fit into one line of a phone", "Cheese");
  await a.page.getByRole("checkbox", { name: "Bread" }).check();
  await a.settled();
  const phone = { viewport: { width: 375, height: 720 }, isMobile: true, hasTouch: true };
  for (const [name, options] of [
    ["phone", phone],
    ["phone-dark", { ...phone, colorScheme: "dark" }],
    ["dark", { colorScheme: "dark" }],
  ] as const) {
    const other = await Person.at(browser, shared.href, options);
    await other.sees(...(await a.shown()));
    await other.picture(name);
    const overflow = await other.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    expect(overflow, `${name} scrolls sideways`).toBeLessThanOrEqual(0);
    if (name === "phone") {
      await other.page.getByRole("link", { name: "All lists" }).click();
      await other.page.getByLabel("Name of a new list").waitFor();
      await other.picture("phone-lists");
    }
    await other.leave();
  }
  // Tab from the form: the first task's handle, tick, title, delete.
  const { page } = a;
  const focused = () => page.evaluate(() => document.activeElement?.getAttribute("aria-label") ?? document.activeElement?.textContent);
  await page.getByLabel("Title of a new task").focus();
  const order: unknown[] = [];
  for (let press = 0; press < 5; press++) {
    await page.keyboard.press("Tab");
    order.push(await focused());
  }
  expect(order).toEqual(["Add", "Move Milk", "Milk", "Milk", "Delete Milk"]);
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Enter"); // Rename, and give it up again.
  await page.keyboard.type("Oats");
  await a.picture("keyboard");
  await page.keyboard.press("Escape");
  expect(await focused()).toBe("Milk");
  await page.keyboard.press("Enter"); // And now in earnest; the Enter that saves does not open it again.
  await page.keyboard.type(", 2 l");
  await page.keyboard.press("Enter");
  await expect.poll(focused).toBe("Milk, 2 l");
  expect(await page.locator("input.title").count()).toBe(0);
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Space");
  await a.sees("x Milk, 2 l", "x Bread", "A task with a long title that does not fit into one line of a phone", "Cheese");
  await a.settled();
  await a.leave();
});
