// What the client adds to an app's bundle: minified, and compressed as a server would send it.
import { fileURLToPath } from "node:url";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { build } from "vite";

const at = (path) => fileURLToPath(new URL(path, import.meta.url));

for (const [name, entry] of [["graft-client", "../src/index.ts"], ["graft-client/react, with it", "../src/react.ts"]]) {
  const content = entry.endsWith("react.ts")
    ? `export * from ${JSON.stringify(at("../src/index.ts"))}; export * from ${JSON.stringify(at(entry))};`
    : `export * from ${JSON.stringify(at(entry))};`;
  const [output] = [].concat(
    await build({
      configFile: false,
      logLevel: "error",
      plugins: [
        {
          name: "entry",
          resolveId: (id) => (id === "virtual:entry" ? id : null),
          load: (id) => (id === "virtual:entry" ? content : null),
        },
      ],
      build: {
        write: false,
        target: "es2022",
        minify: true,
        lib: { entry: "virtual:entry", formats: ["es"] },
        rolldownOptions: { external: ["react"], output: { minify: true } },
      },
    }),
  );
  const code = output.output[0].code;
  console.log(`${name}: ${code.length} bytes, ${gzipSync(code, { level: 9 }).length} gzip, ${brotliCompressSync(code).length} brotli`);
}
