/** Buffers of packed parameters, whose elements share words along the contracted axis. */

import { Q8_BLOCK, q8SumOf } from "../../../../spec/weights/activations.ts";
import { ModelError } from "../../../../spec/errors.ts";
import type { FileDType, StoredDType } from "../../../../spec/dtype.ts";
import {
  BLOCK_DTYPES,
  isPackedDType,
  type PackedDType,
  packedDTypesOf,
  type Packing,
  PACKINGS,
  repackedDTypes,
  type ScaleKind,
  SCALES,
  wordsDType,
} from "../../../../spec/weights/packed.ts";
import type { NodeOf } from "../../../graph/graph.ts";
import { localName } from "../../../graph/sharding.ts";
import type { LocalAxis } from "../../../sharding/local_axes.ts";
import type { Placed } from "../../../sharding/placed.ts";
import type { ParamLayout } from "../../param_layout.ts";
import { isUneven } from "../../../sharding/lengths.ts";
import { addBuffer, type Lowering } from "../context.ts";

/** Whether each rank's items of an axis are complete groups of neighbours, equally many on each rank. */
export function inGroups(
  placed: Placed,
  axis: LocalAxis,
  per: number,
): boolean {
  const { size, table } = axis;
  if (size % per !== 0 || isUneven(placed, axis)) return false;
  return typeof table === "object"
    ? table.every((ids) =>
      ids.every((id, i) =>
        id % per === i % per && id - i % per === ids[i - i % per]
      )
    )
    : table !== "cyclic";
}

/** Adjacent elements of the contracted axis that ranks do not split: a block, or the elements of a scale or a word. */
function undivided(stored: PackedDType): number {
  const { block, perWord, perScale = perWord }: Packing = PACKINGS[stored];
  return block?.elements ?? perScale;
}

/** The encodings of a matrix for ranks that split its groups or blocks: with smaller groups, or repacked. */
function dividedDTypes(
  stored: PackedDType,
  columns: number,
): readonly PackedDType[] {
  const { element, perScale, scale, block }: Packing = PACKINGS[stored];
  const file = block &&
    BLOCK_DTYPES.find((name) =>
      name === stored || wordsDType(name, columns) === stored
    );
  if (file) return repackedDTypes(file, columns);
  return perScale === undefined
    ? []
    : packedDTypesOf(element, { columns, group: perScale, scale });
}

/** The encoding with the largest groups or blocks that sharding does not split. `stored` if there is none. */
export function inWholeGroups(
  stored: FileDType,
  [along = ""]: readonly string[],
  placed: Placed,
): FileDType {
  const axis = placed.axes[along];
  if (!axis || !isPackedDType(stored)) return stored;
  return [stored, ...dividedDTypes(stored, axis.total)].find((dtype) =>
    inGroups(placed, axis, undivided(dtype))
  ) ?? stored;
}

/**
 * The axis of a packed parameter along which kernels decode words, if `over` is one axis: that of a contraction or of
 * the rows of a table. Undefined if there is none and the parameter also exists as f32. Throws ModelError if it does
 * not.
 */
export function packedAxis(
  node: NodeOf<"param">,
  over: readonly string[],
  { placed, stored, q8, decodes }: {
    readonly placed: Placed;
    readonly stored: PackedDType;
    readonly q8: boolean;
    /** Whether the parameter also exists as f32. */
    readonly decodes: boolean;
  },
): string | undefined {
  const { title } = PACKINGS[stored];
  const whole = undivided(stored);
  const [along = ""] = over;
  const axis = placed.axes[along];
  const inGroup = q8 ? Math.max(whole, Q8_BLOCK) : whole;
  if (over.length === 1 && axis && inGroups(placed, axis, inGroup)) {
    return along;
  }
  if (q8) {
    throw new ModelError(
      `Cannot quantize the activations of parameter '${node.params.name}': ranks do not have whole blocks of ${inGroup} of axis '${along}'. Shard it over fewer ranks, or use f32 activations`,
      node.span,
    );
  }
  if (decodes) return undefined;
  throw new ModelError(
    `Cannot use parameter '${node.params.name}' stored as ${title}: it must be a table, or the right operand of a contraction, with one axis of a multiple of ${whole} on each rank. Store it in 16 bits`,
    node.span,
  );
}

/**
 * Whether a contraction with a parameter of integers has quantized activations, on every mesh: of whole blocks of one
 * axis.
 */
export function takesQ8(
  over: readonly string[],
  { placed, stored }: { readonly placed: Placed; readonly stored: PackedDType },
): boolean {
  const packing: Packing = PACKINGS[stored];
  const axis = placed.axes[over[0] ?? ""];
  return over.length === 1 && axis !== undefined &&
    q8SumOf(packing) !== undefined &&
    axis.total % Math.max(packing.perScale ?? 0, Q8_BLOCK) === 0;
}

