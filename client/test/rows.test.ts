import { describe, expect, test } from "vitest";

import { ResultRows, RowsError, type Changes } from "../src/rows.js";
import { Random } from "./support/random.js";

const AT = { epoch: 0, lsn: 1, seq: 0 };
const NONE: Changes = { delete: [], insert: [], update: [] };
const numbers = (values: readonly number[]) => ResultRows.snapshot(["n"], values.map((n) => [n]), AT);
const valuesOf = (rows: ResultRows) => rows.rows.map((row) => row["n"]);

/** What docs/protocol.md says, word for word, on a list. */
function byTheLetter(rows: unknown[], changes: Changes): unknown[] {
  const after = [...rows];
  for (const position of [...changes.delete].reverse()) after.splice(position, 1);
  for (const [position, row] of changes.insert) after.splice(position, 0, row[0]);
  for (const [position, row] of changes.update) after[position] = row[0];
  return after;
}

function randomChanges(random: Random, old: number): Changes {
  const gone = Array.from({ length: old }, (_, at) => at).filter(() => random.chance(0.2));
  const inserts = random.below(6);
  const length = old - gone.length + inserts;
  const places = Array.from({ length }, (_, at) => at);
  while (places.length > inserts) places.splice(random.below(places.length), 1);
  return {
    delete: gone,
    insert: places.map((place) => [place, [100 + random.below(900)]]),
    update: Array.from({ length }, (_, at) => at)
      .filter(() => random.chance(0.1))
      .map((place) => [place, [1000 + random.below(9000)]]),
  };
}

test("applying is what the protocol says by the letter, and untouched rows keep their identity", () => {
  for (let seed = 0; seed < 300; seed += 1) {
    const random = new Random(seed);
    let rows = numbers(Array.from({ length: random.below(30) }, (_, at) => at));
    for (let step = 0; step < 20; step += 1) {
      const changes = randomChanges(random, rows.rows.length);
      const expected = byTheLetter(valuesOf(rows), changes);
      const after = rows.apply(changes, { ...AT, lsn: step });
      const story = `seed ${seed}, step ${step}: ${JSON.stringify(changes)}`;
      expect(valuesOf(after), story).toEqual(expected);
      const touched = new Set([...changes.insert, ...changes.update].map(([position]) => position));
      const before = new Set(rows.rows);
      expect(after.rows.every((row, at) => touched.has(at) || before.has(row)), story).toBe(true);
      rows = after;
    }
  }
});

describe("a change that does not fit changes nothing", () => {
  const hostile: [string, Partial<Changes>][] = [
    ["delete beyond the end", { delete: [3] }],
    ["delete far beyond", { delete: [2 ** 32] }],
    ["delete of a fraction", { delete: [0.5] }],
    ["negative delete", { delete: [-1] }],
    ["NaN", { delete: [NaN] }],
    ["delete twice", { delete: [1, 1] }],
    ["deletes out of order", { delete: [2, 0] }],
    ["more deletes than rows", { delete: [0, 1, 2, 3] }],
    ["insert beyond the end", { insert: [[4, [9]]] }],
    ["insert far beyond", { insert: [[2 ** 31, [9]]] }],
    ["insert twice in one place", { insert: [[1, [9]], [1, [9]]] }],
    ["insert where nothing is left before it", { delete: [0, 1, 2], insert: [[1, [9]]] }],
    ["update beyond the end", { update: [[3, [9]]] }],
    ["update beyond the new end", { delete: [0], update: [[2, [9]]] }],
    ["update of a fraction", { update: [[0.5, [9]]] }],
    ["a row that is too short", { insert: [[0, []]] }],
    ["a row that is too long", { delete: [0], update: [[0, [1, 2]]] }],
    ["what is not a value", { update: [[0, [{ $int: "x" }]]] }],
  ];
  test.each(hostile)("%s", (_name, changes) => {
    const rows = numbers([1, 2, 3]);
    expect(() => rows.apply({ ...NONE, ...changes }, AT)).toThrow(RowsError);
    expect(valuesOf(rows)).toEqual([1, 2, 3]);
  });
});

test("rows are frozen, and a column may have any name", () => {
  const { rows } = ResultRows.snapshot(["__proto__", "constructor", ""], [[1, 2, 3]], AT);
  const row = rows[0];
  expect(row === undefined ? [] : Object.entries(row)).toEqual([["__proto__", 1], ["constructor", 2], ["", 3]]);
  expect(Object.isFrozen(rows) && Object.isFrozen(row)).toBe(true);
});

test("ragged rows and columns that hide each other are refused", () => {
  expect(() => ResultRows.snapshot(["a"], [[1], []], AT)).toThrow(/0 values/);
  expect(() => ResultRows.snapshot(["id", "id"], [[1, 2]], AT)).toThrow(/two columns are called `id`/);
});

test("a new snapshot keeps the identity of rows that it has in common with the old", () => {
  const columns = ["id", "blob"];
  const wire = (ids: readonly string[]) => ids.map((id) => [id, { $blob: "AQI=" }]);
  const before = ResultRows.snapshot(columns, wire(["a", "b", "c", "d"]), AT);
  const after = ResultRows.snapshot(columns, wire(["a", "c", "x", "b"]), AT, before);
  const at = (index: number) => before.rows[index];
  expect(after.rows[0]).toBe(at(0));
  expect(after.rows[1]).toBe(at(2));
  expect(after.rows[2]).toEqual({ id: "x", blob: new Uint8Array([1, 2]) });
  expect(after.rows[3]).toBe(at(1));
  const other = ResultRows.snapshot(["id", "bytes"], wire(["a"]), AT, before);
  expect(Object.keys(other.rows[0] ?? {})).toEqual(["id", "bytes"]);
});
