/** Definition of a primitive in one file, except for its kernel and its launch. */

import type { Derivative } from "../gradients/derivatives.ts";
import type { Context, Result } from "../evaluate/rules.ts";
import type { NodeOf, Primitive } from "../graph.ts";
import type { RuleInput, TensorType } from "../operands.ts";
import type { Rule } from "../sharding_rule.ts";
import type { Sizes } from "../size_of.ts";
import type { Shown } from "../evaluate/value.ts";

/**
 * `kernel`: computed by its own kernel. `inline`: an expression over its inputs. `view`: the same elements under other
 * axes. `source`: an existing buffer. `tuple`: read through its elements.
 */
export type FusionClass =
  | "kernel"
  | "inline"
  | "view"
  | "source"
  | "tuple"
  | "element";

/** The axes along which a primitive mixes or moves rows of a dispatch. "no": it does not accept rows. */
export type Mixes<P extends Primitive> =
  | "no"
  | ((node: NodeOf<P>) => readonly string[]);

/** A primitive of the language. */
export interface Definition<P extends Primitive> {
  /** From operands and parameters to axes and dtype; throws RuleError. */
  readonly type: (input: RuleInput<P>) => TensorType;
  /** Lengths of the axes that it names; throws ModelError. */
  readonly sizes: (node: NodeOf<P>, sizes: Sizes) => void;
  readonly mixes: Mixes<P>;
  /** Its reference. */
  readonly reference: (node: Shown<P>, context: Context) => Result;
  readonly derivative: Derivative<P>;
  readonly sharding: Rule<P>;
  readonly fusion: FusionClass;
}
