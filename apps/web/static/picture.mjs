// RGBA pictures on canvases, and out of the page: PNG, share, settings.

const LEAST = 512; // pixels of a saved picture's side: whole multiples of what was drawn

export function paint(canvas, { data, width, height }) {
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
}

export function thumbnail(picture) {
  const canvas = document.createElement("canvas");
  paint(canvas, picture);
  return canvas;
}

/** Smooth and large, so that a canvas of 64 pixels is worth looking at on a wide screen. */
export function paintLarge(canvas, picture) {
  const factor = Math.max(1, Math.ceil(LEAST / picture.width)), small = thumbnail(picture);
  Object.assign(canvas, { width: picture.width * factor, height: picture.height * factor });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

export function png(picture) {
  const canvas = document.createElement("canvas");
  paintLarge(canvas, picture);
  const [, base64] = canvas.toDataURL("image/png").split(","); // toBlob waits until the page is idle: for 7 s, it was seen
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const name = picture.settings.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "picture";
  return new File([bytes], `${name}-${picture.settings.seed}.png`, { type: "image/png" });
}

export function save(file) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: file.name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const canShare = () => Boolean(navigator.canShare?.({ files: [new File([""], "x.png", { type: "image/png" })] }));

/** All that another device needs to draw the same, as JSON. */
export function settingsText({ settings }) {
  const { prompt, seed, steps } = settings, quoted = `'${prompt.replaceAll("'", `'\\''`)}'`;
  return JSON.stringify({ ...settings, command: `kdc-edge generate ${quoted} --seed ${seed} --steps ${steps}` }, null, 2);
}

/** "red apple · seed 3 · 4 steps" */
export const caption = ({ prompt, seed, steps }) => `${prompt || "(no text)"} · seed ${seed} · ${steps} ${steps === 1 ? "step" : "steps"}`;
