/**
 * Kernels to C. Consecutive invocations of a workgroup are the lanes of a vector; a loop runs over the vectors of a
 * workgroup, and one around it over workgroups. Kernels whose workgroups are not made of whole vectors have shorter ones.
 */

import { endOf } from "../../spec/kernel/build.ts";
import type { Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { withScalarLoads } from "../../spec/kernel/vectors.ts";
import { analyzeShapes, uniqueNames } from "../vector/analyze.ts";
import { cutPhases, type Outer, type Phase } from "../vector/phases.ts";
import { Expressions } from "./expression.ts";
import type { CFunction } from "./objects.ts";
import { Statements } from "./statement.ts";
import { GUARD_BYTES, vectorsInC } from "./vectors.ts";
import { Writer } from "./writer.ts";

/** This module, whose hash is part of what printed kernels are kept by. */
export const PRINTER = import.meta.url;

/** How a kernel is printed. */
export interface PrintOptions {
  /** Lanes of vectors, at most; a power of two. */
  readonly lanes: number;
  /** `fma(a, b, c)` is rounded once where the processor has an instruction for it. Default: twice. */
  readonly fused?: boolean;
}

/** Print a kernel as a function of type `kernel_function`. */
export function printKernel(
  kernel: Kernel,
  { lanes, fused = false }: PrintOptions,
): CFunction {
  while (kernel.workgroupSize % lanes !== 0) lanes /= 2;
  const printer = new KernelPrinter(kernel, lanes);
  return {
    prelude: vectorsInC(lanes, fused),
    text:
      `(const struct launch *launch, uint32_t first_group, uint32_t end_group, char *scratch, const volatile uint32_t *stop) {
${printer.body()}
}
`,
    scratch: printer.scratchBytes,
  };
}

/** Prints one kernel into one function. */
class KernelPrinter {
  scratchBytes = GUARD_BYTES;
  readonly #kernel: Kernel;
  readonly #lanes: number;
  readonly #writer = new Writer();
  readonly #x: Expressions;
  readonly #statements: Statements;
  readonly #outer: readonly Outer[];
  /** The statement that zeroes workgroup memory. */
  #zero = "";
  /** Names of the memory of variables that outlive a phase. */
  readonly #slots = new Map<string, string>();
  readonly #crossing: ReadonlySet<string>;
  readonly #first: string;

  constructor(kernel: Kernel, lanes: number) {
    this.#kernel = kernel;
    this.#lanes = lanes;
    const body = uniqueNames(withScalarLoads(kernel.body));
    const shapes = analyzeShapes(kernel, body, lanes);
    this.#x = new Expressions(this.#writer, shapes);
    this.#statements = new Statements(
      this.#x,
      new Set(
        kernel.bindings.filter((b) => b.access !== "read").map((b) => b.name),
      ),
    );
    this.#first = this.#writer.name("first");
    this.#x.ids.set("local", this.#first);
    const { outer, crossing } = cutPhases(kernel, body, shapes);
    this.#outer = outer;
    this.#crossing = crossing;
  }

  /** The workgroup is one vector, so phases need no loops and variables no memory. */
  get #isSingle(): boolean {
    return this.#kernel.workgroupSize === this.#lanes;
  }

  /** The function's text. */
  body(): string {
    const writer = this.#writer;
    this.#bindings();
    this.#sharedArrays();
    if (this.#kernel.shared.length > 0) {
      writer.line("struct ahead later = { 0 };");
    }
    writer.line("struct along along = { 0 };");
    const { ids } = this.#x;
    for (const name of ["group.x", "group.y", "group.z"]) {
      ids.set(name, writer.name(name));
    }
    const [x, y, z] = ["group.x", "group.y", "group.z"].map((name) =>
      ids.get(name)!
    );
    writer.block(
      "for (u group = first_group; group < end_group; group++)",
      () => {
        writer.line("if (*stop) return;");
        // Along y first: a matmul's rows stay in the cache, which are more than columns, and weights follow each other.
        writer.line(`const u ${y} = group % launch->y;`);
        writer.line(`const u ${x} = group / launch->y % launch->x;`);
        writer.line(`const u ${z} = group / launch->x / launch->y;`);
        writer.line(`u ${this.#first} = 0;`);
        this.#outlived();
        this.#list(this.#outer);
      },
    );
    return writer.text();
  }

  #bindings(): void {
    const writer = this.#writer;
    this.#kernel.bindings.forEach(({ name }, n) => {
      const address = writer.name(name);
      const length = writer.name("length");
      writer.line(`word *const ${address} = launch->bindings[${n}].address;`);
      writer.line(`const u ${length} = launch->bindings[${n}].length;`);
      this.#x.arrays.set(name, { address, length });
    });
  }

  /** Declares workgroup memory. */
  #sharedArrays(): void {
    const writer = this.#writer;
    const from = this.scratchBytes;
    for (const array of this.#kernel.shared) {
      const address = writer.name(array.name);
      writer.line(
        `word *const ${address} = (word *)(scratch + ${this.scratchBytes});`,
      );
      this.#x.arrays.set(array.name, { address, length: `${array.length}u` });
      this.scratchBytes += alignedBytes(4 * array.length) + GUARD_BYTES;
    }
    this.#zero = `__builtin_memset(scratch + ${from}, 0, ${
      this.scratchBytes - from
    });`;
  }

  /** Declare what is used beyond the phase that declares it, and memory for what each vector has of it. */
  #outlived(): void {
    const phases = this.#phases(this.#outer);
    if (phases.length === 1 && this.#outer.length === 1) return;
    for (const { body } of phases) {
      for (const s of body) {
        if (s.op !== "let" && s.op !== "var") continue;
        this.#statements.declare(s.name);
      }
    }
    if (this.#isSingle) return;
    const vectors = this.#kernel.workgroupSize / this.#lanes;
    const sums: string[] = [];
    for (const name of this.#crossing) {
      const type = this.#statements.typeOf(name);
      if (type === "vf") {
        sums.push(name);
        continue;
      }
      this.#slots.set(name, this.#memory("slot", type, vectors));
    }
    // Used where they are, those of one vector together: a phase need not touch all.
    const all = this.#memory("sums", "vf", sums.length * vectors);
    for (const [i, name] of sums.entries()) {
      this.#x.locals.set(
        name,
        `${all}[${this.#first} / LANES * ${sums.length} + ${i}]`,
      );
    }
  }

  /** Scratch memory for so many values of a type. */
  #memory(prefix: string, type: string, count: number): string {
    const name = this.#writer.name(prefix);
    this.#writer.line(
      `${type} *const ${name} = (${type} *)(scratch + ${this.scratchBytes});`,
    );
    this.scratchBytes += alignedBytes(4 * this.#lanes * count);
    return name;
  }

  #phases(outer: readonly Outer[]): Phase[] {
    return outer.flatMap((o) => {
      if (o.op === "phase") return [o];
      if (o.op === "zero") return [];
      if (o.op === "for") return this.#phases(o.body);
      return [...this.#phases(o.then), ...this.#phases(o.else)];
    });
  }

  #list(outer: readonly Outer[]): void {
    for (const o of outer) this.#print(o);
  }

  #print(o: Outer): void {
    const writer = this.#writer;
    const x = this.#x;
    if (o.op === "phase") return this.#phase(o);
    if (o.op === "zero") return writer.line(this.#zero);
    if (o.op === "if") {
      x.begin(o.condition);
      this.#recall();
      writer.block(
        `if (${x.scalar(o.condition)})`,
        () => this.#list(o.then),
      );
      if (o.else.length === 0) return;
      return writer.block("else", () => this.#list(o.else));
    }
    const { loop } = o;
    const end = endOf(loop);
    writer.block("", () => {
      x.begin(loop.from, end, loop.step);
      this.#recall();
      const from = x.keep("u", x.scalar(loop.from));
      const to = x.keep("u", x.scalar(end));
      const step = x.keep("u", x.scalar(loop.step));
      const counter = writer.name(loop.name);
      x.locals.set(loop.name, counter);
      writer.block(
        `for (u ${counter} = ${from}; ${counter} < ${to}; ${counter} += ${step})`,
        () => {
          writer.line("if (*stop) return;");
          this.#list(o.body);
        },
      );
    });
  }

  /** Between phases, a uniform variable that is in memory has the value that the first invocation sees. */
  #recall(): void {
    if (this.#isSingle || this.#crossing.size === 0) return;
    this.#writer.line(`${this.#first} = 0;`);
    for (const name of this.#slots.keys()) {
      if (this.#x.shapes.variables.get(name)!.shape.group) this.#load(name);
    }
  }

  #phase(phase: Phase): void {
    const writer = this.#writer;
    writer.line(`${this.#first} = 0;`);
    if (this.#isSingle) return this.#statements.list(phase.body);
    // What the whole workgroup shares is computed once.
    const start = this.#sharedStart(phase.body);
    this.#statements.list(phase.body.slice(0, start));
    writer.block(
      `for (; ${this.#first} < ${this.#kernel.workgroupSize}u; ${this.#first} += LANES)`,
      () => {
        for (const name of this.#slots.keys()) {
          if (phase.reads.has(name)) this.#load(name);
        }
        this.#statements.list(phase.body.slice(start));
        for (const name of this.#slots.keys()) {
          if (phase.writes.has(name)) this.#save(name);
        }
      },
    );
  }

  /** How many statements at the start of a phase declare what is the same for the whole workgroup. */
  #sharedStart(body: readonly Stmt[]): number {
    const at = body.findIndex((s) =>
      s.op !== "let" || !this.#x.shapes.variables.get(s.name)!.shape.group
    );
    return at < 0 ? body.length : at;
  }

  #load(name: string): void {
    this.#writer.line(
      `${this.#x.locals.get(name)!} = ${this.#slot(name)};`,
    );
  }

  #save(name: string): void {
    this.#writer.line(
      `${this.#slot(name)} = ${this.#x.locals.get(name)!};`,
    );
  }

  #slot(name: string): string {
    return `${this.#slots.get(name)!}[${this.#first} / LANES]`;
  }
}

function alignedBytes(bytes: number): number {
  return Math.ceil(bytes / GUARD_BYTES) * GUARD_BYTES;
}
