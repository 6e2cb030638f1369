/** The source tensors for quantizing: which of them may lose precision, and their elements in pieces. */

import { type ParamFacts, paramFacts, trace } from "../../compiler/mod.ts";
import type { PublishedModel } from "../../models/mod.ts";
import {
  readTensor,
  type TensorDirectory,
  type TensorEntry,
} from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import { filedMatrices } from "../encodings/filed.ts";
import { viewsOf } from "../encodings/matrix.ts";
import { rowsOf } from "../encodings/read.ts";
import {
  type BlockTensor,
  storedBlocks,
  type StoredParts,
  storedParts,
} from "./stored.ts";

/** A tensor of a checkpoint. */
export interface SourceTensor extends TensorEntry {
  /** Whether it is a matrix that may be quantized. Routers, norms and vectors are not. */
  readonly quantizable: boolean;
  /** Whether it is only used for row lookups. */
  readonly table: boolean;
  /** Whether it belongs to experts. */
  readonly ofExperts: boolean;
  /** Its bytes in the checkpoint, if its elements are decoded. */
  readonly blocks?: BlockTensor;
  readonly stored?: StoredParts;
  /** The tensor of the checkpoint that it is a part of, with the same columns, and the number of its expert. */
  readonly fused?: { readonly tensor: string; readonly expert?: number };
}

/** Dtypes of weights and of integers in files. */
const FLOAT = ["F32", "F16", "BF16"], INTEGER = ["I32", "I64"];

/** Maximum number of elements in memory. */
const PIECE = 1 << 20;

/** Matches names with the number of an expert. */
function withoutExpert(name: string): string[] {
  const parts = name.split(".");
  return parts.flatMap((part, i) =>
    /^\d+$/.test(part)
      ? [[...parts.slice(0, i), "{}", ...parts.slice(i + 1)].join(".")]
      : []
  );
}

/** Bounds of models whose parameters are listed. */
const BOUNDS = { maxTokens: 1, maxSequences: 1, maxContext: 64 };

/**
 * Returns the tensors that are parameters of the model. `predictor`: also those of the layer that predicts a further
 * token, if the checkpoint has it; the family must declare it. Throws DataError if one is missing or of another dtype.
 */
export function sourceTensors(
  directory: TensorDirectory,
  { build }: Pick<PublishedModel, "build">,
  { where, predictor }: { readonly where: string; readonly predictor: boolean },
): SourceTensor[] {
  const tensors = withDecoded(directory);
  const params = paramFacts(trace(build(BOUNDS)));
  const further = predictor
    ? paramFacts(trace(build({ ...BOUNDS, next: { predicts: true } })))
    : [];
  const isThere = further.every(({ tensor }) => tensors.has(tensor));
  const byName = new Map<string, ParamFacts>(
    [...isThere ? further : [], ...params].map((param) => [
      param.name.replace(/\{\w+\}/, "{}"),
      param,
    ]),
  );
  const missing = params.find(({ tensor }) => !tensors.has(tensor));
  if (missing) {
    throw new DataError(
      `Cannot quantize '${where}': tensor '${missing.tensor}' is missing. Copy the file again, or check that config.json is the right one`,
    );
  }
  const scale = [...tensors.keys()].find((name) =>
    name.endsWith(".pre_quant_scale")
  );
  if (scale !== undefined) {
    throw new DataError(
      `Cannot quantize '${where}': tensor '${
        shown(scale)
      }' changes activations. Use another quantization of the model`,
    );
  }
  return [...tensors.values()].flatMap((entry): SourceTensor[] => {
    const param = byName.get(entry.name) ??
      withoutExpert(entry.name).map((name) => byName.get(name))
        .find((found) => found);
    if (param === undefined) return [];
    const integer = param.dtype === "i32";
    if (!(integer ? INTEGER : FLOAT).includes(entry.dtype)) {
      throw new DataError(
        `Cannot quantize '${where}': tensor '${
          shown(entry.name)
        }' is ${entry.dtype}. Give a checkpoint ${
          integer ? "with I32 or I64" : "whose weights are F32, F16 or BF16"
        }`,
      );
    }
    const [rows = 1] = entry.shape;
    const blocks = storedBlocks(tensors, entry.name);
    const stored = storedParts(tensors, entry.name);
    return [{
      ...entry,
      quantizable: param.use !== "other" && !param.router &&
        entry.shape.length > 1 && rows > 1,
      table: param.use === "table",
      ofExperts: param.expert !== undefined,
      ...blocks ? { blocks } : {},
      ...stored ? { stored } : {},
    }];
  });
}

/** Adds matrices that only kernels read, decoded. */
function withDecoded(tensors: TensorDirectory): TensorDirectory {
  const decoded = filedMatrices(tensors)
    .map((matrix) => viewsOf(matrix)[0]!)
    .filter(({ name, dtype }) => tensors.get(name)?.dtype !== dtype);
  return new Map([
    ...tensors,
    ...decoded.map((entry) => [entry.name, entry] as const),
  ]);
}

/** Whether the elements of a tensor are integers, such as the experts of token ids. They are stored in 32 bits. */
export function isInteger({ dtype }: TensorEntry): boolean {
  return INTEGER.includes(dtype);
}

/** Returns the columns of a tensor: its last axis. */
export function columnsOf({ shape }: TensorEntry): number {
  return shape.at(-1) ?? 1;
}

/** Yields the rows of a tensor in pieces of at least `together` rows. Throws DataError for a non-finite element. */
export async function* piecesOf(
  entry: TensorEntry,
  together = 1,
): AsyncGenerator<Float32Array> {
  const columns = columnsOf(entry);
  const rows = entry.shape.slice(0, -1).reduce((n, size) => n * size, 1);
  const each = together *
    Math.max(1, Math.floor(PIECE / (columns * together)));
  const matrix = { ...entry, shape: [rows, columns] };
  for (let begin = 0; begin < rows; begin += each) {
    const end = Math.min(rows, begin + each);
    const { data } = await readTensor(rowsOf(matrix, begin, end));
    let bad = 0;
    while (bad < data.length && Number.isFinite(data[bad])) bad++;
    if (bad < data.length) {
      throw new DataError(
        `Cannot quantize tensor '${
          shown(entry.name)
        }' of '${entry.source.name}': element ${
          begin * columns + bad
        } is not a finite number. Get the file again`,
      );
    }
    yield data as Float32Array;
  }
}
