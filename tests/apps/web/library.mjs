// The core as a library, in Node: node library.mjs CORE MODULES BUNDLE WORK, one JSON object on stdout.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { argv } from "node:process";
import { pathToFileURL } from "node:url";

const [, , core, modules, bundle, work] = argv;
const require = createRequire(`${modules}/`);
const ort = require("onnxruntime-web"), { Tokenizer } = await import(pathToFileURL(`${modules}/@huggingface/tokenizers/dist/tokenizers.min.mjs`).href);
const { fetched, measure, open, Problem, results, rgb } = await import(pathToFileURL(`${core}/index.mjs`).href);
const folder = (path) => (name) => readFile(`${path}/${name}`);
const opened = (read, more = {}) => open(read, { ort, Tokenizer, ...more });

const asked = [];
const pipeline = await opened((name) => (asked.push(name), folder(bundle)(name)));
const frugal = await opened(folder(bundle), { frugal: true });

async function draw(request, over = pipeline) {
  const seen = [];
  for await (const frame of over.stream(request)) {
    seen.push(frame.index);
    if (frame.done) return { seen, dropped: frame.dropped, rgb: Array.from(rgb(await frame.image())) };
    if (request.leave === frame.index) return { seen, preview: (await frame.preview()).data.length };
  }
}

/** The Problem of opening `read`, as [kind, message]. */
async function problem(read, more) {
  try {
    await opened(read, more);
  } catch (error) {
    return error instanceof Problem ? [error.kind, error.message] : ["not a Problem", String(error)];
  }
}

const changed = (path, change) => async (name) => (name === path ? change(await readFile(`${bundle}/${name}`)) : readFile(`${bundle}/${name}`));
const manifest = (from, to) => changed("manifest.json", (bytes) => Buffer.from(String(bytes).replace(from, to)));

console.log(JSON.stringify({
  asked,
  id: pipeline.manifest.id,
  results: results(pipeline.manifest.id, "the tests, Node", await measure(pipeline, await pipeline.golden())),
  guided: (await draw({ prompt: "rocket", seed: 7, steps: 3, guidance: 2, negative: "red", sampler: "euler" })).rgb,
  frugal: (await draw({ prompt: "red apple", seed: 3, steps: 2 }, frugal)).rgb,
  plain: (await draw({ prompt: "red apple", seed: 3, steps: 2 })).rgb,
  left: await draw({ prompt: "red apple", seed: 0, leave: 1 }),
  seed: await draw({ prompt: "red apple", seed: -1 }).catch((error) => [error.kind, error.message]),
  long: (await draw({ prompt: "very long ".repeat(60), seed: 0 })).dropped,
  damaged: await problem(changed("unet/model.onnx", (bytes) => (bytes[100_000]++, bytes))),
  short: await problem(changed("unet/model.onnx", (bytes) => bytes.subarray(0, 1000))),
  missing: await problem(folder(work)),
  memory: await problem(folder(bundle), { freeMib: 64 }),
  newer: await problem(manifest('"format": 1', '"format": 2')),
  other: await problem(manifest('"runtime": "onnx"', '"runtime": "coreml"')),
  outside: await problem(manifest('"golden/golden.json"', '"../golden.json"')),
  unserved: await problem(fetched("http://127.0.0.1:9/bundle")),
}));
await pipeline.close();
await frugal.close();
