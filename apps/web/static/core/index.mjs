// The core as a library, for Node 20 and browsers, without a dependency of its own: the caller hands in onnxruntime-web and
// @huggingface/tokenizers. docs/embedding.md shows it in ten lines; the app's worker is built on it, too.

import { clip } from "./clip.mjs";
import { stored } from "./golden.mjs";
import { parse } from "./manifest.mjs";
import { Networks } from "./networks.mjs";
import { Pipeline } from "./pipeline.mjs";
import { Problem } from "./problems.mjs";
import { sha256 } from "./sha256.mjs";

export { judge, measure, results, rgb } from "./golden.mjs";
export { explain, Problem } from "./problems.mjs";

/**
 * A bundle's Pipeline, with its `manifest` and, for conformance, `golden()`. `read(name)` gives a file's bytes, each checked against
 * the manifest's size and SHA-256. Problem where the bundle is another runtime's, newer, damaged, or needs more than `freeMib`. With
 * `frugal` one network is in memory at a time.
 */
export async function open(read, { ort, Tokenizer, provider = "wasm", frugal = false, freeMib = Infinity }) {
  const manifest = await parse(new TextDecoder().decode(await bytes(read, "manifest.json"))), files = {};
  const need = manifest.requires?.memory_mib ?? 0;
  if (need > freeMib) {
    throw new Problem("memory", `This bundle needs ${need} MiB of memory, ${freeMib} MiB are free. Close something else, or fetch a smaller bundle.`);
  }
  for (const path of manifest.wanted) files[path] = await checked(read, path, manifest.files[path]);
  const pipeline = await assemble(manifest, files, { ort, tokenizer: clip.bind(null, Tokenizer), provider, frugal });
  return Object.assign(pipeline, { manifest, golden: () => stored(files) });
}

/** `files`: path → Blob, checked. */
export async function assemble(manifest, files, { ort, tokenizer, provider, frugal }) {
  const json = async (path) => JSON.parse(await files[path].text());
  const [data, config] = [await json("tokenizer/tokenizer.json"), await json("tokenizer/tokenizer_config.json")];
  const tokenize = tokenizer(data, config, manifest.pipeline.tokens);
  return new Pipeline(manifest.pipeline, tokenize, new Networks(ort, manifest, files, { provider, frugal }));
}

/** `read` of a bundle's folder on a server. */
export function fetched(folder) {
  const base = new URL(folder.endsWith("/") ? folder : `${folder}/`, globalThis.location?.href);
  return async (name) => {
    const answer = await fetch(new URL(name, base)).catch(() => {
      throw new Problem("network", "The server does not answer. Check the connection and try again.");
    });
    if (!answer.ok) throw new Problem("network", `${name} is not on the server (it answered ${answer.status}).`);
    return answer.arrayBuffer();
  };
}

async function bytes(read, path) {
  try {
    return await read(path);
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem("damaged", `${path} cannot be read (${error?.message ?? error}). Fetch the bundle again.`);
  }
}

async function checked(read, path, { sha256: wanted, bytes: size }) {
  const blob = new Blob([await bytes(read, path)]);
  if (blob.size !== size) throw new Problem("damaged", `${path} has ${blob.size} bytes and should have ${size}. Fetch the bundle again.`);
  if ((await sha256(blob)) !== wanted) {
    throw new Problem("damaged", `${path} is damaged: its SHA-256 is not the manifest's. Fetch the bundle again.`);
  }
  return blob;
}
