// What is kept on the device: IndexedDB, in five tables of key → value. `memory()` has the same methods and forgets.
//   files     sha256 → Blob: checked, content-addressed, so that versions share what is the same
//   parts     sha256/number → Blob: of downloads that have not ended
//   bundles   id → manifest.json
//   state     active: id; proved: {id/provider: true}; refused: id
//   pictures  when drawn → {settings, rgba, width, height}

const TABLES = ["files", "parts", "bundles", "state", "pictures"];

const request = (asked) =>
  new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });

export async function open(name = "kdc-edge") {
  const asked = indexedDB.open(name, 1);
  asked.onupgradeneeded = () => TABLES.forEach((table) => asked.result.createObjectStore(table));
  return new Store(await request(asked));
}

class Store {
  constructor(database) {
    this.database = database;
    this.lasting = true;
    database.onversionchange = () => database.close();
  }

  get(table, key) {
    return request(this.database.transaction(table).objectStore(table).get(key));
  }

  keys(table, prefix = "") {
    const range = prefix ? IDBKeyRange.bound(prefix, `${prefix}\uffff`) : null;
    return request(this.database.transaction(table).objectStore(table).getAllKeys(range));
  }

  /** All of [[table, key, value], …] or none; value undefined deletes. */
  put(...changes) {
    const tables = [...new Set(changes.map(([table]) => table))];
    const transaction = this.database.transaction(tables, "readwrite");
    for (const [table, key, value] of changes) {
      const rows = transaction.objectStore(table);
      if (value === undefined) rows.delete(key);
      else rows.put(value, key);
    }
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error ?? new DOMException("no room", "QuotaExceededError"));
    });
  }
}

export function memory() {
  const tables = Object.fromEntries(TABLES.map((table) => [table, new Map()]));
  return {
    lasting: false,
    get: async (table, key) => tables[table].get(key),
    keys: async (table, prefix = "") => [...tables[table].keys()].filter((key) => String(key).startsWith(prefix)).sort(),
    put: async (...changes) => {
      for (const [table, key, value] of changes) {
        if (value === undefined) tables[table].delete(key);
        else tables[table].set(key, value);
      }
    },
  };
}
