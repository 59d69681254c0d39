/**
 * Three hard conflicts by hand in two windows, one of them cut off meanwhile: a comment on a deleted task, the
 * last place of a list, two claims. Whoever loses is told where it happened, and keeps what they wrote. Then
 * the same by the page's own panel.
 */


import type { BrowserContextOptions, Locator } from "playwright-core";
import { expect, test } from "vitest";

import { Wire } from "../../client/test/support/server.js";
import { PATIENCE, Person } from "./person.js";
import { browser, server, stage } from "./stage.js";

stage();

/** Names a person before the page asks who this is. */
function called(name: string, ...urls: string[]): BrowserContextOptions {
  const value = JSON.stringify({ person: `person-${name}`, name });
  const origins = [server.url, ...urls].map((url) => ({ origin: new URL(url).origin, localStorage: [{ name: "graft-todo-person", value }] }));
  return { storageState: { cookies: [], origins } };
}

/** Ada at the server, and Bob behind a wire of his own, on one list with these tasks. */
async function two(volume: string, ...tasks: string[]): Promise<{ ada: Person; bob: Person; wire: Wire; shared: URL }> {
  await server.deploy(volume);
  const ada = await Person.at(browser, `${server.url}/?volume=${volume}`, called("Ada"));
  await ada.createList("Picnic");
  await ada.add(...tasks);
  await ada.settled();
  const shared = new URL(ada.page.url());
  const wire = await Wire.to(server);
  const bob = await Person.at(browser, new URL(shared.search + shared.hash, wire.url).href, called("Bob", wire.url));
  await bob.sees(...tasks);
  return { ada, bob, wire, shared };
}

async function cut(person: Person, wire: Wire): Promise<void> {
  wire.cut();
  await person.offline(true);
  await person.state("offline");
}

async function back(person: Person, wire: Wire): Promise<void> {
  wire.mend();
  await person.offline(false);
  await person.settled();
}

/** Opens a task's comments and adds one. */
async function comment(person: Person, title: string, text: string): Promise<void> {
  const task = person.task(title);
  const input = task.getByLabel(`Comment on ${title}`);
  if (!(await input.isVisible())) await task.getByRole("button", { name: /comment/i, expanded: false }).click();
  await input.fill(text);
  await input.press("Enter");
}

function comments(person: Person, title: string): Promise<string[]> {
  return person.task(title).locator(".thread li p").allInnerTexts();
}

async function limit(person: Person, tasks: string): Promise<void> {
  await person.page.locator(".capacity").click();
  await person.page.getByLabel("Room for").fill(tasks);
  await person.page.getByLabel("Room for").press("Enter");
}

/** Pictures of the page as it is now on a phone, by day and in the dark; nothing may stick out. */
async function onPhone(person: Person, name: string): Promise<void> {
  const { page } = person;
  const before = page.viewportSize();
  await page.setViewportSize({ width: 375, height: 720 });
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  expect(overflow, `${name} scrolls sideways`).toBeLessThanOrEqual(0);
  await person.picture(`${name}-phone`);
  await page.emulateMedia({ colorScheme: "dark" });
  await person.picture(`${name}-phone-dark`);
  await page.emulateMedia({ colorScheme: "light" });
  if (before !== null) await page.setViewportSize(before);
}

/** What was refused and is kept. */
function kept(person: Person): Locator {
  return person.page.locator(".note.kept");
}

test("a comment on a task that was deleted meanwhile is kept for whoever wrote it", async () => {
  const { ada, bob, wire, shared } = await two("comments", "Buy milk", "Bread");
  await comment(ada, "Bread", "The dark one");
  await bob.task("Bread").getByRole("button", { name: "1 comment" }).click();
  await expect.poll(() => comments(bob, "Bread"), { timeout: PATIENCE }).toEqual(["Ada The dark one"]);

  await cut(bob, wire);
  await comment(bob, "Buy milk", "Two litres, please");
  await expect.poll(() => comments(bob, "Buy milk")).toEqual(["Bob Two litres, please"]);
  await bob.pending(1);
  await ada.delete("Buy milk");
  await ada.settled();
  await back(bob, wire);
  await bob.sees("Bread");
  await ada.sees("Bread");
  const told = "The comment “Two litres, please” was not added: somebody has deleted the task meanwhile.";
  await kept(bob).getByText(told).waitFor();
  await bob.picture("conflict-comment-refused");
  await onPhone(bob, "conflict-comment-refused");

  // A reload keeps it, and so does the page of all lists; then it goes to a task that is there.
  await bob.page.reload();
  await bob.settled();
  await kept(bob).getByText(told).waitFor();
  await bob.page.getByRole("link", { name: "Todo" }).click();
  await kept(bob).getByText(told).waitFor();
  await bob.page.goto(new URL(shared.search + shared.hash, wire.url).href);
  await bob.sees("Bread");
  await kept(bob).getByLabel("Where to put it instead").selectOption({ label: "Bread" });
  await kept(bob).getByRole("button", { name: "Put it there" }).click();
  await bob.settled();
  expect(await kept(bob).count()).toBe(0);
  await expect.poll(() => comments(ada, "Bread"), { timeout: PATIENCE }).toEqual(["Ada The dark one", "Bob Two litres, please"]);
  await bob.page.reload();
  await bob.sees("Bread");
  expect(await kept(bob).count(), "it is gone for good").toBe(0);

  // The other way round: who deletes what somebody has commented on meanwhile is told, and it stays.
  await ada.add("Cheese");
  await bob.sees("Bread", "Cheese");
  await cut(bob, wire);
  await bob.delete("Cheese");
  await bob.sees("Bread");
  await comment(ada, "Cheese", "The old one!");
  await ada.settled();
  await back(bob, wire);
  await bob.sees("Bread", "Cheese");
  await bob.task("Cheese").getByText("It was not deleted: the task has a comment that you have not seen.").waitFor();
  await bob.task("Cheese").getByRole("button", { name: "1 comment" }).click();
  await expect.poll(() => comments(bob, "Cheese"), { timeout: PATIENCE }).toEqual(["Ada The old one!"]);
  // Now it was seen.
  await bob.delete("Cheese");
  await ada.sees("Bread");
  await ada.leave();
  await bob.leave();
  await wire.close();
});

