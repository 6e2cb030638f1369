/** Saved tunings in a file: tables by device. */

import {
  DataError,
  MachineError,
  type MatmulTile,
  MOST_RESULTS,
  tileHeight,
  tileName,
  type TuningTable,
} from "../../compiler/mod.ts";
import { JsonError, parseJson } from "../../spec/parse_json.ts";
import type { FileSystem } from "../files.ts";

/** Tables by adapter and driver. */
export type SavedTunings = { readonly [computer: string]: TuningTable };

/** Version of the file. Tables of other versions are ignored, because kernels have changed. */
const VERSION = 2;

/**
 * Reads saved tunings. Empty if the file does not exist or has another version. An unreadable file is ignored: `notice`
 * receives the reason, and the next tuning replaces it.
 */
export async function readTunings(
  files: FileSystem,
  path: string,
  { notice }: { readonly notice?: (text: string) => void } = {},
): Promise<SavedTunings> {
  try {
    return await parseTunings(files, path);
  } catch (error) {
    if (!(error instanceof DataError || error instanceof MachineError)) {
      throw error;
    }
    notice?.(`${error.message}. This run does without tunings`);
    return {};
  }
}

async function parseTunings(
  files: FileSystem,
  path: string,
): Promise<SavedTunings> {
  if (await files.stat(path) === undefined) return {};
  const refuse = (state: string) =>
    new DataError(
      `Cannot read tunings from '${path}': ${state}. Remove the file, or run 'switchyard tune' again`,
    );
  let document: unknown;
  try {
    document = parseJson(await files.readText(path));
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    throw refuse(`it ${error.state}`);
  }
  const { version, tunings } = (document ?? {}) as {
    version?: unknown;
    tunings?: unknown;
  };
  if (version !== VERSION) return {};
  if (!isRecord(tunings) || !Object.values(tunings).every(isTable)) {
    throw refuse("its tables are not tables of tiles");
  }
  const large = Object.values(tunings as SavedTunings).flatMap(tilesOf)
    .find(({ rows, columns }) => 2 * rows * columns > MOST_RESULTS);
  if (large) {
    throw refuse(
      `tile ${tileName(large)} has more than ${
        MOST_RESULTS / 2
      } results a lane`,
    );
  }
  return tunings as SavedTunings;
}

/**
 * Saves a table with those of other adapters; older tiles of the same adapter are retained unless they were tuned
 * again.
 */
export async function keepTuning(
  files: FileSystem,
  path: string,
  { computer, tuning }: {
    readonly computer: string;
    readonly tuning: TuningTable;
  },
): Promise<void> {
  const saved = await readTunings(files, path);
  const before = saved[computer];
  const tunings = {
    ...saved,
    [computer]: {
      ...before,
      ...tuning,
      // Tiles of grouped matmuls depend on the height of that table's tile.
      matmuls: heightOf(before) === heightOf(tuning)
        ? { ...before?.matmuls, ...tuning.matmuls }
        : tuning.matmuls ?? {},
    },
  };
  const text = JSON.stringify({ version: VERSION, tunings }, null, 2) + "\n";
  await files.write(path, [new TextEncoder().encode(text)]);
}

function heightOf(table: TuningTable | undefined): number | undefined {
  return table?.matmul && tileHeight(table.matmul);
}

function isRecord(value: unknown): value is { [key: string]: unknown } {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isTable(value: unknown): value is TuningTable {
  if (!isRecord(value)) return false;
  const { matmul, matmuls, attention } = value;
  return (matmul === undefined || isTile(matmul)) &&
    (matmuls === undefined ||
      isRecord(matmuls) && Object.values(matmuls).every(isTile)) &&
    (attention === undefined || isCount(attention, 8));
}

function tilesOf(
  { matmul, pair, matmuls }: TuningTable,
): readonly MatmulTile[] {
  const named = [matmul, pair].filter((tile) => tile !== undefined);
  const classes = typeof matmuls === "object" ? Object.values(matmuls) : [];
  return [...named, ...classes];
}

function isTile(value: unknown): value is MatmulTile {
  if (!isRecord(value)) return false;
  const { rows, columns, lanes, split = 1, left = "registers" } = value;
  const { right = "scalar", code = "large" } = value;
  return isCount(rows, 64) && isCount(columns, 64) && columns % 2 === 0 &&
    isCount(lanes, 256) && isCount(split, 64) && lanes % split === 0 &&
    (left === "registers" || left === "workgroup") &&
    ["scalar", "vector", "workgroup"].includes(right as string) &&
    ["large", "small"].includes(code as string);
}

function isCount(value: unknown, max: number): value is number {
  return Number.isInteger(value) && (value as number) >= 1 &&
    (value as number) <= max;
}
