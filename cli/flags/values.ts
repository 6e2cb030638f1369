/** Parsers of flag values: meshes, placements, adapters, token lists and numbers. */

import type { AdapterChoice } from "../../engine/devices.ts";
import type { LoraSettings } from "../../engine/lora/mod.ts";
import { GUARANTEED_LIMITS, MAX_AXIS, MAX_RANKS } from "../../spec/limits.ts";
import type { Mesh } from "../../spec/mesh.ts";

/** Maximum limit: no buffer is larger. */
const MAX_LIMIT = Number.MAX_SAFE_INTEGER;

/** An invalid command line, with exit code 2. */
export class UsageError extends Error {
  override name = "UsageError";
}

/** Throws UsageError for the first given flag. `why`: where flags do not apply, why not, and the remedy. */
export function refuseFlags(
  flags: { readonly [flag: string]: unknown },
  why: string,
): void {
  for (const [flag, value] of Object.entries(flags)) {
    if (value === undefined) continue;
    throw new UsageError(`Cannot use ${flag} ${why}`);
  }
}

/** Parses mesh axes in order, such as `ep=4,dp=2`. */
export function parseMesh(text: string): Mesh {
  const mesh = pairs(text, "--mesh", "AXIS=SIZE, such as ep=4,dp=2").map(
    ([name, value]) => {
      const size = /^[1-9]\d{0,6}$/.test(value) ? Number(value) : 0;
      if (size < 1 || size > MAX_RANKS) {
        throw new UsageError(
          `Cannot use --mesh '${text}': the size of '${name}' is '${value}'. Give a whole number from 1 to ${MAX_RANKS}`,
        );
      }
      return { name, size };
    },
  );
  return mesh;
}

/** Parses tensor axes and their mesh axes, such as `expert=ep,token=dp+ep`. */
export function parsePlace(text: string): { [axis: string]: string[] } {
  const form = "TENSORAXIS=MESHAXIS, such as expert=ep,token=dp+ep";
  return Object.fromEntries(
    pairs(text, "--place", form).map(([axis, value]) => {
      const over = value.split("+");
      if (!over.every((name) => NAME.test(name))) {
        throw new UsageError(`Cannot use --place '${text}'. Give ${form}`);
      }
      return [axis, over];
    }),
  );
}

/** Parses the settings of adapters, such as `rank=16,alpha=32,targets=attention+experts`. */
export function parseLora(text: string): LoraSettings {
  const form =
    "rank=RANK[,alpha=ALPHA][,targets=NAME+NAME], such as rank=16,alpha=32,targets=attention+experts";
  const found = new Map(pairs(text, "--lora", form));
  const { rank, alpha = rank, targets = "attention+experts", ...others } =
    Object.fromEntries(found);
  const [unknown] = Object.keys(others);
  if (unknown !== undefined || !/^\d+$/.test(rank ?? "")) {
    throw new UsageError(`Cannot use --lora '${text}'. Give ${form}`);
  }
  return {
    rank: Number(rank),
    alpha: Number(alpha),
    targets: targets.split("+"),
  };
}

/** Parses `auto`, `cpu`, `native`, or numbers of adapters. */
export function parseAdapter(text: string): AdapterChoice {
  if (text === "auto" || text === "cpu" || text === "native") return text;
  if (!/^\d{1,4}(,\d{1,4})*$/.test(text)) {
    throw new UsageError(
      `Cannot use --adapter '${text}'. Give auto, cpu, native, or numbers from 'switchyard devices', such as 0,1`,
    );
  }
  return text.split(",").map(Number);
}

/** Parses `4GiB`, `500MB`, a number of bytes, or `auto`. */
export function parseMemory(text: string): number | "auto" {
  const found = text === "auto" ? text : bytesOf(text);
  if (found !== undefined) return found;
  throw new UsageError(
    `Cannot use --expert-memory '${text}'. Give bytes, such as 4GiB or 500MB, or auto`,
  );
}

/** Returns a parser of `4GiB`, `500MB` or a number of bytes. */
export function byteCount(flag: string): (text: string) => number {
  return (text) => {
    const found = bytesOf(text);
    if (found !== undefined) return found;
    throw new UsageError(
      `Cannot use ${flag} '${text}'. Give bytes, such as 4MiB or 500KB`,
    );
  };
}

