/** Who is on the page: windows of several people, the built page, the real coordinator. */


import { expect, test } from "vitest";

import { PATIENCE, Person } from "./person.js";
import { browser, restart, server, stage } from "./stage.js";

stage();

/** Waits until a window shows so many people, by the name of its button. */
async function counts(person: Person, count: number): Promise<void> {
  const label = count === 1 ? "Only you are here" : `${count} people are here`;
  await person.page.getByRole("button", { name: label, exact: true }).waitFor();
}

/** The list behind the button; also while it is closed. */
const panel = (person: Person) => person.page.locator('.panel[aria-label="Who is here"]');
const names = (person: Person) => panel(person).locator(".name").allTextContents();

async function sees(person: Person, ...wanted: string[]): Promise<void> {
  await expect.poll(() => names(person), { timeout: PATIENCE }).toEqual(wanted);
}

async function rename(person: Person, name: string): Promise<void> {
  const input = panel(person).getByLabel("Your name");
  await input.fill(name);
  await input.press("Enter");
}

test("people see each other come, take a name, and go", async () => {
  await server.deploy("presence");
  const url = `${server.url}/?volume=presence`;
  const a = await Person.at(browser, url);
  await counts(a, 1);
  await a.createList("Groceries");
  await a.add("Milk", "Bread");

  // A name is there from the first moment, and stays over a reload.
  const given = (await names(a))[0];
  expect(given).toMatch(/^[A-Z][a-z]+ [A-Z][a-z]+$/);
  await a.page.reload();
  await a.state("live");
  expect(await names(a)).toEqual([given]);

  const b = await Person.at(browser, a.page.url());
  await Promise.all([counts(a, 2), counts(b, 2)]);

  // By keyboard alone: open, rename, close; the focus is where it was.
  const button = a.page.locator(".faces");
  await button.focus();
  await a.page.keyboard.press("Enter");
  expect(await button.getAttribute("aria-expanded")).toBe("true");
  await a.page.keyboard.press("Tab");
  await a.page.keyboard.press("ControlOrMeta+A");
  await a.page.keyboard.type("Ada Lovelace");
  await a.page.keyboard.press("Enter");
  await a.page.keyboard.press("Escape");
  expect(await button.getAttribute("aria-expanded")).toBe("false");
  expect(await button.evaluate((element) => document.activeElement === element)).toBe(true);

  await b.page.locator(".faces").click();
  await rename(b, "Grace Hopper");
  await sees(a, "Ada Lovelace", "Grace Hopper");
  await sees(b, "Grace Hopper", "Ada Lovelace");
  expect(await panel(b).locator("li").first().innerText()).toMatch(/you$/);
  // An empty name is no name; a hostile one is text, on one line.
  await rename(b, "  ");
  await sees(b, "Grace Hopper", "Ada Lovelace");
  await rename(b, "<img src=x onerror=alert(1)>\u202e");
  await sees(a, "Ada Lovelace", "<img src=x onerror=alert(1)>");
  await rename(b, "Grace Hopper");
  await sees(a, "Ada Lovelace", "Grace Hopper");

  const c = await Person.at(browser, a.page.url(), { colorScheme: "dark" });
  const phone = { viewport: { width: 375, height: 720 }, isMobile: true, hasTouch: true, colorScheme: "dark" } as const;
  const d = await Person.at(browser, a.page.url(), phone);
  await Promise.all([a, b, c, d].map((person) => counts(person, 4)));
  // A second tab of one browser is the same person.
  const tab = await a.page.context().newPage();
  await tab.goto(a.page.url());
  await tab.getByRole("button", { name: "4 people are here", exact: true }).waitFor();
  await tab.close();
  await b.picture("presence");
  await c.page.locator(".faces").click();
  await c.picture("presence-dark");
  expect(await d.page.locator(".number").innerText()).toBe("4");
  await d.picture("presence-phone");
  await d.page.locator(".faces").click();
  await panel(d).waitFor();
  await d.picture("presence-phone-open");
  const box = await panel(d).boundingBox();
  expect(box !== null && box.x >= 0 && box.x + box.width <= 375, JSON.stringify(box)).toBe(true);
  expect(await d.page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0);

  await d.leave();
  await c.leave();
  await counts(a, 2);
  await sees(a, "Ada Lovelace", "Grace Hopper");
  await b.leave();
  await counts(a, 1);
  await a.leave();
});

test("while the server is gone nobody else is known; when it is back everybody is", async () => {
  await server.deploy("presence-restart");
  const url = `${server.url}/?volume=presence-restart`;
  const [a, b] = [await Person.at(browser, url), await Person.at(browser, url)];
  await Promise.all([counts(a, 2), counts(b, 2)]);
  const seen = await names(a);
  expect(seen).toHaveLength(2);
  await server.kill();
  await Promise.all([a.state("offline"), b.state("offline")]);
  await a.page.getByRole("button", { name: "Who else is here is not known now", exact: true }).waitFor();
  expect(await names(a)).toEqual(seen.slice(0, 1));
  await restart();
  await Promise.all([counts(a, 2), counts(b, 2)]);
  await sees(a, ...seen);
  await a.leave();
  await b.leave();
});
