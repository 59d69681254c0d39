// Transfers between accounts, through a JavaScript client: all connections in this process.
//
// Usage: node transfers.mjs '{"adapter", "url", "accounts", "connections", "depth", "seconds"}'. Prints one
// line of JSON, with what each account gained, so that the caller can compare it with the database.

import { percentiles, run } from "./common.mjs";

await run(async ({ connect, url, accounts, connections, depth, seconds }) => {
  const gained = new Array(accounts).fill(0);
  const waits = [];
  const clients = [];
  for (let n = 0; n < connections; n++) clients.push(await connect(url));
  const began = performance.now();
  const one = async (client) => {
    while (performance.now() - began < seconds * 1000) {
      const from = Math.floor(Math.random() * accounts);
      const to = (from + 1 + Math.floor(Math.random() * (accounts - 1))) % accounts;
      const amount = 1 + Math.floor(Math.random() * 10);
      const at = performance.now();
      await client.transfer(from, to, amount);
      waits.push(performance.now() - at);
      gained[from] -= amount;
      gained[to] += amount;
    }
  };
  await Promise.all(clients.flatMap((client) => Array.from({ length: depth }, () => one(client))));
  const elapsed = (performance.now() - began) / 1000;
  for (const client of clients) await client.close();
  return { count: waits.length, elapsed, waits: percentiles(waits), gained };
});
