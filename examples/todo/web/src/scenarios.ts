/**
 * Three conflicts, played for real: this window's connection and a second one of the same page act on one list,
 * and the server decides. Whatever is told comes from the two clients' promises and live queries.
 *
 * Each run works in a list of its own, which it removes at the end.
 */

import { connect, memory, MutationError, type Db, type DefaultMutations, type MutationHandle, type Observable } from "graft-client";

import { demoId } from "./demo-ids.js";
import { Wire } from "./wire.js";

/** Whose column. */
export type Who = "you" | "other";

/** What the second connection's person is called. */
export const OTHER = "Robin";

/** One thing that happened. */
export interface Entry {
  readonly who: Who;
  readonly kind: "acts" | "network" | "accepted" | "refused";
  readonly text: string;
  /** What was written and refused: whoever wrote it still has it. */
  readonly kept?: string;
}

/** How it ended. */
export interface Ending {
  /** The list's lines as each connection's own live query has them. */
  readonly sees: Readonly<Record<Who, readonly string[]>>;
  /** Both have what the server answers when it is asked. */
  readonly agree: boolean;
  /** One sentence for each refusal. */
  readonly refused: readonly string[];
}

/** A conflict to try. */
export interface Scenario {
  readonly id: string;
  readonly title: string;
  readonly about: string;
  readonly play: (scene: Scene) => Promise<void>;
}

/** How long one run may take, in ms. */
const RUN_MAX = 45_000;
/** How long removing the list may take, in ms. */
const LEAVE_MAX = 10_000;
/** How long the two may take to see the same, in ms. */
const AGREE_MAX = 10_000;

const VIEW = `
  SELECT id, title, claims.name AS claimer,
    (SELECT author || ': “' || text || '”' FROM comments WHERE task = tasks.id ORDER BY number LIMIT 1) AS said,
    (SELECT capacity FROM capacities WHERE capacities.list = tasks.list) AS capacity
  FROM tasks LEFT JOIN claims ON claims.task = tasks.id
  WHERE tasks.list = ?1
  ORDER BY position, id`;

interface Line {
  readonly id: string;
  readonly title: string;
  readonly claimer: string | null;
  readonly said: string | null;
  readonly capacity: number | null;
}

export const SCENARIOS: readonly Scenario[] = [
  {
    id: "comment",
    title: "A comment on a deleted task",
    about: `${OTHER} is offline and comments on a task. Meanwhile you delete it.`,
    play: async (scene) => {
      const [milk = ""] = await scene.setUp(["Buy milk"]);
      await scene.unplug();
      const text = "Two litres, please";
      const comment = scene.act("other", `comments “${text}” on “Buy milk”; it waits`, text, (db) =>
        db.mutate.addComment({ id: demoId(), task: milk, author: OTHER, text }),
      );
      comment.catch(() => undefined); // Awaited below, unless something fails before.
      await scene.act("you", "deletes “Buy milk”", undefined, (db) => db.mutate.deleteTask({ id: milk, comments_seen: 0 }));
      scene.plugIn();
      await comment;
    },
  },
  {
    id: "capacity",
    title: "The last free place",
    about: `A list has room for 3 tasks and holds 2. You and ${OTHER} each add one at the same moment.`,
    play: async (scene) => {
      await scene.setUp(["Tent", "Stove"], 3);
      const add = (who: Who, title: string) =>
        scene.act(who, `sees ${scene.fullness(who)} and adds “${title}”`, title, (db) =>
          db.mutate.addTask({ id: demoId(), list: scene.list, title }),
        );
      await Promise.all([add("you", "Lantern"), add("other", "Guitar")]);
    },
  },
  {
    id: "claim",
    title: "Two claims on one task",
    about: `You and ${OTHER} claim the same task at the same moment.`,
    play: async (scene) => {
      const [dishes = ""] = await scene.setUp(["Do the dishes"]);
      const claim = (who: Who) =>
        scene.act(who, "claims “Do the dishes”", undefined, (db) => db.mutate.claimTask({ id: dishes, name: scene.name(who) }));
      await Promise.all([claim("you"), claim("other")]);
    },
  },
];

/** Plays `scenario` with `you` and a second connection; `tell` hears everything as it happens. Rejects if it cannot be played. */
export async function run(
  scenario: Scenario,
  you: Db,
  yourName: string,
  volume: string,
  tell: (entry: Entry) => void,
): Promise<Ending> {
  const scene = new Scene(you, yourName, volume, tell);
  try {
    await scene.play(scenario);
    return await scene.ending();
  } finally {
    await scene.leave();
  }
}

/** Two people, one list. */
export class Scene {
  readonly list = demoId();
  readonly #dbs: Readonly<Record<Who, Db>>;
  readonly #wire = new Wire();
  readonly #names: Readonly<Record<Who, string>>;
  readonly #tell: (entry: Entry) => void;
  readonly #rows: Record<Who, readonly Line[] | undefined> = { you: undefined, other: undefined };
  readonly #moved = new EventTarget();
  readonly #unsubscribe: (() => void)[] = [];
  readonly #refused: string[] = [];
  readonly #over = AbortSignal.timeout(RUN_MAX);

  constructor(you: Db, yourName: string, volume: string, tell: (entry: Entry) => void) {
    const other = connect<DefaultMutations>({
      url: location.origin,
      volume,
      storage: memory(),
      webSocket: this.#wire.webSocket,
      // What is refused is told by its promise.
      onRejected: () => undefined,
      config: { backoffMin: 100, backoffMax: 500 },
    });
    this.#dbs = { you, other };
    this.#names = { you: yourName, other: OTHER };
    this.#tell = tell;
    for (const who of ["you", "other"] as const) {
      const onError = () => this.#moved.dispatchEvent(new Event("moved"));
      const moved = (rows: readonly Line[]) => {
        this.#rows[who] = rows;
        this.#moved.dispatchEvent(new Event("moved"));
      };
      this.#unsubscribe.push(this.#dbs[who].subscribe<Line>(VIEW, [this.list], moved, { onError }));
    }
  }

