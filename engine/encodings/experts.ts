/**
 * Matrices of experts that quantized checkpoints store separately, as the tensors of all experts that some model
 * families have: `experts.gate_up_proj`, gates first, and `experts.down_proj`.
 */

import { concatenated } from "../../spec/concatenated.ts";
import { rowSource, type StoredMatrix } from "./matrix.ts";
import { bytesIn, rowsOf } from "./read.ts";

const SEPARATE =
  /^(?<module>.*\.experts)\.(?<expert>\d+)\.(?<name>gate_proj|up_proj|down_proj)\.weight$/;

/** Tensors of all experts: the matrices of each expert. */
const STACKS = {
  gate_up_proj: ["gate_proj", "up_proj"],
  down_proj: ["down_proj"],
} as const;

/** The tensors of all experts that consist of some of the matrices. */
export function stackedExperts(
  matrices: readonly StoredMatrix[],
): StoredMatrix[] {
  const modules = new Map<string, Map<string, StoredMatrix>>();
  for (const matrix of matrices) {
    const { module, expert, name } = SEPARATE.exec(matrix.param)?.groups ?? {};
    if (module === undefined) continue;
    const known = modules.get(module) ?? new Map<string, StoredMatrix>();
    modules.set(module, known.set(`${expert}.${name}`, matrix));
  }
  return [...modules].flatMap(([module, known]) => {
    const experts = [...known.keys()]
      .filter((name) => name.endsWith(".down_proj")).length;
    return Object.entries(STACKS).flatMap(([name, names]) => {
      const pieces = Array.from(
        { length: experts },
        (_, expert) => names.map((name) => known.get(`${expert}.${name}`)),
      ).flat();
      return isUniform(pieces)
        ? [stackOf(pieces, { param: `${module}.${name}`, experts })]
        : [];
    });
  });
}

/** Whether there are matrices, and all exist and have the same form. */
function isUniform(
  pieces: readonly (StoredMatrix | undefined)[],
): pieces is readonly StoredMatrix[] {
  const form = (piece: StoredMatrix | undefined) =>
    piece &&
    [
      piece.rows,
      piece.columns,
      piece.element,
      piece.group,
      piece.scale,
      !piece.codes,
    ].join();
  return pieces.length > 0 &&
    pieces.every((piece) =>
      piece !== undefined && form(piece) === form(pieces[0])
    );
}

/** The rows of all matrices, which have the same form. */
function stackOf(
  pieces: readonly StoredMatrix[],
  { param, experts }: { readonly param: string; readonly experts: number },
): StoredMatrix {
  const { rows: height, columns, element, group, scale, codes } = pieces[0]!;
  const rows = pieces.length * height;
  /** Reads rows of the pieces with them, in order. */
  const across = async <T>(
    begin: number,
    end: number,
    read: (piece: StoredMatrix, begin: number, end: number) => Promise<T>,
  ): Promise<T[]> => {
    const parts: T[] = [];
    for (let first = begin; first < end;) {
      const start = first - first % height;
      const stop = Math.min(end, start + height);
      const piece = pieces[start / height]!;
      parts.push(await read(piece, first - start, stop - start));
      first = stop;
    }
    return parts;
  };
  const rowBytes = codes ? codes.bytes / height : 0;
  const source = codes && rowSource(codes.source.name, {
    rows,
    rowBytes,
    read: async (begin, end) =>
      concatenated(
        await across(
          begin,
          end,
          (piece, begin, end) => bytesIn(rowsOf(piece.codes!, begin, end)),
        ),
      ) as Uint8Array,
  });
  return {
    param,
    of: pieces.flatMap(({ of }) => of),
    rows,
    columns,
    experts,
    element,
    group,
    ...scale ? { scale } : {},
    ...codes && source
      ? { codes: { ...codes, source, offset: 0, bytes: source.size } }
      : {},
    read: async (part, begin, end) =>
      concatenated(
        await across(
          begin,
          end,
          (piece, begin, end) => piece.read(part, begin, end),
        ),
      ),
  };
}
