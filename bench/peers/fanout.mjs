// From a write to every other subscriber, through a JavaScript client: all clients in this process.
//
// Usage: node fanout.mjs '{"adapter", "url", "subscribers", "rate", "seconds"}'. Prints one line of JSON.
//
// One client writes the numbers 1, 2, 3… into one note at a steady rate; the others subscribe to it. A
// sample is, for one number and one subscriber, the time from the call until the subscriber shows that
// number *or a later one*: leaving numbers out is no gain.

import { percentiles, run } from "./common.mjs";

const NOTE = 1;
const ARRIVE_MS_MAX = 30_000;

await run(async ({ connect, url, subscribers, rate, seconds }) => {
  const count = rate * seconds;
  const sent = new Float64Array(count + 1);
  const samples = [];
  let incomplete = subscribers;
  const arrived = Promise.withResolvers();

  const clients = [];
  for (let n = 0; n < subscribers; n++) {
    const client = await connect(url);
    clients.push(client);
    let shown = 0;
    await client.subscribe(NOTE, (text) => {
      const now = performance.now();
      for (const number = Number(text ?? 0); shown < number; ) samples.push(now - sent[++shown]);
      if (shown === count && incomplete > 0) {
        shown = Number.POSITIVE_INFINITY;
        incomplete -= 1;
        if (incomplete === 0) arrived.resolve();
      }
    });
  }

  const writer = await connect(url);
  clients.push(writer);
  const acks = [];
  const writes = [];
  const began = performance.now();
  for (let number = 1; number <= count; number++) {
    const due = began + (number * 1000) / rate;
    const wait = due - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    const at = performance.now();
    sent[number] = at;
    writes.push(writer.write(NOTE, String(number))?.then(() => acks.push(performance.now() - at)));
  }
  const late = setTimeout(() => arrived.resolve(), ARRIVE_MS_MAX);
  await arrived.promise;
  clearTimeout(late);
  const missing = count * subscribers - samples.length;
  // Whoever has not shown everything by now may not have acknowledged everything either.
  if (missing === 0) await Promise.all(writes);
  return { rows: percentiles(samples), ack: percentiles(acks), samples: samples.length, missing };
});
