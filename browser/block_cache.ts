/** Stores blocks of fetched files in the browser's storage for this site, which outlives the page. */

/** The browser's type names, which are missing in Node's types. */
interface Directory {
  getDirectoryHandle(
    name: string,
    options?: { readonly create: boolean },
  ): Promise<Directory>;
  getFileHandle(
    name: string,
    options?: { readonly create: boolean },
  ): Promise<StoredFile>;
  removeEntry(
    name: string,
    options: { readonly recursive: boolean },
  ): Promise<void>;
  keys(): AsyncIterable<string>;
}

interface StoredFile {
  getFile(): Promise<Blob>;
  createWritable(): Promise<{
    write(bytes: Uint8Array): Promise<void>;
    close(): Promise<void>;
  }>;
}

/** Fetches a number of bytes of a file from an offset. */
export type FetchBytes = (
  offset: number,
  length: number,
) => Promise<Uint8Array>;

/** The folder in the storage. */
const FOLDER = "switchyard";

/**
 * Calls `fetched` for missing data and stores the result. If there is no storage, or no room in it, only fetches.
 * `version` identifies the current contents at the address; stored data of other versions is removed.
 */
export async function withCache(
  fetched: FetchBytes,
  { address, version }: { readonly address: string; readonly version: string },
): Promise<FetchBytes> {
  const folder = await openFolder(address, version).catch(() => undefined);
  if (folder === undefined) return fetched;
  return async (offset, length) => {
    const cached = await read(folder, offset, length).catch(() => undefined);
    if (cached) return cached;
    const bytes = await fetched(offset, length);
    // A full or cleared storage only causes another fetch.
    await write(folder, offset, bytes).catch(() => {});
    return bytes;
  };
}

async function openFolder(
  address: string,
  version: string,
): Promise<Directory> {
  const { storage } = (globalThis as unknown as {
    navigator: { storage: { getDirectory(): Promise<Directory> } };
  }).navigator;
  const root = await storage.getDirectory();
  const all = await root.getDirectoryHandle(FOLDER, { create: true });
  const ofAddress = await all.getDirectoryHandle(await digest(address), {
    create: true,
  });
  const name = await digest(version);
  for await (const other of ofAddress.keys()) {
    if (other !== name) await ofAddress.removeEntry(other, { recursive: true });
  }
  return await ofAddress.getDirectoryHandle(name, { create: true });
}

async function read(
  folder: Directory,
  offset: number,
  length: number,
): Promise<Uint8Array | undefined> {
  const file = await (await folder.getFileHandle(`${offset}`)).getFile();
  return file.size === length
    ? new Uint8Array(await file.arrayBuffer())
    : undefined;
}

async function write(
  folder: Directory,
  offset: number,
  bytes: Uint8Array,
): Promise<void> {
  const file = await folder.getFileHandle(`${offset}`, { create: true });
  const writable = await file.createWritable();
  await writable.write(bytes);
  // The file appears completely or not at all.
  await writable.close();
}

/** File names are shorter than addresses. */
async function digest(text: string): Promise<string> {
  const bytes = await crypto.subtle.digest(
    "SHA-256",
    new TextEncoder().encode(text),
  );
  return [...new Uint8Array(bytes)].map((x) => x.toString(16).padStart(2, "0"))
    .join("");
}