/** The plan axis of groups of neighbours of an axis, and its size on a rank. */
function groupAxis(
  lowering: Lowering,
  axis: string,
  { name, per }: { readonly name: string; readonly per: number },
): { readonly axis: string; readonly size: number; readonly total: number } {
  const { of, over, size, total, table } = lowering.placed.axes[axis]!;
  // Parameters with other encodings have other group sizes.
  const groups = `${over.length > 0 ? of : axis}_${name}${per}`;
  const local = localName(groups, over);
  lowering.draft.blockAxes.set(groups, { size: total / per });
  if (over.length > 0) {
    lowering.draft.blockAxes.set(local, {
      size: total / per,
      of: groups,
      over,
      table: typeof table === "object"
        ? table.map((ids) =>
          ids.filter((id) => id % per === 0).map((id) => id / per)
        )
        : table!,
    });
  }
  return { axis: local, size: size / per, total: total / per };
}

/**
 * The buffers of a packed parameter whose file has the contracted axis last: words of elements, scales, and factors of
 * rows. In filed layout, they have the bytes of the file.
 */
export function addPacked(
  lowering: Lowering,
  node: NodeOf<"param">,
  { axes, stored, along, filed = false, q8 = false }:
    & Pick<ParamLayout, "axes" | "filed" | "q8">
    & {
      readonly stored: PackedDType;
      readonly along: string;
    },
): void {
  const { name, stack } = node.params;
  const { placed } = lowering;
  const others = axes.filter((axis) => axis !== along);
  const at = axes.indexOf(along);
  const [batch, columns] = filed
    ? [[], others]
    : [axes.slice(0, at), axes.slice(at + 1)];
  const packing: Packing = PACKINGS[stored];
  const { names, perWord, perScale, scale } = packing;
  const group = (name: string, per: number) =>
    groupAxis(lowering, along, { name, per });
  const add = (
    ending: string,
    dtype: StoredDType,
    blocks: readonly ReturnType<typeof groupAxis>[],
  ) => {
    const buffer = `${name}${ending}`;
    addBuffer(lowering, {
      name: buffer,
      kind: "weight",
      dtype,
      axes: [
        ...batch,
        ...filed ? columns : [],
        ...blocks.map(({ axis, size }) => ({ axis, size })),
        ...filed ? [] : columns,
      ],
    });
    const all = [...batch, ...columns];
    const inFile = stack === undefined ? all : all.slice(1);
    lowering.draft.weights.push({
      buffer,
      source: buffer,
      stored: dtype,
      axes: [...inFile, ...blocks.map(({ axis }) => axis)],
      shape: [
        ...inFile.map((axis) => placed.axes[axis]!.total),
        ...blocks.map(({ total }) => total),
      ],
      ...stack === undefined ? {} : { stack: all[0]! },
      ...q8 && ending === names.elements ? { activations: "q8" } : {},
    });
    return buffer;
  };
  const { elements, scales, offsets, factors } = names;
  const stores = (buffer: string, others: { readonly scales: string }) =>
    lowering.values.storages.set(node, {
      buffer,
      packed: { stored, along, ...others },
      dtype: "u32",
      axes,
    });
  const width = (part: string, size: number) =>
    word(lowering, `${along}_${part}`, size);
  if (packing.block) {
    const { elements: per, bytes } = packing.block;
    const buffer = add(elements, packing.inWords ? "u32" : "u8", [
      group("block", per),
      packing.inWords ? width("word", bytes / 4) : width("byte", bytes),
    ]);
    stores(buffer, { scales: buffer });
    return;
  }
  const block = perScale === undefined ? undefined : group("block", perScale);
  const inner = perScale === undefined
    ? [group("word", perWord)]
    : [block!, width("word", perScale / perWord)];
  const scaled = [block ?? width("scale", 1)];
  const { stored: scaleType, beforeZero }: ScaleKind = SCALES[scale];
  const elementBuffer = add(elements, "u32", inner);
  const scaleBuffer = add(scales, scaleType, scaled);
  stores(elementBuffer, {
    scales: scaleBuffer,
    ...beforeZero ? { offsets: scaleBuffer } : {},
    ...offsets === undefined ? {} : { offsets: add(offsets, "f32", scaled) },
    ...factors === undefined ? {} : { factors: add(factors, "f32", []) },
  });
}

/** An axis of the words of a block, or of the scale of a row: replicated. */
function word(
  lowering: Lowering,
  axis: string,
  size: number,
): ReturnType<typeof groupAxis> {
  const named = `${axis}${size}`;
  lowering.draft.blockAxes.set(named, { size });
  return { axis: named, size, total: size };
}