test("the last place of a list goes to one; the other's task can go elsewhere", async () => {
  const { ada, bob, wire } = await two("capacity", "Tent", "Stove");
  await limit(ada, "1");
  await ada.page.getByText("The limit was not changed: the list has 2 tasks already.").waitFor();
  await limit(ada, "3");
  await ada.settled();
  await bob.page.getByRole("button", { name: "2 of 3 tasks" }).waitFor();

  await cut(bob, wire);
  await bob.add("Guitar", "Drum");
  await bob.sees("Tent", "Stove", "Guitar *", "Drum *");
  await bob.page.getByRole("button", { name: "4 of 3 tasks" }).waitFor();
  await ada.add("Lantern");
  await ada.settled();
  await back(bob, wire);
  for (const person of [ada, bob]) {
    await person.sees("Tent", "Stove", "Lantern");
    await person.page.getByRole("button", { name: "3 of 3 tasks" }).waitFor();
  }
  await expect.poll(() => kept(bob).locator("p").allInnerTexts()).toEqual([
    "The task “Guitar” was not added: the list is full: 3 of 3.",
    "The task “Drum” was not added: the list is full: 3 of 3.",
  ]);
  await bob.picture("conflict-list-full");
  await bob.createList("Music");
  await bob.settled();
  // From another list's view they are as near.
  await kept(bob).first().getByLabel("Where to put it instead").selectOption({ label: "Music" });
  await kept(bob).first().getByRole("button", { name: "Put it there" }).click();
  await bob.sees("Guitar");
  await kept(bob).getByRole("button", { name: "Discard" }).click();
  expect(await kept(bob).count()).toBe(0);
  await bob.settled();
  // And with more room there is room.
  await limit(ada, "4");
  await ada.add("Drum");
  await ada.sees("Tent", "Stove", "Lantern", "Drum");
  await ada.page.locator(".capacity").click();
  await ada.page.getByRole("button", { name: "No limit" }).click();
  await ada.page.getByRole("button", { name: "Limit how many tasks fit" }).waitFor();
  await ada.settled();
  await ada.leave();
  await bob.leave();
  await wire.close();
});

test("of two who claim a task one has it, and the other is told whose it is", async () => {
  const { ada, bob, wire } = await two("claims", "Do the dishes");
  await cut(bob, wire);
  await bob.page.getByRole("button", { name: "Claim Do the dishes" }).click();
  await bob.task("Do the dishes").getByText("Bob (you)").waitFor();
  await ada.page.getByRole("button", { name: "Claim Do the dishes" }).click();
  await ada.settled();
  await back(bob, wire);
  await bob.task("Do the dishes").getByText("It was not claimed for you: Ada has claimed it.").waitFor();
  await expect.poll(() => bob.task("Do the dishes").locator(".claim bdi").allInnerTexts()).toEqual(["Ada"]);
  await ada.task("Do the dishes").getByText("Ada (you)").waitFor();
  await bob.picture("conflict-claimed");
  await onPhone(bob, "conflict-claimed");
  await ada.page.getByRole("button", { name: "Release Do the dishes", exact: true }).click();
  await bob.page.getByRole("button", { name: "Claim Do the dishes" }).click();
  await ada.task("Do the dishes").locator(".claim").getByText("Bob").waitFor();
  await bob.task("Do the dishes").getByText("Bob (you)").waitFor();
  // Whose owner is gone can be released by anybody.
  await ada.page.getByRole("button", { name: "Release Do the dishes for Bob" }).click();
  await bob.page.getByRole("button", { name: "Claim Do the dishes" }).waitFor();
  await ada.settled();
  await ada.leave();
  await bob.leave();
  await wire.close();
});

interface Played {
  readonly you: readonly string[];
  readonly other: readonly string[];
  readonly verdict: string;
  readonly remains: readonly (readonly string[])[];
}

