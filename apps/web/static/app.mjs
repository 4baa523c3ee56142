// The page: wires the studio to the elements. What is drawn, and how, is the studio's and the core's.

import { explain, Problem } from "./core/problems.mjs";
import { Gallery } from "./gallery.mjs";
import { some } from "./ideas.mjs";
import { devicePanel } from "./panel.mjs";
import { canShare, caption, paint, paintLarge, png, save, settingsText, thumbnail } from "./picture.mjs";
import { offerInstall, register } from "./pwa.mjs";
import { Studio } from "./studio.mjs";

const $ = (id) => document.getElementById(id);
const FEW = 8, MANY = 50; // steps that the slider offers
const SEEDS = 2 ** 32;
let shown = null, drawing = null, fetching = null, wake = null, used = false; // used: the seed, by a picture before

const remember = (key, value) => {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // a browser that keeps nothing; said elsewhere
  }
};
const recall = (key) => {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
};

const studio = new Studio(hear);
const gallery = new Gallery({ list: $("gallery"), empty: $("gallery-empty"), clear: $("clear") }, (picture) => {
  $("film").replaceChildren(); // another picture's steps
  present(picture);
  fill(picture.settings);
  $("frame").scrollIntoView({ block: "nearest" });
});
const showDevice = devicePanel(
  { button: $("device-button"), dialog: $("device"), providers: $("providers"), frugal: $("frugal"), facts: $("facts"), forget: $("forget") },
  { preferences: recall("preferences") ?? {}, onChange: prefer, onForget: forget },
); // prettier-ignore

function hear({ type, ...event }) {
  if (type === "progress") progress(event);
  if (type === "notice") notice(event.text);
  if (type === "device") $("device-label").textContent = event.text;
  if (type === "ready") ready(event.manifest);
}

function say(text, kind = "") {
  $("status").textContent = text;
  $("status").dataset.kind = kind;
}

function notice(text) {
  if ([...$("notices").children].some((item) => item.firstChild.textContent === text)) return;
  const item = document.createElement("li"), close = document.createElement("button");
  Object.assign(close, { type: "button", textContent: "×" });
  close.setAttribute("aria-label", "Dismiss");
  close.addEventListener("click", () => item.remove());
  item.append(Object.assign(document.createElement("span"), { textContent: text }), close);
  $("notices").append(item);
}

function progress({ have, bytes }) {
  const percent = Math.round((100 * have) / bytes);
  $("download").hidden = have >= bytes && !fetching;
  bar($("download-bar"), percent, 100);
  $("download-text").textContent = `Fetching the model: ${(have / 1e6).toFixed(1)} of ${(bytes / 1e6).toFixed(1)} MB`;
}

function bar(element, done, of) {
  element.setAttribute("aria-valuenow", done);
  element.setAttribute("aria-valuemax", of);
  element.firstElementChild.style.setProperty("--done", `${(100 * done) / of}%`);
}

function ready({ name, version, precision, id, pipeline }) {
  $("model-label").textContent = `${name} ${version}, ${precision}, ${id.slice(0, 8)}`;
  $("steps").max = pipeline.steps <= FEW ? FEW : MANY;
  if (!$("steps").dataset.chosen) $("steps").value = pipeline.steps;
  $("steps-shown").textContent = $("steps").value;
  document.body.dataset.ready = "";
  $("draw").disabled = false;
  say(drawing ? $("status").textContent : "Ready. Type something, or take an idea.");
  showDevice(studio);
}

/** Fetch what is needed and get ready; `problem` says how to go on. */
async function start() {
  fetching = new AbortController();
  $("pause").textContent = "Pause";
  try {
    await studio.start(recall("preferences") ?? {}, fetching.signal);
    fetching = null;
    $("download").hidden = true;
  } catch (error) {
    fetching = null;
    failed(error);
    $("download").hidden = false;
    $("pause").textContent = error.kind === "cancelled" ? "Go on" : "Try again";
    if (!$("download-text").textContent) $("download-text").textContent = "The model is not here yet.";
  }
}

function failed(error) {
  const problem = explain(error);
  say(problem.message, problem.kind === "cancelled" ? "" : "problem");
}

async function draw(event) {
  event?.preventDefault();
  if (drawing || !studio.engine) return;
  if (used && $("lock").ariaPressed !== "true") $("seed").value = Math.floor(Math.random() * SEEDS);
  used = true;
  const { pipeline, id, name, precision } = studio.manifest;
  const request = { prompt: $("prompt").value, seed: Number($("seed").value), steps: Number($("steps").value) };
  const settings = { ...request, sampler: pipeline.sampler, guidance: pipeline.guidance, negative: "", model: name, precision, bundle: id };
  drawing = new AbortController();
  remember("pending", request);
  busy(true);
  try {
    const { picture, dropped } = await studio.draw({ ...settings }, step, drawing.signal);
    await finished({ ...picture, settings }, dropped);
  } catch (error) {
    failed(error);
  } finally {
    drawing = null;
    remember("pending", null);
    busy(false);
  }
}

