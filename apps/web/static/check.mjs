// The self-test: docs/conformance.md's stages on this device. ?provider=webgpu|wasm, ?threads=1, ?frugal.

import { describe } from "./core/device.mjs";
import { explain } from "./core/problems.mjs";
import { save } from "./picture.mjs";
import { register } from "./pwa.mjs";
import { Studio } from "./studio.mjs";

const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
export const preferences = {
  wanted: asked.get("provider") ?? "auto",
  threads: asked.has("threads") ? Number(asked.get("threads")) : null,
  frugal: asked.has("frugal") ? true : null,
};
const say = (text) => ($("status").textContent = text);

function hear({ type, have, bytes, text }) {
  if (type === "progress") say(`Fetching the model: ${(have / 1e6).toFixed(1)} of ${(bytes / 1e6).toFixed(1)} MB`);
  if (type === "notice") $("status").before(Object.assign(document.createElement("p"), { className: "faint", textContent: text }));
}

function row({ about, difference, tolerance, passed }) {
  const cells = [about, number(difference), tolerance ? number(tolerance) : "nothing", passed ? "passed" : "failed"];
  const line = document.createElement("tr");
  line.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
  line.lastChild.className = cells.at(-1);
  return line;
}

const number = (value) => (Number.isNaN(value) ? "no number" : String(Number(value.toPrecision(3))));

async function main() {
  await register();
  const studio = new Studio(hear);
  try {
    await studio.start(preferences);
    const app = `kdc-edge web app, ${describe(studio.device)}, ${navigator.userAgent}`;
    say(`Measuring: ${describe(studio.device)}`);
    const { verdicts, results } = await studio.engine.call("golden", { app }, { onEvent: ({ stage }) => say(`Measured: ${stage}`) });
    $("rows").replaceChildren(...verdicts.map(row));
    const failed = verdicts.filter(({ passed }) => !passed);
    const all = `All ${verdicts.length} stages passed. ${describe(studio.device)}.`;
    say(failed.length ? `Failed: ${failed[0].about}. The stages behind it may be wrong because it is.` : all);
    document.body.dataset.outcome = failed.length ? "failed" : "passed";
    window.results = results;
    $("save").hidden = false;
    $("save").addEventListener("click", () => save(new File([JSON.stringify(results)], "results.json", { type: "application/json" })));
  } catch (error) {
    say(explain(error).message);
    document.body.dataset.outcome = "error";
  }
}

main();
