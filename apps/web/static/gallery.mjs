// The pictures kept on the device, newest first; choosing one brings it back with its settings.

import { caption, thumbnail } from "./picture.mjs";

export class Gallery {
  constructor({ list, empty, clear }, onChoose) {
    Object.assign(this, { list, empty, clear, onChoose, store: null });
    clear.addEventListener("click", () => this.removeAll());
  }

  async show(store) {
    this.store = store;
    this.list.replaceChildren();
    for (const key of await store.keys("pictures")) this.insert(key, await store.get("pictures", key));
    this.count();
  }

  /** Problems of the store are the caller's. */
  async add(picture) {
    const key = new Date().toISOString();
    await this.store.put(["pictures", key, picture]);
    this.insert(key, picture);
    this.count();
  }

  newest() {
    return this.list.firstElementChild?.picture ?? null;
  }

  insert(key, picture) {
    const item = document.createElement("li"), name = caption(picture.settings);
    const show = button({ label: name, title: name }), remove = button({ label: `Delete ${name}`, text: "×", className: "remove" });
    show.append(thumbnail(picture));
    show.addEventListener("click", () => this.onChoose(picture));
    remove.addEventListener("click", async () => {
      await this.store.put(["pictures", key, undefined]);
      item.remove();
      this.count();
      this.list.parentElement.querySelector("button")?.focus();
    });
    item.picture = picture;
    item.append(show, remove);
    this.list.prepend(item);
  }

  async removeAll() {
    if (!confirm("Delete all pictures from this device?")) return;
    const keys = await this.store.keys("pictures");
    if (keys.length) await this.store.put(...keys.map((key) => ["pictures", key, undefined]));
    this.list.replaceChildren();
    this.count();
  }

  count() {
    const some = this.list.childElementCount > 0;
    this.empty.hidden = some;
    this.clear.hidden = !some;
  }
}

function button({ label, title = "", text = "", className = "" }) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text, className, title });
  made.setAttribute("aria-label", label);
  return made;
}
