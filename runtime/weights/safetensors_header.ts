/** The JSON header of a safetensors file, checked for consistency with itself and the file. */

import { JsonError, parseJson } from "../../spec/parse_json.ts";
import { shown } from "../../spec/shown.ts";

/** A tensor in the header. `begin` counts from the end of the header. */
export interface HeaderTensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly bytes: number;
}

/** Bits per element of every dtype of the format. */
const BITS: { readonly [dtype: string]: number } = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  U16: 16,
  I16: 16,
  F16: 16,
  BF16: 16,
  U32: 32,
  I32: 32,
  F32: 32,
  U64: 64,
  I64: 64,
  F64: 64,
  C64: 64,
};

/** Parses and checks a header. `refuse` throws its argument; `dataBytes` is the length of the file after the header. */
export function parseHeader(
  header: Uint8Array,
  dataBytes: number,
  refuse: (state: string) => never,
): HeaderTensor[] {
  let text: string;
  let parsed: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(header);
    parsed = parseJson(text);
  } catch (error) {
    const state = error instanceof JsonError ? error.state : "is not JSON";
    return refuse(`its header ${state}`);
  }
  if (!isRecord(parsed)) return refuse("its header is not a JSON object");
  const twice = duplicateKey(text);
  if (twice !== undefined) {
    return refuse(`its header names '${shown(twice)}' twice`);
  }
  const tensors = Object.entries(parsed)
    .filter(([name]) => name !== "__metadata__")
    .map(([name, entry]) => parseEntry(name, entry, dataBytes, refuse));
  checkCoverage(tensors, dataBytes, refuse);
  return tensors;
}

function parseEntry(
  name: string,
  entry: unknown,
  dataBytes: number,
  refuse: (state: string) => never,
): HeaderTensor {
  const of = `its tensor '${shown(name)}'`;
  if (!isRecord(entry)) return refuse(`${of} is not a JSON object`);
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== "string" || !Object.hasOwn(BITS, dtype)) {
    return refuse(`${of} has the unknown dtype ${shownValue(dtype)}`);
  }
  if (!isSizes(shape)) {
    return refuse(
      `${of} has the shape ${shownValue(shape)}, which is not a list of sizes`,
    );
  }
  if (!isSizes(offsets) || offsets.length !== 2 || offsets[0]! > offsets[1]!) {
    return refuse(
      `${of} has the offsets ${
        shownValue(offsets)
      }, which are not a begin and an end`,
    );
  }
  const [begin, end] = offsets as [number, number];
  if (end > dataBytes) {
    return refuse(
      `${of} ends at byte ${end} of the data and the file has ${dataBytes}`,
    );
  }
  const bits = shape.reduce((n, size) => n * size, BITS[dtype]!);
  if (bits !== 8 * (end - begin)) {
    return refuse(
      `${of} is ${dtype} [${shown(shape.join(", "))}], which is ${
        bits / 8
      } bytes, and its offsets span ${end - begin}`,
    );
  }
  return { name, dtype, shape, begin, bytes: end - begin };
}

/** Checks that tensors cover the data without overlaps or holes. */
function checkCoverage(
  tensors: readonly HeaderTensor[],
  dataBytes: number,
  refuse: (state: string) => never,
): void {
  let end = 0;
  let last = "";
  const ordered = [...tensors].sort((a, b) =>
    a.begin - b.begin || a.bytes - b.bytes
  );
  for (const { name, begin, bytes } of ordered) {
    if (begin < end) {
      refuse(`its tensors '${shown(last)}' and '${shown(name)}' overlap`);
    }
    if (begin > end) {
      refuse(
        `bytes ${end} to ${begin} of the data, before tensor '${
          shown(name)
        }', belong to no tensor`,
      );
    }
    end = begin + bytes;
    last = name;
  }
  if (end !== dataBytes) {
    refuse(
      `its tensors end at byte ${end} of the data and the file has ${dataBytes}`,
    );
  }
}

/** The first repeated key of the outermost object; `JSON.parse` would silently use the last value. */
function duplicateKey(json: string): string | undefined {
  const seen = new Set<string>();
  let depth = 0;
  for (let at = 0; at < json.length; at++) {
    const character = json[at];
    if (character === "{" || character === "[") depth++;
    else if (character === "}" || character === "]") depth--;
    if (character !== '"') continue;
    const begin = at;
    at = endOfString(json, at);
    if (depth !== 1 || !isBeforeColon(json, at + 1)) continue;
    const key = JSON.parse(json.slice(begin, at + 1)) as string;
    if (seen.has(key)) return key;
    seen.add(key);
  }
  return undefined;
}

/** The closing quote of a JSON string. */
function endOfString(json: string, begin: number): number {
  let at = begin + 1;
  while (json[at] !== '"') at += json[at] === "\\" ? 2 : 1;
  return at;
}

function isBeforeColon(json: string, from: number): boolean {
  let at = from;
  while (/\s/.test(json[at] ?? "")) at++;
  return json[at] === ":";
}

/** A value of the header in a message. */
function shownValue(value: unknown): string {
  return shown(JSON.stringify(value) ?? "undefined");
}

function isRecord(value: unknown): value is { [key: string]: unknown } {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) &&
    value.every((n) => Number.isSafeInteger(n) && n >= 0);
}
