// What can go wrong, each in words for the person who holds the device: what happened, and what to do.
//   kind: damaged | newer | runtime | network | storage | memory | backend | usage | cancelled

export class Problem extends Error {
  constructor(kind, message) {
    super(message);
    this.name = "Problem";
    this.kind = kind;
  }
}

/** Any error as a Problem: those of runtimes and browsers get words and a remedy. */
export function explain(error) {
  if (error instanceof Problem) return error;
  const text = String(error?.message ?? error);
  if (error?.name === "QuotaExceededError") {
    return new Problem("storage", "There is no room left to store this. Free some space on the device, or delete pictures.");
  }
  if (/out of memory|memory access|allocat|Array buffer/i.test(text)) {
    return new Problem("memory", `The device ran out of memory. Close other tabs, then turn on "Save memory" under Device. (${text})`);
  }
  return new Problem("backend", `Something failed that should not: ${text}. Reload the page; if it comes back, switch to the processor under Device.`);
}

/** `Problem`s pass between threads as plain objects. */
export const pack = (error) => (({ kind, message }) => ({ kind, message }))(explain(error));
export const unpack = ({ kind, message }) => new Problem(kind, message);
