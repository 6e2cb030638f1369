/** Prints kernels as C. Kernels whose workgroup size is not a multiple of the vector size use shorter vectors. */

import { load, lt, u32 } from "../../spec/kernel/build.ts";
import { GROUP_XZ } from "../../spec/kernel/make.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import { mergedParts } from "../../spec/kernel/merge.ts";
import { isSame } from "../../spec/same.ts";
import type { Program } from "../vector/ir.ts";
import { lowerKernel } from "../vector/lower.ts";
import { type Along, Emitter } from "./emit.ts";
import type { CFunction } from "./objects.ts";
import { GUARD_BYTES, vectorsInC } from "./vectors.ts";
import { Writer } from "./writer.ts";

/** This module. Its hash is part of the key of cached kernels. */
export const PRINTER = import.meta.url;

/** Options of printing. */
export interface PrintOptions {
  /** Maximum lanes of vectors; a power of two. */
  readonly lanes: number;
  /** `fma(a, b, c)` is rounded once if the processor has an instruction for it. Default: twice. */
  readonly fused?: boolean;
}

/** Prints a kernel as functions of type `kernel_function`, one per part of a merged kernel, in order. */
export function printKernel(
  kernel: Kernel,
  { lanes, fused = false }: PrintOptions,
): readonly CFunction[] {
  while (kernel.workgroupSize % lanes !== 0) lanes /= 2;
  let along: Along | undefined;
  const parts = mergedParts(kernel).map(({ end, kernel }) => {
    const program = lowerKernel(kernel, {
      lanes,
      vectorBytes: 4 * lanes,
      guardBytes: GUARD_BYTES,
      loops: "tiles",
      inMemory: "outliving",
    });
    const emitter = new Emitter(new Writer(), along);
    const body = bodyInC(program, emitter);
    along = emitter.along;
    return { end, body, scratch: program.scratch };
  });
  const traits = traitsInC(along, listOfTiles(kernel));
  return parts.map(({ end, body, scratch }) => ({
    prelude: vectorsInC({
      lanes,
      fused,
      bytes: /\b(v_dot|v_lookup|strided)/.test(body),
    }),
    text:
      `(const struct launch *launch, uint32_t first_group, uint32_t end_group, char *scratch, const volatile uint32_t *stop) {
${traits}${body}
}
`,
    scratch,
    end,
  }));
}

/** The number of the binding, from 1, whose first word is the number of workgroups along x and z with work. 0: none. */
function listOfTiles({ body, bindings }: Kernel): number {
  const [first] = body;
  if (body.length !== 1 || first?.op !== "if" || first.else) return 0;
  const isRead = (name: string) =>
    isSame(first.condition, lt(GROUP_XZ, load(name, u32(0), "u32")));
  return 1 +
    bindings.findIndex(({ name, access }) => access === "read" && isRead(name));
}

/** The statement that answers a call with an empty record. Empty without traits. */
function traitsInC(along: Along | undefined, tiles: number): string {
  if (!along && tiles === 0) return "";
  const { binding, apart, words } = along ?? { binding: 0, apart: 0, words: 0 };
  const values = `{ { ${binding}, ${apart}, ${words} }, ${tiles} }`;
  return `if (launch->words == 0) { *(struct traits *)scratch = (struct traits)${values}; return; }\n`;
}

function bodyInC(program: Program, emitter: Emitter): string {
  const { writer } = emitter;
  for (const memory of program.memories) {
    const address = writer.name(memory.name);
    if ("binding" in memory) {
      const length = writer.name("length");
      const from = `launch->bindings[${memory.binding}]`;
      writer.line(`word *const ${address} = ${from}.address;`);
      writer.line(`const u ${length} = ${from}.length;`);
      emitter.arrays.set(memory, { address, length });
    } else {
      const at = `(word *)(scratch + ${memory.offset})`;
      writer.line(`word *const ${address} = ${at};`);
      emitter.arrays.set(memory, { address, length: `${memory.length}u` });
    }
  }
  writer.line("struct ahead later = { 0 };");
  writer.line("struct along along_one = { SHAPE_OF(launch->shape & 255) };");
  writer.line("struct along along_several = { SHAPE_OF(launch->shape >> 8) };");
  // The last `once`, and the x and z of its workgroup.
  writer.line("uint64_t saved = ~0ull;");
  const [x, y, z] = program.groups.map((local) => emitter.name(local));
  writer.block(
    "for (u group = first_group; group < end_group; group++)",
    () => {
      writer.line("if (*stop) return;");
      // Along y first: a matmul's rows, which are more bytes than columns, stay in the cache, and its weights are
      // consecutive.
      writer.line(`const u ${y} = group % launch->y;`);
      writer.line(`const u ${x} = group / launch->y % launch->x;`);
      writer.line(`const u ${z} = group / launch->x / launch->y;`);
      writer.line(`u ${emitter.name(program.first)} = 0;`);
      writer.line("char *own = scratch;");
      emitter.program(program);
    },
  );
  if (emitter.along) {
    writer.line(
      "((u *)scratch)[-1] |= (along_one.array ? 1 : 0) | (along_several.array ? 2 : 0);",
    );
  }
  return writer.text();
}
