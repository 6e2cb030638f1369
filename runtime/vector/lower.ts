/**
 * Lowers kernels to the vector IR. Consecutive invocations of a workgroup are the lanes of a vector; a loop iterates
 * over the vectors of a workgroup in each phase between barriers.
 */

import { endOf } from "../../spec/kernel/build.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import { withScalarLoads, withWordLoads } from "../../spec/kernel/vectors.ts";
import { analyzeShapes, restingVariables, uniqueNames } from "./analyze.ts";
import { ByteBounds } from "./byte_bounds.ts";
import {
  get,
  type Local,
  type Memory,
  newLocal,
  type Program,
  type ScratchSlot,
  u,
  word,
} from "./ir.ts";
import { type SavedPhases, savedPhases } from "./saved_phases.ts";
import {
  arraysReadIn,
  invocationsOf,
  isForAll,
  type Outer,
  type Phase,
  phasesIn,
  splitPhases,
} from "./phases.ts";
import { type LoopOptions, Statements } from "./statement.ts";

/** Options of lowering. */
export interface LowerOptions extends LoopOptions {
  /** Lanes of a vector; a power of two that divides the workgroup size. */
  readonly lanes: number;
  /** Bytes of a vector in scratch memory. */
  readonly vectorBytes: number;
  /** Readable bytes around every array, for vectors that overlap its ends. */
  readonly guardBytes: number;
  /**
   * Variables of f32 that are used in memory: those that inner loops do not change (`resting`), or all that outlive a
   * phase.
   */
  readonly inMemory: "resting" | "outliving";
}

/** Lower a kernel. */
export function lowerKernel(kernel: Kernel, options: LowerOptions): Program {
  return new KernelLowering(kernel, options).program();
}

class KernelLowering {
  readonly #kernel: Kernel;
  readonly #options: LowerOptions;
  readonly #on: Statements;
  readonly #outer: readonly Outer[];
  readonly #memories: Memory[] = [];
  readonly #first = newLocal("first", "u");
  readonly #groups: readonly Local[];
  /** Slots of variables that outlive a phase and have a register in it. */
  readonly #slots = new Map<string, Local>();
  readonly #crossing: ReadonlySet<string>;
  readonly #saved: SavedPhases;
  #scratch: number;
  #partBytes = 0;

