// What makes the page an app: the service worker, the one reload that its headers need, the offer to install.

const RELOADED = "kdc-reloaded";
const PATIENCE = 15_000; // milliseconds until the worker has kept all its files

/** Notices in words. Where the host sends no isolation headers, the first visit reloads once, before anything is fetched. */
export async function register(scope = window) {
  if (!scope.isSecureContext) {
    return ["This address is not https or localhost, so the page works only while the server answers and cannot be installed."];
  }
  const workers = scope.navigator.serviceWorker;
  if (!workers) return ["This browser has no service workers (a private window, perhaps), so the page works only while the server answers."];
  try {
    await workers.register("sw.js", { type: "classic", updateViaCache: "none" });
  } catch (error) {
    return [`The page cannot be kept for offline use (${error.message}). Drawing works all the same.`];
  }
  if (!scope.crossOriginIsolated && !scope.sessionStorage.getItem(RELOADED)) {
    if (!(await controlled(workers))) {
      return ["The page could not be kept for offline use. Drawing works, on one thread. Reload to try again."];
    }
    scope.sessionStorage.setItem(RELOADED, "1");
    scope.location.reload();
    await new Promise(() => {}); // until the reload
  }
  return [];
}

/** Whether a worker controls the page, in the end. */
function controlled(workers) {
  const taken = workers.controller
    ? Promise.resolve(true)
    : new Promise((resolve) => workers.addEventListener("controllerchange", () => resolve(true), { once: true }));
  return Promise.race([taken, new Promise((resolve) => setTimeout(resolve, PATIENCE, false))]);
}

/** Show `button` while the browser offers to install. */
export function offerInstall(button) {
  let offer = null;
  window.addEventListener("beforeinstallprompt", (event) => {
    event.preventDefault();
    offer = event;
    button.hidden = false;
  });
  button.addEventListener("click", async () => {
    button.hidden = true;
    await offer?.prompt();
  });
}
