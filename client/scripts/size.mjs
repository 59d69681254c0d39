// What the client adds to an app's bundle: minified, and compressed as a server would send it.
import { fileURLToPath } from "node:url";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { build } from "vite";

const names = { "graft-client": "index.ts", "graft-client/react (beside it)": "react.ts" };

for (const [name, file] of Object.entries(names)) {
  const entry = fileURLToPath(new URL(`../src/${file}`, import.meta.url));
  const [built] = await build({
    configFile: false,
    logLevel: "error",
    build: {
      write: false,
      target: "es2022",
      lib: { entry, formats: ["es"] },
      rolldownOptions: { external: ["react"], output: { minify: true } },
    },
  });
  const { code } = built.output[0];
  const gzip = gzipSync(code, { level: 9 }).length;
  console.log(`${name}: ${code.length} bytes minified, ${gzip} gzip, ${brotliCompressSync(code).length} brotli`);
}