  name(who: Who): string {
    return this.#names[who];
  }

  /** `2 of 3`, as this person's live query has it. */
  fullness(who: Who): string {
    const rows = this.#rows[who] ?? [];
    return `${rows.length} of ${rows[0]?.capacity ?? "any"}`;
  }

  async play(scenario: Scenario): Promise<void> {
    await this.#inTime(scenario.play(this));
  }

  /** Makes the list with these tasks, and waits until both see them; their ids. */
  async setUp(titles: readonly string[], capacity?: number): Promise<readonly string[]> {
    const { you } = this.#dbs;
    const ids = titles.map(() => demoId());
    const calls = [you.mutate.createList({ id: this.list, name: "Conflict demo" })];
    if (capacity !== undefined) calls.push(you.mutate.setCapacity({ list: this.list, capacity }));
    titles.forEach((title, index) => calls.push(you.mutate.addTask({ id: ids[index] ?? "", list: this.list, title })));
    await Promise.all(calls.map(({ durable }) => durable));
    await this.#until(() => this.#rows.you?.length === titles.length && this.#rows.other?.length === titles.length);
    return ids;
  }

  /** Cuts the other's connection. */
  async unplug(): Promise<void> {
    this.#wire.cut();
    await watch(this.#dbs.other.status, ({ state }) => state === "offline", this.#over);
    this.#tell({ who: "other", kind: "network", text: "is offline" });
  }

  plugIn(): void {
    this.#tell({ who: "other", kind: "network", text: "is online again" });
    this.#wire.mend();
  }

  /** Makes a call and tells what comes of it. Resolves with its final answer, whichever. */
  async act(who: Who, does: string, text: string | undefined, call: (db: Db) => MutationHandle): Promise<void> {
    const said = who === "you" ? does.replace(/\b(delete|comment|claim|add|see)s\b/g, "$1") : does;
    this.#tell({ who, kind: "acts", text: said });
    const { durable } = call(this.#dbs[who]);
    try {
      const { lsn } = await durable;
      this.#tell({ who, kind: "accepted", text: `accepted, and saved in commit ${lsn}` });
    } catch (error) {
      if (!(error instanceof MutationError) || error.kind === "closed") throw error;
      const kept = text === undefined ? {} : { kept: text };
      this.#tell({ who, kind: "refused", text: `refused: ${error.message}`, ...kept });
      this.#refused.push(`${who === "you" ? "You were" : `${OTHER} was`} refused: ${error.message}.`);
    }
  }

  /** Asks the server, and compares what both see with that. */
  async ending(): Promise<Ending> {
    const truth = lines(await this.#inTime(this.#dbs.other.query<Line>(VIEW, [this.list])));
    const seen = (who: Who) => lines(this.#rows[who] ?? []);
    const same = (who: Who) => JSON.stringify(seen(who)) === JSON.stringify(truth);
    const agree = await this.#until(() => same("you") && same("other"), AbortSignal.timeout(AGREE_MAX)).then(
      () => true,
      () => false,
    );
    return { sees: { you: seen("you"), other: seen("other") }, agree, refused: this.#refused };
  }

  /** Removes the list and ends the second connection. */
  async leave(): Promise<void> {
    this.#wire.mend();
    const { other } = this.#dbs;
    const signal = AbortSignal.timeout(LEAVE_MAX);
    try {
      const tasks = await other.query<{ readonly id: string }>("SELECT id FROM tasks WHERE list = ?1", [this.list], { signal });
      const deleted = tasks.map(({ id }) => other.mutate.deleteTask({ id }).durable);
      await orAborted(Promise.all([...deleted, other.mutate.deleteList({ id: this.list }).durable]), signal);
    } catch (error) {
      // It stays among the lists, and can be deleted there.
      console.warn("the list of a tried conflict was not removed:", error);
    } finally {
      for (const unsubscribe of this.#unsubscribe) unsubscribe();
      await other.close();
    }
  }

  #inTime<T>(answer: Promise<T>): Promise<T> {
    return orAborted(answer, this.#over);
  }

  /** Waits until it is so, by what the live queries tell. */
  #until(isSo: () => boolean, signal: AbortSignal = this.#over): Promise<void> {
    const waiting = new Promise<void>((resolve) => {
      const look = () => {
        if (!isSo()) return;
        this.#moved.removeEventListener("moved", look);
        resolve();
      };
      this.#moved.addEventListener("moved", look);
      look();
    });
    return orAborted(waiting, signal);
  }
}

/** The list as a person reads it. */
function lines(rows: readonly Line[]): readonly string[] {
  return rows.map(({ title, claimer, said }) => title + (claimer === null ? "" : `, claimed by ${claimer}`) + (said === null ? "" : `, ${said}`));
}

function watch<T>(observable: Observable<T>, isSo: (value: T) => boolean, signal: AbortSignal): Promise<void> {
  let stop: (() => void) | undefined;
  const waiting = new Promise<void>((resolve) => {
    const look = () => isSo(observable.get()) && resolve();
    stop = observable.subscribe(look);
    look();
  });
  return orAborted(waiting, signal).finally(() => stop?.());
}

function orAborted<T>(answer: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const abort = () => reject(new Error("the server did not answer in time"));
    if (signal.aborted) return abort();
    signal.addEventListener("abort", abort, { once: true });
    answer.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
    return undefined;
  });
}
