/** The samples of docs/client.md compile; the first one runs. */

import { execFile } from "node:child_process";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { promisify } from "node:util";

import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { WebSocket } from "ws";

import { Server } from "./support/server.js";

const ROOT = resolve(import.meta.dirname, "../..");
// Below the package, so that its own node_modules are found from there.
const DIR = join(ROOT, "client/dist-docs");

let samples: { readonly kind: string; readonly code: string }[];
beforeAll(async () => {
  const text = await readFile(join(ROOT, "docs/client.md"), "utf8");
  samples = [...text.matchAll(/^```(tsx?)\n(.*?)^```$/gms)].map(([, kind = "", code = ""]) => ({ kind, code }));
  await mkdir(DIR, { recursive: true });
});
afterAll(() => rm(DIR, { recursive: true, force: true }));

test("every sample compiles", async () => {
  expect(samples.map(({ kind }) => kind)).toEqual(["ts", "ts", "ts", "tsx"]);
  for (const [at, { kind, code }] of samples.entries()) {
    // Each alone: the second one's declarations would type the others.
    const dir = join(DIR, String(at));
    await mkdir(dir, { recursive: true });
    await writeFile(join(dir, `sample.${kind}`), `${code}\nexport {};\n`);
    const config = {
      extends: "../../tsconfig.json",
      compilerOptions: {
        noPropertyAccessFromIndexSignature: false,
        paths: { "graft-client": ["../../src/index.ts"], "graft-client/react": ["../../src/react.ts"] },
      },
      include: [`sample.${kind}`],
    };
    await writeFile(join(dir, "tsconfig.json"), JSON.stringify(config));
    const tsc = promisify(execFile)(process.execPath, [join(ROOT, "node_modules/typescript/bin/tsc"), "-p", dir]);
    await tsc.catch((error: { stdout: string }) => {
      throw new Error(`sample ${at + 1}:\n${error.stdout}`);
    });
  }
});

test("the first sample runs, and has twelve lines", async () => {
  const code = samples[0]?.code ?? "";
  expect(code.trimEnd().split("\n")).toHaveLength(12);
  const server = await Server.start();
  const said: string[] = [];
  const log = vi.spyOn(console, "log").mockImplementation((...words: unknown[]) => void said.push(words.join(" ")));
  vi.stubGlobal("WebSocket", WebSocket);
  try {
    await server.deploy("todo");
    const file = join(DIR, "run.ts");
    const runnable = code.replace('"graft-client"', '"../src/index.js"').replace("http://127.0.0.1:4600", server.url);
    await writeFile(file, `${runnable}\nexport { db };\n`);
    const sample = (await import(/* @vite-ignore */ file)) as { readonly db: { close(): Promise<void> } };
    await expect.poll(() => said.find((line) => line.startsWith("in object storage, commit"))).toBeDefined();
    await expect.poll(() => said.includes("  Buy milk")).toBe(true);
    await sample.db.close();
  } finally {
    log.mockRestore();
    vi.unstubAllGlobals();
    await server.kill();
  }
});
