// Replicache: how long its rebase of pending mutations takes on a pulled change.
//
// Everything is in this process: key-value pairs in memory (`kvStore: 'mem'`), a puller that answers at
// once, and a pusher that never answers, so that no mutation is ever confirmed.

import { Replicache } from 'replicache';

// setTimeout takes no longer delay; a timer that runs out later ends with the process.
const NEVER_MS = 2 ** 30;

const key = (row) => `t${String(row).padStart(6, '0')}`;

const mutators = {
  /** The same as `set_done` of our to-do example: an error where there is no such task. */
  async set_done(tx, { id, done }) {
    const task = await tx.get(id);
    if (task === undefined) throw new Error(`there is no task ${id}`);
    await tx.set(id, { ...task, done });
  },
};

/** Milliseconds of each of `times` rebases. Row `rows - 1` is the one that is pulled. */
async function measure({ rows, pending, times }) {
  const task = (row, done) => ({ list: 'l', title: `task number ${row} of them`, done, position: row });
  const patches = [
    Array.from({ length: rows }, (_, row) => ({ op: 'put', key: key(row), value: task(row, 0) })),
  ];
  for (let at = 0; at < times; at += 1) {
    patches.push([{ op: 'put', key: key(rows - 1), value: { ...task(rows - 1, 1), pulled: at } }]);
  }
  let pulls = 0;
  const replicache = new Replicache({
    name: 'bench',
    kvStore: 'mem',
    mutators,
    pullInterval: null,
    pushDelay: NEVER_MS,
    logLevel: 'error',
    // Its pause between two requests is none of the rebase.
    requestOptions: { minDelayMs: 0 },
    pusher: () => new Promise(() => {}),
    puller: async () => {
      const patch = patches[pulls] ?? [];
      pulls += 1;
      const response = { cookie: pulls, lastMutationIDChanges: {}, patch };
      return { response, httpRequestInfo: { httpStatusCode: 200, errorMessage: '' } };
    },
  });
  let shown;
  let wake = () => {};
  replicache.subscribe((tx) => tx.get(key(rows - 1)), {
    onData: (value) => {
      shown = value;
      wake();
    },
  });
  const until = async (holds) => {
    while (!holds()) await new Promise((resolve) => (wake = resolve));
  };
  replicache.pull();
  await until(() => shown !== undefined);

  for (let row = 0; row < pending; row += 1) {
    await replicache.mutate.set_done({ id: key(row * 2), done: 1 });
  }

  const rebases = [];
  for (let at = 0; at < times; at += 1) {
    const began = performance.now();
    replicache.pull();
    await until(() => shown.pulled === at);
    rebases.push(performance.now() - began);
  }
  const left = (await replicache.experimentalPendingMutations()).length;
  const done = await replicache.query(async (tx) => {
    let count = 0;
    for await (const value of tx.scan()) count += value.done;
    return count;
  });
  if (left !== pending || done !== pending + 1) {
    throw new Error(`${left} mutations are pending and ${done} tasks done, not ${pending} and one more`);
  }
  return { rebases };
}

try {
  const result = await measure(JSON.parse(process.argv[2]));
  process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(0));
} catch (error) {
  console.error(error);
  process.exit(1);
}
