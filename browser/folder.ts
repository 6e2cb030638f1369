/** Checkpoint files in a browser: fetched by byte ranges, or provided by the visitor. */

import { type FetchBytes, withCache } from "./block_cache.ts";
import type { FileSource } from "../runtime/weights/file_source.ts";
import { DataError } from "../spec/errors.ts";

/** The files of a checkpoint by name. */
export interface Folder {
  /** For people. */
  readonly name: string;
  /** Opens a file for reading. Undefined if it does not exist. */
  open(file: string): Promise<FileSource | undefined>;
}

/** Options for fetching a folder. */
export interface WebFolderOptions {
  /**
   * Store data fetched by ranges in the browser's storage for this site (OPFS). It is used again until the address, the
   * length, or the `ETag` or `Last-Modified` of a file changes. Default: false.
   */
  readonly cache?: boolean;
}

/**
 * Returns a folder of a web server that supports byte ranges: each rank reads only the needed parts of a weight file.
 * Errors: DataError for a file that cannot be fetched.
 */
export function webFolder(
  url: string | URL,
  { cache = false }: WebFolderOptions = {},
): Folder {
  const { location } = globalThis as { location?: { readonly href: string } };
  const base = new URL(url, location?.href);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return {
    name: base.href,
    async open(file) {
      const address = new URL(file, base);
      // Shows the length of the file and whether the server supports ranges.
      const response = await fetchRange(address, 0, 1);
      if (response.status === 404) return undefined;
      const total = response.headers.get("content-range")?.split("/")[1];
      if (total !== undefined) {
        await response.body?.cancel();
        const { headers } = response;
        const state = headers.get("etag") ?? headers.get("last-modified");
        const version = `${total} ${state ?? ""}`;
        const fetched: FetchBytes = async (offset, length) =>
          await bytesOf(await fetchRange(address, offset, length));
        return inBlocks({ name: address.href, size: Number(total) }, {
          fetched: cache
            ? await withCache(fetched, { address: address.href, version })
            : fetched,
          // Stored data is found again for any ranges that ranks of another mesh read.
          longest: cache ? Infinity : BLOCK,
        });
      }
      const content = await bytesOf(response);
      return sourceOf(
        file,
        content.length,
        (from, to) => Promise.resolve(content.slice(from, to)),
      );
    },
  };
}

/** Minimum bytes of one fetch, and number of such blocks that are kept per file: ranks read the same parts. */
const BLOCK = 1 << 20, BLOCKS = 16;

function inBlocks(
  { name, size }: { readonly name: string; readonly size: number },
  { fetched, longest }: {
    readonly fetched: FetchBytes;
    /** Maximum bytes of a read through blocks. Larger reads are fetched directly. */
    readonly longest: number;
  },
): FileSource {
  const blocks = new Map<number, Promise<Uint8Array>>();
  const block = (start: number): Promise<Uint8Array> => {
    const bytes = blocks.get(start) ??
      fetched(start, Math.min(BLOCK, size - start));
    // The last entry is the most recently used one.
    blocks.delete(start);
    blocks.set(start, bytes);
    // A failed block is fetched again on the next request.
    bytes.catch(() => blocks.get(start) === bytes && blocks.delete(start));
    for (const [oldest] of blocks) {
      if (blocks.size <= BLOCKS) break;
      blocks.delete(oldest);
    }
    return bytes;
  };
  return {
    name,
    size,
    async read(offset, length) {
      if (length === 0) return new Uint8Array();
      if (length > longest) return await fetched(offset, length);
      const bytes = new Uint8Array(length);
      for (let at = offset; at < offset + length;) {
        const start = at - at % BLOCK;
        const from = (await block(start)).subarray(at - start);
        const part = from.subarray(0, offset + length - at);
        bytes.set(part, at - offset);
        if (part.length === 0) break;
        at += part.length;
      }
      return bytes;
    },
  };
}

/** Returns selected or dropped files as a folder, such as those of `<input type="file" multiple>`. */
export function fileFolder(files: Iterable<File>): Folder {
  const byName = new Map([...files].map((file) => [file.name, file]));
  return {
    name: "the given files",
    open(name) {
      const file = byName.get(name);
      return Promise.resolve(
        file &&
          sourceOf(
            name,
            file.size,
            async (from, to) =>
              new Uint8Array(await file.slice(from, to).arrayBuffer()),
          ),
      );
    },
  };
}

/** Returns the text of a file. Undefined if it does not exist. */
export async function readText(
  folder: Folder,
  file: string,
): Promise<string | undefined> {
  const source = await folder.open(file);
  return source &&
    new TextDecoder().decode(await source.read(0, source.size));
}

function sourceOf(
  name: string,
  size: number,
  read: (from: number, to: number) => Promise<Uint8Array>,
): FileSource {
  return {
    name,
    size,
    read: (offset, length) => read(offset, offset + length),
  };
}

async function fetchRange(
  url: URL,
  offset: number,
  length: number,
): Promise<Response> {
  const range = `bytes=${offset}-${offset + length - 1}`;
  let response: Response;
  try {
    response = await fetch(url, { headers: { range } });
  } catch (error) {
    throw new DataError(
      `Cannot fetch '${url.href}': ${
        String(error)
      }. Check the connection, and that the server lets this page read it`,
    );
  }
  if (response.ok || response.status === 404) return response;
  throw new DataError(
    `Cannot fetch '${url.href}': the server answers ${response.status} ${response.statusText}. Check the address`,
  );
}

async function bytesOf(response: Response): Promise<Uint8Array> {
  return new Uint8Array(await response.arrayBuffer());
}
