import { expect, test } from "vitest";

import { decodeArgs, decodeValue, encodeArgs, encodeParams, encodeValue, sameValue, ValueError, type SqlValue } from "../src/value.js";

test("values come back equal", () => {
  const values: SqlValue[] = [
    null, 0, -1, 0.1, 5e-324, 1e300, 1e19, Infinity, -Infinity, -0,
    Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER, 2n ** 53n, 2n ** 63n - 1n, -(2n ** 63n),
    "", "%s \u0000 😀 \" \\", new Uint8Array(), Uint8Array.from({ length: 100_000 }, (_, at) => at % 256),
  ];
  for (const value of values) {
    const text = encodeValue(value);
    const back = decodeValue(JSON.parse(text));
    expect(back !== undefined && sameValue(back, value), text.slice(0, 80)).toBe(true);
  }
});

test("each value has the form of the protocol", () => {
  expect(encodeValue(9007199254740993n)).toBe('{"$int":"9007199254740993"}');
  expect(encodeValue(5n)).toBe("5");
  // A double that is whole is a REAL: as plain digits the server would read an integer, or nothing.
  expect(encodeValue(2 ** 63)).toBe("9.223372036854776e+18");
  expect(encodeValue(Infinity)).toBe('{"$real":"inf"}');
  expect(encodeValue(new Uint8Array([1, 2, 255]))).toBe('{"$blob":"AQL/"}');
  expect(encodeValue(true)).toBe("true");
  expect(decodeValue({ $int: "7" })).toBe(7);
});

test("half a surrogate pair does not reach the server, whose JSON reader would refuse the frame", () => {
  expect(encodeValue("a\ud83d")).toBe('"a\ufffd"');
  expect(encodeArgs({ "\ud83d": { "\ud83d": ["\ude00"] } })).toBe('{"\ufffd":{"\ufffd":["\ufffd"]}}');
});

test("what is no value is refused, and named", () => {
  const circle: unknown[] = [];
  circle.push(circle);
  const wrong: [unknown, RegExp][] = [
    [NaN, /NaN/],
    [2n ** 63n, /64-bit/],
    [Symbol("x"), /a symbol/],
    [() => 1, /a function/],
    [new Date(0), /Date/],
    [new Map(), /Map/],
    [circle, /levels deep/],
    [{ deep: 1n }, /a bigint is not JSON/],
    [[NaN], /not JSON/],
  ];
  for (const [value, message] of wrong) {
    const encode = () => encodeArgs({ title: value as string });
    expect(encode).toThrow(ValueError);
    expect(encode).toThrow(/`title`/);
    expect(encode).toThrow(message);
  }
  expect(() => encodeArgs([] as never)).toThrow(/an array/);
  expect(() => encodeParams([1, undefined as never])).toThrow(/parameter 2/);
  expect(() => encodeParams("x" as never)).toThrow(/array or an object/);
});

test("hostile JSON is no value", () => {
  for (const json of ["[]", "{}", '{"$int":"x"}', '{"$int":5}', '{"$int":"9223372036854775808"}', '{"$int":"1e3"}',
    '{"$int":""}', '{"$blob":"?"}', '{"$blob":"A==="}', '{"$blob":"A="}', '{"$real":"nan"}', '{"$int":"1","x":1}', '{"__proto__":"x"}']) {
    expect(decodeValue(JSON.parse(json)), json).toBeUndefined();
  }
});

test("arguments come back as they were given", () => {
  const args = { id: "1", n: 2n ** 60n, blob: new Uint8Array([1]), done: true, none: null, any: { a: [1, { b: null }] } };
  expect(decodeArgs(encodeArgs({ ...args, left_out: undefined }))).toEqual(args);
});

test("no parameters are none", () => {
  expect(encodeParams([])).toBeUndefined();
  expect(encodeParams({})).toBeUndefined();
  expect(encodeParams([1, "a", null])).toBe('[1,"a",null]');
  expect(encodeParams({ done: false })).toBe('{"done":false}');
});
