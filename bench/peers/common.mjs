// What both programs share: reading the order, percentiles, one line of output.

/** In milliseconds; null where there are no samples. */
export function percentiles(samples) {
  const sorted = Float64Array.from(samples).sort();
  const at = (share) => sorted[Math.round((sorted.length - 1) * share)] ?? null;
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1) };
}

/** Runs `body` with what the command line asks for, prints its result, and ends the process. */
export async function run(body) {
  try {
    const { adapter, ...order } = JSON.parse(process.argv[2]);
    const { connect } = await import(`./adapters/${adapter}.mjs`);
    const result = await body({ connect, ...order });
    process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(0));
  } catch (error) {
    console.error(error);
    process.exit(1);
  }
}
