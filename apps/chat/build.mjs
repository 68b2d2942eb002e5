// Bundles the page. node build.mjs FOLDER writes it there; without FOLDER the tests are made, in out/.
import { copyFileSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { build } from "esbuild";

const common = { bundle: true, charset: "utf8", legalComments: "inline", logLevel: "warning" };
// What the bundle holds of others goes with its licence.
const notice = `/*!\n${readFileSync("node_modules/marked/LICENSE", "utf8")}*/`;
const folder = process.argv[2];
if (folder === undefined) {
  const tests = readdirSync("test").filter((name) => name.endsWith(".test.ts")).map((name) => join("test", name));
  await build({ ...common, entryPoints: tests, outdir: "out/test", platform: "node", format: "esm", outExtension: { ".js": ".mjs" } });
} else {
  mkdirSync(folder, { recursive: true });
  await build({ ...common, entryPoints: ["src/main.ts"], outfile: join(folder, "app.js"), format: "esm", minify: true, target: "es2022", banner: { js: notice } });
  await build({ ...common, entryPoints: ["src/app.css"], outfile: join(folder, "app.css"), minify: true });
  copyFileSync("src/index.html", join(folder, "index.html"));
}
