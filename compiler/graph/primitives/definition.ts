/** What a primitive is, in one file: everything but its kernel, and how that is launched. */

import type { Schema } from "../../../spec/document/schema.ts";
import type { Derivative } from "../derivatives.ts";
import type { Context, Result } from "../evaluate_rules.ts";
import type { NodeOf, Primitive } from "../graph.ts";
import type { RuleInput, TensorType } from "../operands.ts";
import type { Rule } from "../sharding_rule.ts";
import type { Sizes } from "../size_of.ts";
import type { Shown } from "../value.ts";

/** `kernel`: computed by a kernel of its own kind. `inline`: an expression over its inputs. `view`: the same elements under other axes. `source`: a buffer that exists. `tuple`: read through its parts. */
export type FusionClass =
  | "kernel"
  | "inline"
  | "view"
  | "source"
  | "tuple"
  | "element";

/** What a primitive does along axes, so that rows of a dispatch would mix or move; "no": it cannot take them at all. */
export type Mixes<P extends Primitive> =
  | "no"
  | ((node: NodeOf<P>) => readonly string[]);

/** A primitive that the language makes. */
export interface Definition<P extends Primitive> {
  /** Its parameters in a document. */
  readonly params: Schema;
  /** From operands and parameters to axes and dtype; throws RuleError. */
  readonly type: (input: RuleInput<P>) => TensorType;
  /** Lengths of axes that it names; throws ModelError. */
  readonly sizes: (node: NodeOf<P>, sizes: Sizes) => void;
  readonly mixes: Mixes<P>;
  /** What it means. */
  readonly reference: (node: Shown<P>, context: Context) => Result;
  readonly derivative: Derivative<P>;
  readonly sharding: Rule<P>;
  readonly fusion: FusionClass;
}
