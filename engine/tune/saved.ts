/** Saved tunings in a file: tables by device. */

import {
  DataError,
  MachineError,
  type MatmulTile,
  MAX_RESULTS,
  tileHeight,
  tileName,
  type TuningTable,
} from "../../compiler/mod.ts";
import { deepestError, errorText } from "../../spec/document/schema_error.ts";
import { JsonError, parseJson } from "../../spec/parse_json.ts";
import type { FileSystem } from "../files.ts";
import { tuningErrors } from "../saved_validator.ts";

/** The variants that a tuner finds. */
export type FoundTuning = Pick<
  TuningTable,
  "matmul" | "pair" | "matmuls" | "attention"
>;

/** Found variants by adapter and driver. */
export type SavedTunings = { readonly [computer: string]: FoundTuning };

/** The file. Its schema is generated from this type. */
export interface TuningFile {
  readonly version: 2;
  readonly tunings: SavedTunings;
}

/** Version of the file. Files of other versions are ignored, because kernels have changed. */
const VERSION: TuningFile["version"] = 2;

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
  if ((document as Partial<TuningFile> | null)?.version !== VERSION) return {};
  const error = deepestError(tuningErrors(document));
  if (error) throw refuse(errorText(error));
  const { tunings } = document as TuningFile;
  const state = Object.values(tunings).flatMap(tilesOf).map(stateOf)
    .find((wrong) => wrong !== undefined);
  if (state !== undefined) throw refuse(state);
  return tunings;
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
  const { matmul, pair, attention } = tuning;
  const tunings: SavedTunings = {
    ...saved,
    [computer]: {
      ...before,
      ...(matmul && { matmul }),
      ...(pair && { pair }),
      ...(attention !== undefined && { attention }),
      // Tiles of grouped matmuls depend on the height of that table's tile.
      matmuls: heightOf(before) === heightOf(tuning)
        ? { ...before?.matmuls, ...tuning.matmuls }
        : tuning.matmuls ?? {},
    },
  };
  const file: TuningFile = { version: VERSION, tunings };
  const text = `${JSON.stringify(file, null, 2)}\n`;
  await files.write(path, [new TextEncoder().encode(text)]);
}

function heightOf(table: FoundTuning | undefined): number | undefined {
  return table?.matmul && tileHeight(table.matmul);
}

function tilesOf(
  { matmul, pair, matmuls = {} }: FoundTuning,
): readonly MatmulTile[] {
  return [matmul, pair, ...Object.values(matmuls)]
    .filter((tile) => tile !== undefined);
}

/** The problem of a tile besides its form. Undefined if there is none. */
function stateOf(tile: MatmulTile): string | undefined {
  const { rows, columns, lanes, split = 1 } = tile;
  if (lanes % split !== 0) {
    return `the ${lanes} lanes of tile ${
      tileName(tile)
    } are not divisible by ${split} teams`;
  }
  return 2 * rows * columns > MAX_RESULTS
    ? `tile ${tileName(tile)} has more than ${MAX_RESULTS / 2} results a lane`
    : undefined;
}
