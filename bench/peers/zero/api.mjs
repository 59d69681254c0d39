// The API server that Zero asks its user to run: zero-cache sends mutations and queries here.
//
// Usage: node api.mjs POSTGRES_URL. Prints its URL on one line when it listens, on loopback.

import { createServer } from "node:http";
import { mustGetMutator, mustGetQuery } from "@rocicorp/zero";
import { handleMutateRequest, handleQueryRequest } from "@rocicorp/zero/server";
import { zeroNodePg } from "@rocicorp/zero/server/adapters/pg";
import pg from "pg";
import { mutators, queries, schema } from "./shared.mjs";

const pool = new pg.Pool({ connectionString: process.argv[2], max: 20 });
const dbProvider = zeroNodePg(schema, pool);

async function answer(url, body) {
  const query = Object.fromEntries(url.searchParams);
  const userID = null;
  if (url.pathname === "/mutate") {
    const handler = (transact) =>
      transact((tx, name, args) => mustGetMutator(mutators, name).fn({ tx, args, ctx: {} }));
    return handleMutateRequest({ dbProvider, handler, query, body, userID, logLevel: "error" });
  }
  const handler = (name, args) => mustGetQuery(queries, name).fn({ args, ctx: {} });
  return handleQueryRequest({ handler, schema, query, body, userID, logLevel: "error" });
}

const server = createServer(async (request, response) => {
  try {
    let text = "";
    for await (const chunk of request) text += chunk;
    const result = await answer(new URL(request.url, "http://localhost"), JSON.parse(text));
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(result));
  } catch (error) {
    console.error(error);
    response.statusCode = 500;
    response.end(String(error));
  }
});
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