/** Presses a button of the panel, and reads what it shows when it is over. */
async function play(person: Person, title: string, byKey = false): Promise<Played> {
  const panel = person.page.locator(".conflict");
  const button = panel.getByRole("button", { name: title });
  if (byKey) {
    await button.focus();
    await person.page.keyboard.press("Enter");
  } else {
    await button.click();
  }
  await panel.getByRole("status").getByText(/Both see the same list|do not see|could not be played/).waitFor();
  // `refused: …` of `<li class="you refused">`, without what stands inside for those who do not see the columns.
  const texts = (selector: string) =>
    panel.locator(selector).evaluateAll((items) =>
      items.map((item) => {
        const own = [...item.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
        return `${item.className.split(" ")[1]}: ${own.map((node) => node.textContent).join("")}`;
      }),
    );
  const remains = await panel.locator(".ends ul").evaluateAll((columns) => columns.map((column) => [...column.children].map((line) => line.textContent ?? "")));
  return {
    you: await texts("li.you"),
    other: await texts("li.other"),
    verdict: (await panel.getByRole("status").textContent()) ?? "",
    remains,
  };
}

test("the panel plays all three for real, on a phone, in the dark and by keyboard", async () => {
  await server.deploy("panel");
  const url = `${server.url}/?volume=panel`;
  const phone = { viewport: { width: 375, height: 720 }, isMobile: true, hasTouch: true };
  for (const [name, options] of [
    ["desktop", { viewport: { width: 1100, height: 900 } }],
    ["dark", { viewport: { width: 1100, height: 900 }, colorScheme: "dark" }],
    ["phone", phone],
    ["phone-dark", { ...phone, colorScheme: "dark" }],
  ] as const) {
    const ada = await Person.at(browser, url, { ...called("Ada"), ...options });
    const { page } = ada;
    const byKey = name === "desktop";
    await page.getByText("Try a conflict").focus();
    await page.keyboard.press("Enter");

    const comment = await play(ada, "A comment on a deleted task", byKey);
    expect(comment.you.map(kind)).toEqual(["acts", "accepted"]);
    expect(comment.other.map(kind)).toEqual(["network", "acts", "network", "refused"]);
    expect(comment.other.at(-1)).toBe("refused: refused: the task was deleted");
    expect(comment.verdict).toBe("Robin was refused: the task was deleted. Both see the same list.");
    expect(comment.remains).toEqual([["nothing"], ["nothing"]]);
    await page.locator(".timeline").scrollIntoViewIfNeeded();
    await ada.picture(`panel-comment-${name}`);

    // Who is first is the server's to say; the rest follows from that.
    const capacity = await play(ada, "The last free place", byKey);
    const lost = capacity.verdict.startsWith("You were") ? "you" : "other";
    expect(capacity.verdict).toBe(`${lost === "you" ? "You were" : "Robin was"} refused: the list is full: 3 of 3. Both see the same list.`);
    expect(capacity[lost].map(kind)).toEqual(["acts", "refused"]);
    expect(capacity[lost === "you" ? "other" : "you"].map(kind)).toEqual(["acts", "accepted"]);
    const third = lost === "you" ? "Guitar" : "Lantern";
    expect(capacity.remains).toEqual([["Tent", "Stove", third], ["Tent", "Stove", third]]);
    expect(await page.locator(".kept-text").textContent()).toContain(lost === "you" ? "Lantern" : "Guitar");
    await ada.picture(`panel-capacity-${name}`);

    const claim = await play(ada, "Two claims on one task", byKey);
    const has = claim.verdict.startsWith("You were") ? "Robin" : "Ada";
    expect(claim.verdict).toBe(`${has === "Ada" ? "Robin was" : "You were"} refused: ${has} has claimed it. Both see the same list.`);
    expect(claim.remains).toEqual([[`Do the dishes, claimed by ${has}`], [`Do the dishes, claimed by ${has}`]]);
    await ada.picture(`panel-claim-${name}`);

    // It leaves nothing behind, here or there.
    await ada.settled();
    await page.getByText("None yet.").waitFor({ state: "attached" });
    expect(await page.locator(".note").count()).toBe(0);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    expect(overflow, `${name} scrolls sideways`).toBeLessThanOrEqual(0);
    if (byKey) expect(await page.evaluate(() => document.activeElement?.textContent)).toContain("Two claims on one task");
    await ada.leave();
  }
  const left = await fetch(`${server.url}/v1/volumes/panel/query`, {
    method: "POST",
    body: JSON.stringify({ sql: "SELECT (SELECT count(*) FROM lists), (SELECT count(*) FROM tasks), (SELECT count(*) FROM comments), (SELECT count(*) FROM claims), (SELECT count(*) FROM capacities)" }),
  });
  expect(((await left.json()) as { rows: unknown }).rows).toEqual([[0, 0, 0, 0, 0]]);
});

/** `acts` of `acts: adds “x”`. */
function kind(entry: string): string {
  return entry.slice(0, entry.indexOf(":"));
}
