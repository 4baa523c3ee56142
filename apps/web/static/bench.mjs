// The benchmark: times on this device as one record. ?provider=, ?threads=, ?samples=30; with ?post it starts by itself, and hands
// what it measured, or what went wrong, to the server.

import { describe } from "./core/device.mjs";
import { explain, Problem } from "./core/problems.mjs";
import { record } from "./core/record.mjs";
import { save } from "./picture.mjs";
import { register } from "./pwa.mjs";
import { Studio } from "./studio.mjs";

const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
const samples = Number(asked.get("samples") ?? 30);
const say = (text) => ($("status").textContent = text);
const preferences = { wanted: asked.get("provider") ?? "auto", threads: asked.has("threads") ? Number(asked.get("threads")) : null, frugal: false };

const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.round(q * (sorted.length - 1)))];
const ms = (seconds) => `${(1000 * seconds).toFixed(1)} ms`;

function show(latency) {
  const rows = Object.entries(latency).map(([what, { first_s: first, warm_wall_s: warm }]) => {
    const sorted = [...warm].sort((a, b) => a - b), line = document.createElement("tr");
    const cells = [what.replace("_", " "), ms(first), ms(quantile(sorted, 0.5)), ms(quantile(sorted, 0.9)), sorted.length];
    line.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    return line;
  });
  $("rows").replaceChildren(...rows);
  $("table").hidden = false;
}

async function run(studio) {
  $("run").disabled = true;
  say(`Measuring: ${describe(studio.device)}`);
  const onEvent = ({ name, done, of }) => say(`Measured the ${name.replace("_", " ")}, ${done} of ${of}.`);
  const timed = await studio.engine.call("benchmark", { samples }, { onEvent });
  const made = await record(studio.manifest, studio.device, timed, samples);
  show(timed.latency);
  say(`Done: ${describe(studio.device)}.`);
  $("save").hidden = false;
  $("save").onclick = () => save(new File([JSON.stringify(made, null, 2)], `kdc-edge-${made.created.slice(0, 10)}.json`, { type: "application/json" }));
  $("run").disabled = false;
  return made;
}

const post = (result) => fetch("results", { method: "POST", body: JSON.stringify(result) });

/** Where another provider than the one asked for would run, nothing is measured. */
function insist({ device }) {
  if (preferences.wanted !== "auto" && device.provider !== preferences.wanted) {
    throw new Problem("backend", `${preferences.wanted} was asked for, and is not to be had here.`);
  }
}

async function main() {
  const studio = new Studio(({ type, text }) => type === "notice" && say(text));
  try {
    (await register()).forEach(say);
    await studio.start(preferences);
    insist(studio);
    $("run").disabled = false;
    $("run").addEventListener("click", () => run(studio).catch((error) => say(explain(error).message)));
    say(`Ready: ${describe(studio.device)}.`);
    if (asked.has("post")) await post(await run(studio));
  } catch (error) {
    const { kind, message } = explain(error);
    say(message);
    if (asked.has("post")) await post({ problem: message, kind });
  }
}

main();
