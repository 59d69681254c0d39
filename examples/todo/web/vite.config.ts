import { defineConfig } from "vite";

export default defineConfig({
  build: { target: "es2022" },
  // `npm run dev` serves the page; a coordinator at its usual place answers it.
  server: { proxy: { "/v1": { target: "http://127.0.0.1:4600", ws: true } } },
});