function busy(on) {
  $("draw").hidden = on;
  $("stop").hidden = !on;
  $("stop").disabled = false;
  $("bar").hidden = !on;
  $("frame").dataset.state = on ? "drawing" : "done";
  if (on) {
    $("film").replaceChildren();
    bar($("bar"), 0, Number($("steps").value));
    say("Drawing…");
    navigator.wakeLock?.request("screen").then((lock) => (wake = lock), () => {});
  } else {
    wake?.release();
    wake = null;
  }
}

function step({ index, total, preview }) {
  paintLarge($("canvas"), preview);
  film(preview, index);
  bar($("bar"), index + 1, total);
  $("caption").textContent = `Step ${index + 1} of ${total}`;
}

function film(picture, index) {
  const item = document.createElement("li"), canvas = thumbnail(picture);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Step ${index + 1}`);
  item.append(canvas);
  $("film").append(item);
}

async function finished(picture, dropped) {
  film(picture, $("film").childElementCount);
  present(picture);
  const untitled = "Done, without a text: the model drew what it liked. Type something to ask for it.";
  const left = dropped === 1 ? "token was" : `${dropped} tokens were`;
  const cut = dropped ? ` The text was too long: its last ${left} left out. Shorten it so that all of it counts.` : "";
  say((picture.settings.prompt ? "Done." : untitled) + cut);
  try {
    await gallery.add(picture);
  } catch (error) {
    notice(`The picture is not in the gallery: ${explain(error).message}`);
  }
}

function present(picture) {
  shown = picture;
  paintLarge($("canvas"), picture);
  $("frame").dataset.state = "done";
  $("canvas").setAttribute("aria-label", `Picture: ${caption(picture.settings)}`);
  $("caption").textContent = caption(picture.settings);
  $("actions").hidden = false;
  $("share").hidden = !canShare();
}

function fill({ prompt, seed, steps }) {
  $("prompt").value = prompt;
  $("seed").value = seed;
  used = false;
  $("steps").value = steps;
  $("steps").dataset.chosen = "yes";
  $("steps-shown").textContent = $("steps").value;
}

async function prefer(preferences) {
  remember("preferences", preferences);
  if (!studio.manifest) return;
  $("draw").disabled = true;
  $("device-label").textContent = "Changing…";
  drawing?.abort();
  try {
    await studio.prefer(preferences);
  } catch (error) {
    failed(error);
    $("draw").disabled = !studio.engine;
  }
}

async function forget() {
  if (!confirm("Delete the model and all pictures from this device? The page stays, and fetches the model again.")) return;
  studio.close();
  studio.store?.database?.close();
  await new Promise((resolve) => {
    const asked = indexedDB.deleteDatabase("kdc-edge");
    asked.onsuccess = asked.onerror = asked.onblocked = resolve;
  });
  ["preferences", "pending"].forEach((key) => remember(key, null));
  location.reload();
}

function ideas() {
  $("ideas").replaceChildren(...some(5).map((text) => {
    const chip = Object.assign(document.createElement("button"), { type: "button", className: "chip", textContent: text });
    chip.addEventListener("click", () => {
      $("prompt").value = text;
      draw();
    });
    return chip;
  }));
}

function wire() {
  $("form").addEventListener("submit", draw);
  $("stop").addEventListener("click", () => {
    drawing?.abort();
    $("stop").disabled = true;
    say("Stopping after this step…");
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && drawing && $("stop").click());
  $("more").addEventListener("click", ideas);
  $("seed").addEventListener("input", () => (used = false));
  $("steps").addEventListener("input", () => {
    $("steps-shown").textContent = $("steps").value;
    $("steps").dataset.chosen = "yes";
  });
  $("lock").addEventListener("click", () => ($("lock").ariaPressed = String($("lock").ariaPressed !== "true")));
  $("pause").addEventListener("click", () => (fetching ? fetching.abort() : start()));
  $("save").addEventListener("click", () => save(png(shown)));
  $("share").addEventListener("click", () => navigator.share({ files: [png(shown)], title: shown.settings.prompt }).catch(() => {}));
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(settingsText(shown));
      say("Copied: paste the settings where you like.");
    } catch {
      say(`This browser lets the page copy nothing. The settings: ${settingsText(shown)}`);
    }
  });
}

/** A tab that was put to sleep and thrown away in the middle left its request behind. */
function resume() {
  const pending = recall("pending");
  if (!pending) return;
  remember("pending", null);
  fill(pending);
  $("lock").ariaPressed = "true";
  notice("The browser put this page to sleep while it was drawing, and the picture was lost. Its settings are back: press Draw.");
}

async function main() {
  wire();
  ideas();
  offerInstall($("install"));
  (await register()).forEach(notice);
  await studio.openStore();
  await gallery.show(studio.store);
  if (gallery.newest()) present(gallery.newest());
  resume();
  await start();
  if (studio.manifest && (await studio.update().catch(() => false))) notice("A new version of the model is in use.");
}

main();
