/**
 * GGUF blocks rearranged for kernels that load aligned words: codes as in the file, then integers of scales and offsets
 * as bytes, then factors. Columns are adjacent, so the blocks of a row are not.
 */

import {
  type Block,
  Planes,
  readerOfScales,
  type ScalesReader,
} from "./blocks.ts";
import { sum } from "../sum.ts";

/** Factors are f32 if a block then has at most this multiple of its bytes in the file. */
const F32_LIMIT = 1.1;

function partsOf({ scales, offsets }: Block): NonNullable<Block["offsets"]>[] {
  return offsets ? [scales, offsets] : [scales];
}

/** The rearranged form of a block, or of two if a single f16 would not fill a word. */
export function inWords(file: Block): Block {
  const { elements, group, codes } = file;
  const parts = partsOf(file);
  const groups = elements / group;
  const fixed = sum(codes.map(({ bits }) => bits * elements / 8)) +
    sum(parts.map(({ integers }) => integers ? groups : 0));
  const wide = fixed + 4 * parts.length <= F32_LIMIT * file.bytes;
  const times = !wide && parts.length === 1 ? 2 : 1;
  let bytes = 0;
  const add = (count: number) => {
    bytes += count;
    return bytes - count;
  };
  // Sums that share words are adjacent, and four neighbours are in different bytes.
  const moved = codes.map(({ bits, stripe }) => ({
    at: add(bits * elements * times / 8),
    bits,
    stripe: Math.max(4, Math.min(stripe, group)),
  }));
  const planes = parts.map(({ integers }) =>
    integers && [{ at: add(groups), bits: 8, stripe: groups } as const]
  );
  const [scales, offsets] = parts.map((
    { negative },
    i,
  ): NonNullable<Block["offsets"]> => ({
    at: add(wide ? 4 : 2 * times),
    factor: wide ? "f32" : "f16",
    ...times > 1 ? { apart: 2 } : {},
    ...planes[i] ? { integers: { planes: planes[i], above: 0 } } : {},
    // The sign of an f32 is stored.
    ...negative && !wide ? { negative } : {},
  }));
  return {
    elements: elements * times as Block["elements"],
    bytes,
    element: file.element,
    group,
    codes: moved,
    ...file.above === undefined ? {} : { above: file.above },
    scales: scales!,
    ...offsets ? { offsets } : {},
  };
}

/** Returns a function that rearranges the blocks of a file. It returns undefined if a factor is not finite. */
export function rearrangement(
  file: Block,
): (blocks: Uint8Array) => Uint8Array | undefined {
  const to = inWords(file);
  const times = to.elements / file.elements;
  const groups = file.elements / file.group;
  const numbers = new Uint8Array(groups);
  const isMoved = file.codes.every(({ stripe }, i) =>
    stripe === to.codes[i]!.stripe
  );
  const codes = file.codes.map(({ at, bits }, i) => ({
    at,
    to: to.codes[i]!.at,
    size: bits * file.elements / 8,
  }));
  const elements = new Uint8Array(file.elements);
  const [read, written] = [file, to].map(({ codes }) =>
    new Planes(codes, file.elements)
  ) as [Planes, Planes];
  const [from, wanted] = [partsOf(file), partsOf(to)];
  const parts = from.map((part, i) => {
    const { at, factor, integers } = wanted[i]!;
    const reader: ScalesReader = readerOfScales(part, groups);
    const numbersAt = integers && "planes" in integers
      ? integers.planes[0]!.at
      : 0;
    return { reader, from: part.at, at, factor, numbersAt };
  });
  return (blocks) => {
    const count = blocks.length / file.bytes;
    const made = new Uint8Array(count / times * to.bytes);
    const view = new DataView(made.buffer);
    for (let i = 0; i < count; i++) {
      const block = blocks.subarray(i * file.bytes, (i + 1) * file.bytes);
      const nth = i % times;
      const start = Math.floor(i / times) * to.bytes;
      for (const { at, to, size } of isMoved ? codes : []) {
        made.set(block.subarray(at, at + size), start + to + nth * size);
      }
      if (!isMoved) {
        read.read(block, elements);
        written.write(made.subarray(start, start + to.bytes), elements);
      }
      for (const { reader, from, at, factor, numbersAt } of parts) {
        const value = reader.factor(block);
        if (!Number.isFinite(value)) return undefined;
        if (factor === "f32") view.setFloat32(start + at, value, true);
        else {
          made.set(block.subarray(from, from + 2), start + at + 2 * nth);
        }
        if (reader.integers) {
          reader.integers(block, numbers);
          made.set(numbers, start + numbersAt);
        }
      }
    }
    return made;
  };
}
