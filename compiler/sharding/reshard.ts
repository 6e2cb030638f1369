/**
 * Reshard: converts a value from its sharding to the required one.
 *
 * | has | wants | inserted |
 * |---|---|---|
 * | an axis replicated | sharded | `allSlice`: free |
 * | an axis sharded | replicated | `allGather` |
 * | unreduced | an axis sharded over the same mesh axes | `reduceScatter` |
 * | unreduced over more, minor | a ragged axis sharded over more | `reduceScatter` over both, then `allGather` over
 * minor |
 * | unreduced | reduced | `allReduce` |
 * | on one stage | on another | `send` |
 */

import type { Collective } from "../graph/collectives.ts";
import { updatedState } from "../graph/in_place.ts";
import { invariant, ModelError } from "../../spec/errors.ts";
import {
  isRouting,
  type Node,
  originOf,
  type PrimitiveParams,
  type RoutingNode,
} from "../graph/graph.ts";
import type { AxisFacts } from "./local_axes.ts";
import { isRagged, placedOver } from "./local_axes.ts";
import {
  extendsOver,
  isWithinOver,
  overOf,
  sameOver,
  type Sharding,
  tidyOver,
} from "../graph/sharding.ts";

/** A value with its sharding. */
type Sharded = Node & { readonly sharding: Sharding };

/** The nodes of a graph so far, with one collective per value and sharding. */
export class Resharding {
  readonly nodes: Node[] = [];
  readonly #facts: AxisFacts;
  readonly #made = new Map<Node, Map<string, Sharded>>();

  constructor(facts: AxisFacts) {
    this.#facts = facts;
  }

  /** Add a node. */
  add<N extends Node>(node: N): N {
    this.nodes.push(node);
    return node;
  }

  /** `value` in another sharding. `wanted.over` lists all of its axes. */
  to(value: Node, wanted: Sharding): Node {
    if (isRouting(value)) return this.#routing(value, wanted);
    let now = value as Sharded;
    now = this.#send(this.#reduce(now, wanted), wanted.stage);
    // A mesh axis freed by one axis may shard another.
    for (const axis of value.axes) {
      now = this.#gather(now, axis, overOf(wanted, axis));
    }
    for (const axis of value.axes) {
      now = this.#slice(now, axis, overOf(wanted, axis));
    }
    return now;
  }

