// What makes the page an app: the service worker, the one reload that its headers need, the offer to install.

const RELOADED = "kdc-reloaded";

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
    await controlled(workers);
    scope.sessionStorage.setItem(RELOADED, "1");
    scope.location.reload();
    await new Promise(() => {}); // until the reload
  }
  return [];
}

async function controlled(workers) {
  await workers.ready;
  if (!workers.controller) await new Promise((resolve) => workers.addEventListener("controllerchange", resolve, { once: true }));
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
