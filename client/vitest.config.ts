import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.{ts,tsx}"],
    // Two cores are enough for these, and the servers of the integration tests want one.
    maxWorkers: 2,
    testTimeout: 30_000,
  },
});
