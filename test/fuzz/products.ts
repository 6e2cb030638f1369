/**
 * Classes `products`, `products-native`, `products-gpu` and `products-wgpu`: products with quantized activations match
 * the bits of their reference.
 */

import fc from "fast-check";
import {
  BLOCK_DTYPES,
  type Packing,
  PACKINGS,
  WORDS_DTYPES,
} from "../../spec/weights/packed.ts";
import {
  type Case,
  GUARDED,
  KINDS,
  productError,
  type Run,
  SIGNED,
  STORED,
  titleOf,
  UNSIGNED,
  type Variant,
} from "../helpers/q8_products.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";
import { type KernelTarget, WASM } from "./kernel.ts";

/** Tiles and arithmetic. */
const VARIANTS: readonly Variant[] = [
  GUARDED,
  SIGNED,
  UNSIGNED,
  { ...UNSIGNED, tile: { rows: 2, columns: 1, lanes: 16, split: 4 } },
  { ...SIGNED, tile: { rows: 1, columns: 2, lanes: 8 } },
  { ...UNSIGNED, tile: { ...UNSIGNED.tile, lanes: 4, split: 1, vector: 2 } },
];

/** A product with a variant of the kernel. */
interface ProductCase {
  readonly product: Case;
  readonly variant: number;
}

const CASES: fc.Arbitrary<ProductCase> = fc.record({
  product: fc.record({
    stored: fc.constantFrom(...STORED, ...BLOCK_DTYPES, ...WORDS_DTYPES),
    shape: fc.record({
      rows: fc.integer({ min: 1, max: 70 }),
      k: fc.integer({ min: 1, max: 12 }),
      columns: fc.integer({ min: 1, max: 70 }),
    }),
    kind: fc.nat(KINDS.length - 1),
  }),
  variant: fc.nat(VARIANTS.length - 1),
});

/** Multiplies k by the block length of the format. */
function withBlocks({ stored, shape, kind }: Case): Case {
  const { block }: Packing = PACKINGS[stored];
  const { elements = 64 } = block ?? {};
  return { stored, kind, shape: { ...shape, k: shape.k * elements } };
}

/** Random products on a target. */
export function productsClass(on: KernelTarget = WASM): FuzzClass<ProductCase> {
  let opened: ReturnType<KernelTarget["open"]> | undefined;
  const { portable = false } = on.options ?? {};
  return {
    name: on.name.replace("kernel", "products"),
    count: on === WASM ? 500 : 50,
    cases: CASES,
    async judge({ product, variant }) {
      const targets = await (opened ??= on.open());
      if (typeof targets === "string") return `not tried: ${targets}`;
      const of = withBlocks(product);
      const { block, inWords }: Packing = PACKINGS[of.stored];
      const base = VARIANTS[variant]!;
      const used: Variant = {
        ...base,
        ...block && !inWords ? { inside: "k" } : {},
        // The only arithmetic on GPUs: drivers may contract others to fused multiply-adds, and flush subnormal f16
        // numbers.
        ...portable ? { arithmetic: "guarded" } : {},
      };
      for (const [i, target] of targets.entries()) {
        const run: Run = async (kernel, buffers, groups) => {
          const bindings = Object.fromEntries(
            Object.entries(buffers).map((
              [name, words],
            ) => [name, words.slice()]),
          );
          await target.run(kernel, { bindings, groups });
          return bindings;
        };
        const differs = await productError(run, used, of);
        if (differs === undefined) continue;
        throw new Finding(`${titleOf(of)}: ${differs}, of target ${i}`);
      }
      return on.equal;
    },
    close: async () => {
      const targets = await opened;
      opened = undefined;
      if (typeof targets !== "object") return;
      for (const target of targets) await target.close?.();
    },
  };
}
