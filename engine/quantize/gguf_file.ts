/** Writes a checkpoint as a GGUF file, tensor by tensor. */

import { readTensor, type TensorEntry } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import { sum } from "../../spec/sum.ts";
import type { GgufArchitecture } from "../gguf/architecture.ts";
import { ARCHITECTURES } from "../gguf/architectures.ts";
import { type GgufName, ggufName, textName } from "../gguf/names.ts";
import { isBlockType } from "../gguf/blocks.ts";
import { rowSource } from "../encodings/matrix.ts";
import { interleaved } from "../gguf/interleaved.ts";
import {
  groupedHead,
  type ValueHeads,
  withHeads,
} from "../gguf/value_heads.ts";
import type { LatentRows } from "../gguf/latent.ts";
import { withProducts } from "../gguf/products.ts";
import { elementsOf, withValues } from "../gguf/values.ts";
import {
  ggufHead,
  type GgufValues,
  paddingAfter,
  type WrittenTensor,
} from "../gguf/write.ts";
import { inOrder } from "../in_order.ts";
import type { Encoder } from "./encode.ts";
import { type Held, partsOf } from "./fused.ts";
import { columnsOf, isInteger, piecesOf, type SourceTensor } from "./source.ts";
import { blockRows, type BlockTensor } from "./stored.ts";
import { type Rule, ruleOf } from "../../spec/weights/quantize_targets.ts";
import {
  blockType,
  fittingType,
  INTEGERS,
  type NumberedType,
  writtenType,
} from "./types.ts";

/** Returns the weights of a matrix's columns. Undefined if they are unknown. */
export type Importance = (
  { name, fused }: Pick<SourceTensor, "name" | "fused">,
) => Float32Array | undefined;

/** Numbers of heads and their sizes. */
export interface HeadSizes {
  /** Numbers of query heads and of key heads, by their keys. */
  readonly heads: { readonly [key: string]: number };
  readonly valueHeads: ValueHeads;
  /** Rows of a head in the keys and values of latent attention. */
  readonly latent: LatentRows;
  /** Groups of a Mamba-2 layer. */
  readonly groups: number;
}

/** A tensor of a file, and its source tensors: several if experts are stacked. */
export interface GgufPart extends WrittenTensor {
  readonly parts: readonly SourceTensor[];
  readonly of: GgufName;
  readonly stored: NumberedType;
}

/** Returns the row of a model. Throws DataError for an architecture that is not in the table. */
export function architectureFor(
  architecture: string,
): { readonly name: string; readonly row: GgufArchitecture } {
  const found = Object.entries(ARCHITECTURES).find(([, row]) =>
    [row.architecture, ...row.others ?? []].includes(architecture)
  );
  if (found) return { name: found[1].name ?? found[0], row: found[1] };
  throw new DataError(
    `Cannot write a GGUF file of architecture '${
      shown(architecture)
    }': the known ones are ${
      [
        ...new Set(
          Object.values(ARCHITECTURES).flatMap((
            { architecture, others = [] },
          ) => [architecture, ...others]),
        ),
      ].join(", ")
    }. Give a folder for --out, with --to fp8 or --to mxfp4`,
  );
}

/** Returns the tensors of the file. Throws DataError for a tensor without a GGUF name. */
export function ggufTensorsOf(
  tensors: readonly SourceTensor[],
  row: GgufArchitecture,
  { rules, defaults, sizes }: {
    readonly rules: readonly Rule[];
    /** Rules of the format, after those. */
    readonly defaults: readonly Rule[];
    readonly sizes: HeadSizes;
  },
): GgufPart[] {
  const held: Held = {};
  const groups = new Map<string, [GgufName, SourceTensor][]>();
  const put = (of: GgufName, tensor: SourceTensor) =>
    groups.set(of.gguf, [...groups.get(of.gguf) ?? [], [of, tensor]]);
  const names = new Set(tensors.map(({ name }) => textName(name)));
  const nameOf = (name: string) => ggufName(row, name, (of) => names.has(of));
  const parts = withProducts(
    tensors,
    (name) => nameOf(name)?.product === true,
  ).flatMap((tensor) => partsOf(tensor, row, { sizes, held }));
  for (const tensor of parts) {
    const of = nameOf(tensor.name);
    if (of === undefined) {
      throw new DataError(
        `Cannot write a GGUF file: tensor '${
          shown(tensor.name)
        }' has no name in files of its architecture. Give a folder for --out`,
      );
    }
    put(of, tensor);
  }
  const embeddings = groups.get("token_embd.weight");
  if (!row.ties && !groups.has("output.weight") && embeddings) {
    const [of, tensor] = embeddings[0]!;
    put({ ...of, gguf: "output.weight" }, {
      ...tensor,
      name: "lm_head.weight",
    });
  }
  checkRules(rules, [...groups.values()].flat().map(([, tensor]) => tensor));
  return [...groups.values()].map((found) => {
    const parts = found
      .sort(([a], [b]) => (a.expert ?? 0) - (b.expert ?? 0))
      .map(([, tensor]) => tensor);
    const [[of]] = found as [[GgufName, SourceTensor]];
    const [tensor] = parts as [SourceTensor];
    const stored = typeOf(tensor, [...rules, ...defaults]);
    const shape = of.padded ? [sizes.heads[of.padded]!] : tensor.shape;
    const stacked = of.expert === undefined ? shape : [parts.length, ...shape];
    const elements = elementsOf(stacked);
    return {
      name: of.gguf,
      shape: of.row
        ? shape.slice(1)
        : of.middle && shape.length > 1
        ? [shape[0]!, ...shape.slice(2)]
        : of.filed
        ? filedShape(elements, of.filed === "groups" ? sizes.groups : elements)
        : stacked,
      type: stored.number,
      bytes: isBlockType(stored)
        ? elements / stored.elements * stored.bytes
        : elements * stored.bytes,
      parts,
      of,
      stored,
    };
  });
}