function bytesOf(text: string): number | undefined {
  const found = /^(\d{1,15}(?:\.\d{1,9})?)(?:([KMGT])(i?)B)?$/.exec(text);
  const base = found?.[3] ? 1024 : 1000;
  const power = found?.[2] ? "KMGT".indexOf(found[2]) + 1 : 0;
  const bytes = found ? Math.floor(Number(found[1]) * base ** power) : 0;
  return bytes > 0 && Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** Parses the seed of `--random`. Default: 0. */
export function parseSeed(text: string | true): number {
  if (text === true) return 0;
  const seed = Number(text);
  if (/^\d+$/.test(text) && Number.isSafeInteger(seed)) return seed;
  throw new UsageError(
    `Cannot use --random '${text}'. Give a whole number as the seed, or none and the model before it`,
  );
}

/** Parses token ids, such as `1,2,3`. The empty text has none. */
export function parseTokens(text: string): number[] {
  if (!/^\d{1,9}(,\d{1,9})*$/.test(text)) {
    throw new UsageError(
      `Cannot use --tokens '${text}'. Give token ids, such as 1,2,3`,
    );
  }
  return text.split(",").map(Number);
}

/** Returns a parser of integers from `min` to `max`. */
export function integer(
  flag: string,
  min: number,
  max = 2 ** 32 - 1,
): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (
      !/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < min ||
      value > max
    ) {
      throw new UsageError(
        `Cannot use ${flag} '${text}'. Give a whole number from ${min} to ${max}`,
      );
    }
    return value;
  };
}

/** Returns a parser of numbers from 0 up. */
export function notNegative(flag: string): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || value < 0) {
      throw new UsageError(
        `Cannot use ${flag} '${text}'. Give a number of at least 0`,
      );
    }
    return value;
  };
}

/** Returns a parser of positive numbers up to `max`. */
export function positive(
  flag: string,
  max: number,
): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !(value > 0 && value <= max)) {
      throw new UsageError(
        `Cannot use ${flag} '${text}'. Give a number above 0, at most ${max}`,
      );
    }
    return value;
  };
}

/** Parses limits of a device, such as `maxBufferSize=4294967296`. */
export function parseLimits(text: string): { [limit: string]: number } {
  const form = "LIMIT=NUMBER, such as maxBufferSize=4294967296";
  return Object.fromEntries(
    pairs(text, "--limits", form).map(([name, value]) => {
      if (!Object.hasOwn(GUARANTEED_LIMITS, name)) {
        throw new UsageError(
          `Cannot use --limits '${text}': plans have no limit '${name}'. Give one of ${
            Object.keys(GUARANTEED_LIMITS).join(", ")
          }`,
        );
      }
      return [name, integer(`--limits ${name}`, 1, MAX_LIMIT)(value)];
    }),
  );
}

/** Returns a parser of a fixed set of words. */
export function oneOf<W extends string>(
  flag: string,
  words: readonly W[],
): (text: string) => W {
  return (text) => {
    const word = words.find((w) => w === text);
    if (word === undefined) {
      throw new UsageError(
        `Cannot use ${flag} '${text}'. Give ${words.join(", ")}`,
      );
    }
    return word;
  };
}

/** Returns a parser of a text of this pattern. */
export function matching(
  flag: string,
  pattern: string,
): (text: string) => string {
  return (text) => {
    if (new RegExp(pattern).test(text)) return text;
    throw new UsageError(
      `Cannot use ${flag} '${text}'. Give a text such as 0-10,11-23`,
    );
  };
}

/**
 * Returns the line that rank 0 prints for `launch` at the end. No other output contains its first character. `left`: a
 * requested end left work undone.
 */
export function finishLine(mark: string, { left = false } = {}): string {
  return `\x1e${mark}${left ? " left" : ""}`;
}

const NAME = /^[A-Za-z_][A-Za-z0-9_]*$/;

/** An axis, such as `expert` or `layers.3.moe.expert`. */
const AXIS = /^([A-Za-z0-9_.-]+\/)?[A-Za-z_][A-Za-z0-9_]*$/;

function pairs(
  text: string,
  flag: string,
  form: string,
): [string, string][] {
  const seen = new Set<string>();
  return text.split(",").map((pair) => {
    const [name, value, ...rest] = pair.split("=");
    if (!name || !AXIS.test(name) || !value || rest.length > 0) {
      throw new UsageError(`Cannot use ${flag} '${text}'. Give ${form}`);
    }
    if (seen.has(name)) {
      throw new UsageError(
        `Cannot use ${flag} '${text}': '${name}' appears twice. Give it once`,
      );
    }
    seen.add(name);
    return [name, value];
  });
}

/** Parses the number of cache pages of a rank and the positions per page, such as `512x16`. */
export function parsePages(
  text: string,
): { readonly count: number; readonly size: number } {
  const [count, size] = /^(\d+)x(\d+)$/.exec(text)?.slice(1)
    .map(integer("--pages", 1, MAX_AXIS)) ?? [];
  if (count !== undefined && size !== undefined) return { count, size };
  throw new UsageError(
    `Cannot use --pages '${text}'. Give pages and the positions of each, such as 512x16`,
  );
}
