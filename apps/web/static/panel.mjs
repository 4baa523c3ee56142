// The device dialog: what draws, what there is, and the way out.

import { PROVIDERS } from "./core/device.mjs";

const HINTS = {
  webgpu: (found) => (found.webgpu ? found.graphics || "available" : "not offered by this browser"),
  wasm: (found) => (found.isolated ? `${found.cores} cores` : "one thread: the page is not isolated"),
  auto: () => "graphics where it works, else the processor",
};

/** `onChange(preferences)` of {wanted, frugal}; `onForget` deletes everything. */
export function devicePanel({ button, dialog, providers, frugal, facts, forget }, { preferences, onChange, onForget }) {
  let chosen = { ...preferences };
  const change = (more) => onChange((chosen = { ...chosen, ...more }));
  button.addEventListener("click", () => dialog.showModal());
  frugal.addEventListener("change", () => change({ frugal: frugal.checked }));
  forget.addEventListener("click", onForget);

  /** With what was found and is in use now. */
  return async function show(studio) {
    const { found, device, manifest } = studio;
    const choices = Object.entries(PROVIDERS).map(([key, name]) => {
      const label = Object.assign(document.createElement("label"), { className: "check" });
      const input = Object.assign(document.createElement("input"), { type: "radio", name: "provider", value: key });
      input.checked = key === (chosen.wanted ?? "auto");
      input.disabled = key === "webgpu" && !found.webgpu;
      input.addEventListener("change", () => change({ wanted: key }));
      label.append(input, `${name}: ${HINTS[key](found)}`);
      return label;
    });
    providers.replaceChildren(providers.querySelector("legend"), ...choices);
    if (device) frugal.checked = device.frugal;
    facts.replaceChildren(...Object.entries(await describe(found, manifest, studio.store)).flatMap(([term, text]) => [make("dt", term), make("dd", text)]));
  };
}

async function describe(found, manifest, store) {
  const { usage = 0, quota = 0 } = (await navigator.storage?.estimate?.().catch(() => null)) ?? {};
  const kept = store?.lasting ? ((await navigator.storage?.persisted?.()) ? "kept until you delete it" : "kept while the browser has room") : "not kept";
  return {
    Memory: found.memory_gib ? `${found.memory_gib} GiB or more` : "the browser does not say",
    Threads: found.isolated ? "available" : "not available",
    "16-bit graphics": found.half ? "available" : "not available",
    Storage: `${(usage / 1e6).toFixed(0)} MB of ${(quota / 1e6).toFixed(0)} MB, ${kept}`,
    Model: manifest ? `${manifest.name} ${manifest.version}, ${manifest.precision}, ${manifest.id.slice(0, 12)}` : "none yet",
  };
}

const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