  constructor(kernel: Kernel, options: LowerOptions) {
    this.#kernel = kernel;
    this.#options = options;
    this.#scratch = options.guardBytes;
    const scalar = withScalarLoads(kernel.body);
    const body = uniqueNames(
      options.loops === "tiles" ? scalar : withWordLoads(scalar),
    );
    const shapes = analyzeShapes(kernel, body, options.lanes);
    this.#on = new Statements(shapes, {
      loops: options.loops,
      bytes: new ByteBounds(body),
      writable: new Set(
        kernel.bindings.filter((b) => b.access !== "read").map((b) => b.name),
      ),
      take: () => this.#take(false),
    });
    const { locals } = this.#on.x;
    const names = ["group.x", "group.y", "group.z"];
    this.#groups = names.map((name) => newLocal(name, "u"));
    names.forEach((name, i) => locals.set(name, this.#groups[i]!));
    locals.set("local", this.#first);
    this.#addMemories();
    const { outer, crossing } = splitPhases(kernel, body, shapes);
    this.#outer = outer;
    this.#crossing = crossing;
    this.#saved = options.loops === "tiles" && !this.#isSingle
      ? savedPhases(outer, { shapes, writable: this.#on.writable })
      : new Map();
    const outliving = this.#isSingle ? new Set<string>() : crossing;
    if (options.inMemory === "outliving") {
      this.#outlive(outliving, (name) => this.#on.typeOf(name) === "vf");
    } else {
      const resting = restingVariables(body, shapes);
      this.#outlive(outliving, (name) => resting.has(name));
      for (const name of resting) {
        if (outliving.has(name)) continue;
        locals.set(name, newLocal(name, "vf", this.#take(false)));
      }
    }
  }

  program(): Program {
    const body = this.#on.listOf(() => {
      this.#declare();
      this.#list(this.#outer);
    });
    const vectors = this.#kernel.workgroupSize / this.#options.lanes;
    const parts = this.#aligned(this.#scratch);
    return {
      memories: this.#memories,
      groups: this.#groups,
      first: this.#first,
      body,
      scratch: parts + this.#aligned(this.#partBytes * vectors),
      parts,
      partBytes: this.#partBytes,
    };
  }

  #aligned(bytes: number): number {
    const { guardBytes } = this.#options;
    return Math.ceil(bytes / guardBytes) * guardBytes;
  }

  /** Reserves scratch memory for a vector, per thread or per vector. */
  #take(perVector: boolean): ScratchSlot {
    const { vectorBytes } = this.#options;
    const offset = perVector ? this.#partBytes : this.#scratch;
    if (perVector) this.#partBytes += vectorBytes;
    else this.#scratch += vectorBytes;
    return { perVector, offset };
  }

  /** The workgroup is one vector, so phases need no loops and variables no memory. */
  get #isSingle(): boolean {
    return this.#kernel.workgroupSize === this.#options.lanes;
  }

  /** Bytes of an array of workgroup memory and its guard. */
  #spaceOf(length: number): number {
    return this.#aligned(4 * length) + this.#options.guardBytes;
  }

  /** Zeroes arrays of workgroup memory, adjacent ones together. */
  #zero(arrays: ReadonlySet<string>): void {
    let bytes = 0;
    let end = 0;
    const flush = () => {
      if (bytes > 0) this.#on.emit({ op: "zero", offset: end - bytes, bytes });
      bytes = 0;
    };
    for (const memory of this.#memories) {
      if ("binding" in memory || !arrays.has(memory.name)) continue;
      if (memory.offset !== end) flush();
      const space = this.#spaceOf(memory.length);
      bytes += space;
      end = memory.offset + space;
    }
    flush();
  }

  /** Bindings, and workgroup memory. */
  #addMemories(): void {
    this.#kernel.bindings.forEach(({ name }, binding) =>
      this.#memories.push({ name, binding })
    );
    for (const { name, length } of this.#kernel.shared) {
      this.#memories.push({ name, offset: this.#scratch, length });
      this.#scratch += this.#spaceOf(length);
    }
    for (const memory of this.#memories) {
      this.#on.x.memories.set(memory.name, memory);
    }
  }

  /** Memory for each vector's variables that outlive a phase, used in place or not. */
  #outlive(
    names: ReadonlySet<string>,
    isUsedThere: (name: string) => boolean,
  ): void {
    for (const name of names) {
      const scratch = this.#take(true);
      const memory = newLocal(name, this.#on.typeOf(name), scratch);
      if (isUsedThere(name)) this.#on.x.locals.set(name, memory);
      else this.#slots.set(name, memory);
    }
  }

  /** Declares variables that are used beyond their declaring phase. */
  #declare(): void {
    const phases = phasesIn(this.#outer);
    if (phases.length === 1 && this.#outer.length === 1) return;
    for (const s of phases.flatMap(({ body }) => body)) {
      if (s.op !== "let" && s.op !== "var") continue;
      if (this.#on.outlived.has(s.name)) continue;
      this.#on.outlived.add(s.name);
      const local = this.#on.localOf(s.name);
      if (!local.slot) this.#on.emit({ op: "declare", local });
    }
  }

  #list(outer: readonly Outer[]): void {
    for (const o of outer) this.#lower(o);
  }

  #lower(o: Outer): void {
    const on = this.#on;
    if (o.op === "phase") return this.#phase(o);
    if (o.op === "zero") {
      const saved = [...this.#saved.values()].flatMap((arrays) => [...arrays]);
      const arrays = [...o.arrays].filter((name) => !saved.includes(name));
      return this.#zero(new Set(arrays));
    }
    on.x.begin();
    this.#recall();
    if (o.op === "if") {
      return on.if(
        on.x.word(o.condition),
        () => this.#list(o.then),
        () => this.#list(o.else),
      );
    }
    const { loop } = o;
    const counter = on.localOf(loop.name);
    const from = on.keep("from", on.x.word(loop.from));
    const to = on.keep("to", on.x.word(endOf(loop)));
    const step = on.keep("step", on.x.word(loop.step));
    const bounds = { counter, from, to, step, long: true };
    const outer = on.repeats;
    on.repeats = bounds;
    on.count(bounds, () => this.#list(o.body));
    on.repeats = outer;
  }

  #findFirst(): void {
    this.#on.set(this.#first, word(0), false);
  }

  #findPerVector(): void {
    if (this.#partBytes > 0) this.#on.emit({ op: "own" });
  }

  /** Between phases, a uniform variable in memory has the value of the first invocation. */
  #recall(): void {
    if (this.#crossing.size === 0 || this.#isSingle) return;
    this.#findFirst();
    this.#findPerVector();
    for (const name of this.#slots.keys()) {
      if (this.#on.x.shapes.variables.get(name)!.shape.group) this.#load(name);
    }
  }

  #phase(phase: Phase): void {
    const on = this.#on;
    this.#findFirst();
    on.readHere = arraysReadIn([phase]);
    if (this.#isSingle) return on.list(phase.body);
    // Values that are uniform in the workgroup are computed once.
    const at = phase.body.findIndex((s) => !isForAll(s, on.x.shapes));
    const start = at < 0 ? phase.body.length : at;
    on.list(phase.body.slice(0, start));
    const next = u.add(get(this.#first), this.#options.lanes);
    const body = on.listOf(() => {
      this.#findPerVector();
      for (const name of phase.reads) this.#load(name);
      on.list(phase.body.slice(start));
      for (const name of phase.writes) this.#save(name);
      on.set(this.#first, next, false);
    });
    const all = invocationsOf(phase, this.#kernel.workgroupSize);
    const condition = u.lt_u(get(this.#first), all);
    const saved = this.#saved.get(phase);
    if (!saved) return on.emit({ op: "repeat", body, condition });
    const once = on.listOf(() => {
      this.#zero(saved);
      on.emit({ op: "repeat", body, condition });
    });
    const number = [...this.#saved.keys()].indexOf(phase);
    on.emit({ op: "once", number, body: once });
  }

  #load(name: string): void {
    const slot = this.#slots.get(name);
    if (slot) this.#on.set(this.#on.localOf(name), get(slot), false);
  }

  #save(name: string): void {
    const slot = this.#slots.get(name);
    if (slot) this.#on.set(slot, get(this.#on.localOf(name)), false);
  }
}
