/** Loops around innermost loops: the range of all their loads is checked once, before the outermost loop. */

import { local } from "../../spec/kernel/build.ts";
import { cachedJson } from "../../spec/kernel/exact_json.ts";
import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { someStatement } from "../../spec/kernel/walk.ts";
import {
  arrayOf,
  isOfBytes,
  type Load,
  type Loop,
  walkLoads,
} from "./accesses.ts";
import { allOf, isWithin } from "./ir.ts";
import { extentOf, Invariants, type PointerGroup } from "./pointers.ts";
import {
  CONSTANT_LIMIT,
  type IndexBound,
  IndexBounds,
} from "./index_bounds.ts";
import type { Statements } from "./statement.ts";

/** Maximum depth of nested loops. */
const MAX_DEPTH = 4;

/** Elements of an array that a nest accesses: the last is at most the sum of the terms, plus `max`. */
interface Range extends IndexBound {
  readonly array: string;
  readonly bytes: boolean;
}

/** Returns the groups of an innermost loop, none for other loops. */
type GroupsOf = (loop: Loop) => readonly PointerGroup[];

/**
 * Lowers a loop around loops: without checks if its loads are in range, otherwise with a check per access. A nest whose
 * ranges are unknown has checks before each innermost loop. So has a nest of tiles that loads in innermost loops only,
 * and a nest of unrolled loops that loads in outer loops only.
 */
export function nestedLoop(
  s: Loop,
  on: Statements,
  { lower, groupsOf }: {
    readonly lower: () => void;
    readonly groupsOf: GroupsOf;
  },
): void {
  const { x } = on;
  if (x.rare || x.inRange.size > 0) return lower();
  const nest = new Nest(s, on, groupsOf);
  if (!nest.add(s) || !nest.isUseful) return lower();
  const inRange = nest.ranges.map(({ array, bytes, terms, max: constant }) =>
    isWithin(x.memory(array), [on.keepSum("base", terms)], { constant, bytes })
  );
  on.if(allOf(inRange), () => {
    x.inRange = nest.inRange;
    lower();
    x.inRange = new Set();
  }, () => rarely(lower, on));
}

/** Lowers code that rarely runs. */
export function rarely(lower: () => void, { x }: Statements): void {
  const outer = x.rare;
  x.rare = true;
  lower();
  x.rare = outer;
}

/** The ranges of nested loops. */
class Nest {
  /** Loads outside of innermost loops, and innermost loops. */
  readonly inRange = new Set<Expr | Loop>();
  #loadsOutside = false;
  #loadsInside = false;
  readonly #ranges = new Map<string, Range>();
  readonly #bounds: IndexBounds;
  readonly #on: Statements;
  readonly #groupsOf: GroupsOf;

  constructor(outer: Loop, on: Statements, groupsOf: GroupsOf) {
    const invariants = new Invariants(outer, on.x.shapes, on.writable);
    this.#bounds = new IndexBounds(invariants);
    this.#on = on;
    this.#groupsOf = groupsOf;
  }

  /** Whether one check replaces those of loads by index or, of loops that are unrolled here, those of each loop. */
  get isUseful(): boolean {
    return this.#on.loops === "tiles" ? this.#loadsOutside : this.#loadsInside;
  }

  get ranges(): readonly Range[] {
    return [...this.#ranges.values()];
  }

  /** Adds the accesses of a statement. Returns whether those of its innermost loops have a range. */
  add(s: Stmt, depth = 0): boolean {
    if (s.op === "if") return !someStatement([s], ({ op }) => op === "for");
    walkLoads(s, (e) => this.#addLoad(e));
    if (s.op !== "for") return true;
    this.#bounds.addCounter(s);
    const groups = this.#groupsOf(s);
    if (groups.length === 0) {
      return depth < MAX_DEPTH && s.body.every((s) => this.add(s, depth + 1));
    }
    this.inRange.add(s);
    this.#loadsInside = true;
    const counter = this.#bounds.of(local(s.name, "u32"));
    return counter?.terms.length === 0 &&
      groups.every((group) => this.#addGroup(group, counter.max));
  }

  #addGroup(group: PointerGroup, last: number): boolean {
    const { array, bytes, stride, terms } = group;
    const base = this.#bounds.sum(terms);
    if (!base || typeof stride !== "number") return false;
    const extent = extentOf(group, this.#on.x.shapes.lanes);
    const max = base.max + stride * last + extent;
    return this.#addRange({ ...base, array, bytes, max });
  }

  #addLoad(e: Load): void {
    const { shapes } = this.#on.x;
    const { stride } = shapes.of(e.index);
    const bytes = isOfBytes(e);
    // Words at a distance are gathered with a check per lane.
    if (stride === null || stride < 0 || stride > 1 && !bytes) return;
    const bound = this.#bounds.of(e.index);
    if (!bound) return;
    // Vectors of consecutive words may extend past the end, into guard bytes.
    const extent = bytes ? stride * (shapes.lanes - 1) + 3 : 0;
    const array = arrayOf(e);
    if (!this.#addRange({ ...bound, array, bytes, max: bound.max + extent })) {
      return;
    }
    this.inRange.add(e);
    this.#loadsOutside = true;
  }

  /** Returns whether a range is small enough for a check. */
  #addRange(range: Range): boolean {
    const { array, bytes, terms, max } = range;
    if (max >= CONSTANT_LIMIT) return false;
    const key = [array, bytes, ...terms.map(cachedJson).sort()].join();
    const other = this.#ranges.get(key);
    if (!other || other.max < max) this.#ranges.set(key, range);
    return true;
  }
}
