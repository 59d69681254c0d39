/** One person: a window of their own, with storage of its own, on the todo page. */

import { mkdir } from "node:fs/promises";
import { join, resolve } from "node:path";

import { chromium, type Browser, type BrowserContext, type BrowserContextOptions, type Locator, type Page } from "playwright-core";
import { expect } from "vitest";

export const ROOT = resolve(import.meta.dirname, "../..");
/** Longer than any answer takes on a loaded machine, and than the longest wait before dialling again (10 s). */
export const PATIENCE = 40_000;

const CHROMIUM = process.env["GRAFT_CHROMIUM"] ?? "/usr/bin/chromium";
const SCREENSHOTS = join(ROOT, "target/screenshots");

export function launch(): Promise<Browser> {
  return chromium.launch({
    executablePath: CHROMIUM,
    chromiumSandbox: false,
    args: ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
}

export class Person {
  readonly page: Page;
  readonly #context: BrowserContext;
  /** What the page threw. */
  readonly #errors: Error[] = [];

  private constructor(context: BrowserContext, page: Page) {
    this.#context = context;
    this.page = page;
    page.setDefaultTimeout(PATIENCE);
    page.on("pageerror", (error) => this.#errors.push(error));
  }

  /** Opens the page and waits until it is live. */
  static async at(browser: Browser, url: string, options: BrowserContextOptions = {}): Promise<Person> {
    const context = await browser.newContext({ viewport: { width: 1100, height: 720 }, ...options });
    const person = new Person(context, await context.newPage());
    await person.page.goto(url);
    await person.state("live");
    return person;
  }

  /** Closes the window; fails if its page ever threw. */
  async leave(): Promise<void> {
    await this.#context.close();
    expect(this.#errors).toEqual([]);
  }

  /** Tells the browser that the network is gone, or back. */
  async offline(offline: boolean): Promise<void> {
    await this.#context.setOffline(offline);
  }

  async state(state: string): Promise<void> {
    await this.page.locator(`.status[data-state="${state}"]`).waitFor();
  }

  /** Waits until so many changes have no final answer. */
  async pending(count: number): Promise<void> {
    await this.page.locator(`.status[data-pending="${count}"]`).waitFor();
  }

  /** Live, and everything durable. */
  async settled(): Promise<void> {
    await this.page.locator('.status[data-state="live"][data-pending="0"]').waitFor();
  }

  async createList(name: string): Promise<void> {
    await this.page.getByLabel("Name of a new list").fill(name);
    await this.page.getByRole("button", { name: "Create" }).click();
    await this.page.getByRole("heading", { level: 1, name }).waitFor();
  }

  async add(...titles: string[]): Promise<void> {
    const input = this.page.getByLabel("Title of a new task");
    for (const title of titles) {
      await input.fill(title);
      await input.press("Enter");
    }
  }

  task(title: string): Locator {
    return this.page.locator(".item").filter({ has: this.page.getByRole("checkbox", { name: title, exact: true }) });
  }

  async rename(title: string, to: string): Promise<void> {
    await this.task(title).locator("button.title").click();
    const input = this.page.getByLabel(`New title of ${title}`);
    await input.fill(to);
    await input.press("Enter");
  }

  async delete(title: string): Promise<void> {
    await this.page.getByRole("button", { name: `Delete ${title}`, exact: true }).click();
  }

  /** Waits until exactly these are shown, in this order; ticked ones with an x, not yet durable ones with a star. */
  async sees(...tasks: string[]): Promise<void> {
    await expect.poll(() => this.shown(), { timeout: PATIENCE }).toEqual(tasks);
  }

  shown(): Promise<string[]> {
    return this.page.locator(".item").evaluateAll((items) =>
      items.map((item) => {
        const box = item.querySelector<HTMLInputElement>("input[type=checkbox]");
        return `${box?.checked ? "x " : ""}${box?.ariaLabel}${item.querySelector(".mark") ? " *" : ""}`;
      }),
    );
  }

  /** Keeps a picture in target/screenshots. */
  async picture(name: string): Promise<void> {
    await mkdir(SCREENSHOTS, { recursive: true });
    await this.page.screenshot({ path: join(SCREENSHOTS, `${name}.png`), animations: "disabled" });
  }
}