function filedShape(elements: number, rows: number): number[] {
  return [rows, elements / rows];
}

/** Throws DataError for a rule that matches no tensor, such as one with names of GGUF files. */
function checkRules(
  rules: readonly Rule[],
  tensors: readonly SourceTensor[],
): void {
  const useless = rules.find((rule) =>
    tensors.every(({ name }) => ruleOf([rule], name) === undefined)
  );
  if (useless === undefined) return;
  throw new DataError(
    `Cannot use rule '${
      shown(`${useless.pattern}=${useless.type}`)
    }': it matches no tensor. Use names such as '${shown(tensors[0]!.name)}'`,
  );
}

function typeOf(tensor: SourceTensor, rules: readonly Rule[]): NumberedType {
  const rule = tensor.quantizable ? ruleOf(rules, tensor.name) : undefined;
  if (rule === undefined) {
    return isInteger(tensor) ? INTEGERS : writtenType("F32");
  }
  if (rule.type === "keep" && tensor.blocks) {
    return blockType(tensor.blocks.type);
  }
  return fittingType(
    writtenType(rule.type === "keep" ? tensor.dtype : rule.type),
    columnsOf(tensor),
  );
}

/** A vector that no parameter has. */
export function addedVector(
  name: string,
  elements: readonly number[],
): GgufPart {
  const data = new Uint8Array(Float32Array.from(elements).buffer);
  const stored = writtenType("F32");
  const of = { name, gguf: name, expert: undefined };
  const shape = [elements.length];
  const source = rowSource(name, {
    rows: 1,
    rowBytes: data.length,
    read: () => Promise.resolve(data),
  });
  const tensor = {
    name,
    dtype: "F32",
    shape,
    source,
    offset: 0,
    bytes: data.length,
    quantizable: false,
    table: false,
    ofExperts: false,
  };
  const { number: type } = stored;
  return { name, shape, type, bytes: data.length, parts: [tensor], of, stored };
}

/** Returns the number of bytes after the head. */
export function ggufBodyBytes(tensors: readonly GgufPart[]): number {
  return sum(
    tensors.map(({ bytes }) => bytes + paddingAfter(bytes).length),
  );
}

/** Options of writing tensors. */
export interface GgufBytesOptions {
  readonly importance: Importance;
  readonly sizes: HeadSizes;
  readonly encoder: Encoder;
  /** Called with the number of bytes of each part after the head. */
  readonly onProgress: (bytes: number) => void;
}

/** Yields the bytes of the file. Weights are read in pieces; tensors of integers are small. */
export async function* ggufBytes(
  keys: GgufValues,
  tensors: readonly GgufPart[],
  options: GgufBytesOptions,
): AsyncGenerator<Uint8Array> {
  yield ggufHead(keys, tensors);
  const parts = inOrder(partsOfBody(tensors, options), options.encoder.atOnce);
  for await (const part of parts) {
    options.onProgress(part.length);
    yield part;
  }
}

/** Yields actions that return the parts of the file after its head. */
async function* partsOfBody(
  tensors: readonly GgufPart[],
  { importance, sizes, encoder }: GgufBytesOptions,
): AsyncGenerator<() => Promise<Uint8Array>> {
  const ready = (bytes: Uint8Array) => () => Promise.resolve(bytes);
  for (const { parts, stored, bytes, of } of tensors) {
    for (const part of parts) {
      if (isInteger(part)) {
        const { data } = await readTensor(part);
        const { buffer, byteOffset, byteLength } = data;
        yield ready(new Uint8Array(buffer, byteOffset, byteLength));
        continue;
      }
      const blocks = sameBlocks(part, of, { sizes, stored });
      if (blocks) {
        for await (const rows of blockRows(blocks)) yield ready(rows);
        continue;
      }
      const filed = asFiled(part, of, {
        ...sizes,
        elements: elementsOf(part.shape),
      });
      const task = {
        format: { file: stored.name },
        columns: columnsOf(filed),
        importance: importance(part),
      };
      for await (const values of piecesOf(filed)) {
        yield async () => (await encoder.encode({ ...task, values })).codes;
      }
    }
    yield ready(paddingAfter(bytes));
  }
}

/** The blocks of a tensor with the rows and columns of a file, if the checkpoint has them in the type of the file. */
function sameBlocks(
  { blocks, shape }: SourceTensor,
  of: GgufName,
  { sizes, stored }: {
    readonly sizes: HeadSizes;
    readonly stored: NumberedType;
  },
): BlockTensor | undefined {
  if (
    !blocks || of.values || !isBlockType(stored) || stored.block !== blocks.type
  ) {
    return undefined;
  }
  // Heads of fewer columns than a block are decoded.
  const divided = of.tiled === "columns" &&
    sizes.valueHeads.valueDim % stored.elements !== 0;
  return divided
    ? undefined
    : asFiled(blocks, of, { ...sizes, elements: elementsOf(shape) });
}

/** A tensor, or its blocks, with the rows, columns and values of a file. `elements`: of the tensor. */
function asFiled<T extends TensorEntry>(
  part: T,
  { interleaved: key, tiled, values, padded }: GgufName,
  { heads, valueHeads, elements }: HeadSizes & { readonly elements: number },
): T {
  const unit = valueHeads.valueDim * part.bytes / elements;
  const ordered = key
    ? interleaved(part, part.shape[0]! / heads[key]!)
    : tiled
    ? withHeads(part, groupedHead, { tiled, heads: valueHeads, unit })
    : part;
  if (!values) return ordered;
  const length = padded ? heads[padded]! : elements;
  return withValues(ordered, { values, direction: "write", length });
}