  /** Sends a value to the ranks of another stage. Values on all stages, and for all, are not sent. */
  #send(value: Sharded, to: number | undefined): Sharded {
    const from = value.sharding.stage;
    if (from === undefined || to === undefined || from === to) return value;
    if (updatedState(value).primitive === "state") {
      throw new ModelError(
        `Cannot send a cache from stage ${from} to stage ${to}: layers that share a cache must be on one stage. Give other --stages`,
        value.span,
      );
    }
    const { over } = this.#facts.stages!;
    return this.#make(value, "send", { over: [over], stages: [from, to] }, {
      ...value.sharding,
      stage: to,
    });
  }

  /** Whether the terms of a value have already been reduced. */
  isAddedUp(value: Node): boolean {
    return [...this.#made.get(value)?.values() ?? []].some(({ primitive }) =>
      primitive === "allReduce" || primitive === "reduceScatter"
    );
  }

  /**
   * Reduces terms: onto an axis that is required sharded over their mesh axes, if there is one. Terms are ordered by
   * their mesh axes, major first, and neighbours are added first: the minor axes before the major ones.
   */
  #reduce(value: Sharded, wanted: Sharding): Sharded {
    const rest = value.sharding.unreduced.filter((name) =>
      !wanted.unreduced.includes(name)
    );
    if (rest.length === 0) return value;
    const onto = value.axes.map((axis) => {
      const [has, wants] = [
        overOf(value.sharding, axis),
        overOf(wanted, axis),
      ];
      const more = this.#slices(axis, has, wants)
        ? wants.filter((name) => !has.includes(name))
        : [];
      const first = rest.indexOf(more[0] ?? "");
      const fits = first >= 0 &&
        sameOver(rest.slice(first, first + more.length), more);
      return { axis, wants, more, first, fits };
    }).find(({ fits }) => fits);
    if (!onto) return this.#allReduce(value, rest);
    const { axis, wants, more, first } = onto;
    const minor = rest.slice(first + more.length);
    // Rows can be split anywhere: a rank reduces a part of its rows and receives the other sums, which are fewer bytes
    // than their terms.
    const parts = minor.length > 0 && isRagged(this.#facts, axis) &&
      sameOver(wants, placedOver(this.#facts, axis));
    const over = parts ? [...more, ...minor] : more;
    const terms = parts ? value : this.#allReduce(value, minor);
    const scattered = this.#make(
      terms,
      "reduceScatter",
      { over, axis, to: axis },
      {
        over: {
          ...terms.sharding.over,
          [axis]: parts ? [...wants, ...minor] : wants,
        },
        unreduced: terms.sharding.unreduced.filter((m) => !over.includes(m)),
      },
    );
    return this.#allReduce(scattered, rest.slice(0, first));
  }

  #allReduce(value: Sharded, over: readonly string[]): Sharded {
    if (over.length === 0) return value;
    return this.#make(value, "allReduce", { over }, {
      over: value.sharding.over,
      unreduced: value.sharding.unreduced.filter((m) => !over.includes(m)),
    });
  }

  #gather(value: Sharded, axis: string, wants: readonly string[]): Sharded {
    const has = overOf(value.sharding, axis);
    if (sameOver(has, wants)) return value;
    const common = this.#common(axis, has, wants);
    if (common.length === has.length) return value;
    this.#checkOrder(value, axis);
    const over = has.filter((name) => !common.includes(name));
    const gathered = this.#make(value, "allGather", { over, axis, to: axis }, {
      over: { ...value.sharding.over, [axis]: common },
      unreduced: value.sharding.unreduced,
    });
    return this.#gather(gathered, axis, wants);
  }

  /** Whether the conversion is a slice only. */
  #slices(
    axis: string,
    has: readonly string[],
    wants: readonly string[],
  ): boolean {
    return extendsOver(wants, has) ||
      isRagged(this.#facts, axis) && isWithinOver(has, wants) &&
        sameOver(wants, placedOver(this.#facts, axis));
  }

  #slice(value: Sharded, axis: string, wants: readonly string[]): Sharded {
    if (sameOver(overOf(value.sharding, axis), wants)) return value;
    this.#checkOrder(value, axis);
    return this.#make(value, "allSlice", { axis, to: axis }, {
      over: { ...value.sharding.over, [axis]: wants },
      unreduced: value.sharding.unreduced,
    });
  }

  /**
   * Checks that gather and slice preserve the order of blocks; the items of a table may have another order. Throws
   * ModelError.
   */
  #checkOrder({ span }: Sharded, axis: string): void {
    const { experts, requests } = this.#facts;
    if (experts.has(axis) || !requests.get(axis)?.table) return;
    throw new ModelError(
      `Cannot replicate axis '${axis}': a table assigns its items to ranks. Place it without a table, or use its values only where they are`,
      span,
    );
  }

  /**
   * The mesh axes that need not be gathered. For a ragged axis, parts are known only where it is placed and in its
   * groups.
   */
  #common(
    axis: string,
    has: readonly string[],
    wants: readonly string[],
  ): readonly string[] {
    if (this.#slices(axis, has, wants)) return has;
    const common = has.slice(0, has.findIndex((name, i) => name !== wants[i]));
    if (!isRagged(this.#facts, axis)) return common;
    const placed = placedOver(this.#facts, axis);
    if (wants.length > 0 && isWithinOver(wants, placed)) {
      if (sameOver(has, placed)) return wants;
      return extendsOver(has, placed) ? placed : [];
    }
    return extendsOver(common, placed) ? placed : [];
  }

  /** The routing of the same choices for the tokens in this sharding. */
  #routing(route: RoutingNode, { over, stage }: Sharding): Node {
    const { tokens } = route.params;
    const far = stage !== undefined && route.sharding!.stage !== stage;
    const same = !far &&
      tokens.every((axis) =>
        sameOver(overOf(route.sharding!, axis), overOf({ over }, axis))
      );
    if (same) return route;
    const { rule, expert, slot, choice } = route.params;
    const operands = route.primitive === "route" ? route.params.operands : [];
    const slotted = route.primitive === "choices"
      ? route.params.slotted
      : rule.capacity !== undefined || operands.includes("mask");
    const axes = [...tokens, choice];
    const part = (field: "index" | "weight" | "slot") =>
      this.to(
        this.#once(route, field, {
          primitive: "tupleElement",
          inputs: [route],
          params: { field },
          axes,
          dtype: field === "weight" ? "f32" : "i32",
        }, route.sharding!),
        { over, unreduced: [], stage },
      );
    const inputs = [
      part("index"),
      part("weight"),
      ...slotted ? [part("slot")] : [],
    ];
    const params = { rule, expert, slot, choice, tokens, slotted };
    const key = JSON.stringify([
      stage,
      tokens.map((axis) => overOf({ over }, axis)),
    ]);
    return this.#once(route, `choices ${key}`, {
      primitive: "choices",
      inputs,
      params,
      axes,
      dtype: "f32",
    }, {
      over: tidyOver(
        Object.fromEntries(
          tokens.map((axis) => [axis, overOf({ over }, axis)]),
        ),
      ),
      unreduced: [],
      stage: stage ?? route.sharding!.stage,
    });
  }

  #make<P extends Collective>(
    of: Sharded,
    primitive: P,
    params: PrimitiveParams[P],
    sharding: Sharding,
  ): Sharded {
    const names = [
      ...Object.values(sharding.over).flat(),
      ...sharding.unreduced,
    ];
    invariant(
      new Set(names).size === names.length,
      `a mesh axis shards two axes of '${of.axes.join(" ")}'`,
    );
    const { axes, dtype } = of;
    const placed = { stage: of.sharding.stage, ...sharding };
    const key = JSON.stringify([primitive, params, placed]);
    const made = { primitive, params, inputs: [of], axes, dtype };
    return this.#once(of, key, made, placed);
  }

  #once(
    of: Node,
    key: string,
    made: Pick<Node, "axes" | "dtype" | "inputs"> & {
      readonly primitive: string;
      readonly params: unknown;
    },
    sharding: Sharding,
  ): Sharded {
    const known = this.#made.get(of) ?? new Map<string, Sharded>();
    this.#made.set(of, known);
    const before = known.get(key);
    if (before) return before;
    const node = {
      ...made,
      ...originOf(of),
      sharding: { ...sharding, over: tidyOver(sharding.over) },
    } as unknown as Sharded;
    known.set(key, node);
    return this.add(node);
  }
}
