/**
 * A decoder's plan on its devices: takes packed tokens, returns logits or the best candidates. It uses only the plan,
 * so a saved one works in the same way.
 */

import { modelAxis } from "../../spec/axis_parts.ts";
import type { HostTensor, Session } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { seenThrough, STATES } from "../../spec/pages.ts";
import type { Plan, Port, Program } from "../../spec/plan/plan.ts";
import {
  assignTokens,
  integers,
  type PackedTokens,
  tokenInputs,
} from "./packing.ts";
import { PageTable } from "./pages.ts";
import { isRecurrent, type PagesShape, pagesShape } from "./pages_shape.ts";
import { HIDDEN, NORMALIZER } from "../../models/outputs.ts";
import { CHOICES } from "../replay.ts";
import type { Candidates } from "./sampling.ts";

/** Bounds and ports of a decoder's plan. */
export interface DecoderShape {
  readonly program: Program;
  readonly vocabulary: number;
  readonly maxTokens: number;
  readonly maxSequences: number;
  readonly maxContext: number;
  /** Maximum tokens of a step whose next tokens are returned. */
  readonly maxRows: number;
  /** Experts per layer; 0 if there are none. */
  readonly experts: number;
  /** Inputs with choices of experts, if the plan does not choose them itself. */
  readonly choices: readonly (readonly [name: string, port: Port])[];
  /** Shape of the pages, for paged caches. */
  readonly pagesShape: PagesShape | undefined;
  /** Whether sequences have recurrent states, which continue only from the last token. */
  readonly recurrent: boolean;
  /**
   * Outputs: logits of every token, of some tokens, or this many best candidates after each of these, perhaps with
   * logits.
   */
  readonly gives: "logits" | "next logits" | {
    readonly candidates: number;
    readonly logits: boolean;
  };
  /** Whether the plan computes the log-sum-exp of logits after the selected tokens. */
  readonly normalizes: boolean;
  /** The model axis of a port's local axis. */
  readonly modelAxis: (axis: string) => string;
  /** Elements of an input or output per token. */
  width(port: Port): number;
}

/**
 * The shape of a plan with inputs `ids`, `sequence` and `position`, optionally `rows`, page tables and choices of
 * experts, and outputs `logits` or candidates. Undefined for other plans.
 */
export function decoderShape(plan: Plan): DecoderShape | undefined {
  const program = plan.programs[0];
  const { logits, [BEST.ids]: best } = program?.outputs ?? {};
  const inputs = Object.entries(program?.inputs ?? {});
  const choices = inputs.filter(([name]) => CHOICES.test(name));
  const others = inputs.map(([name]) => name)
    .filter((name) =>
      !CHOICES.test(name) && !seenThrough(name) && name !== STATES.input
    ).sort().join(" ");
  const size = (axis: string | undefined): number | undefined =>
    axis === undefined ? undefined : plan.axes[axis]?.size;
  const vocabulary = size(best ? "vocab" : logits?.axes[1]);
  const maxTokens = size(program?.inputs["ids"]?.axes[0]);
  const maxSequences = size("sequence");
  const maxContext = size("context");
  const next = others === "ids position rows sequence";
  if (
    program === undefined || (!next && others !== "ids position sequence") ||
    vocabulary === undefined || maxTokens === undefined ||
    maxSequences === undefined || maxContext === undefined
  ) return undefined;
  const candidates = size(best?.axes[1]);
  const width = (port: Port): number => size(port.axes[1]) ?? 1;
  return {
    program,
    vocabulary,
    maxTokens,
    maxSequences,
    maxContext,
    maxRows: size(program.inputs["rows"]?.axes[0]) ?? maxTokens,
    experts: size("expert") ?? 0,
    choices,
    width,
    pagesShape: pagesShape(plan, program),
    recurrent: isRecurrent(plan),
    normalizes: NORMALIZER in program.outputs,
    modelAxis: (axis) => modelAxis(plan, axis),
    gives: candidates !== undefined
      ? { candidates, logits: logits !== undefined }
      : next
      ? "next logits"
      : "logits",
  };
}

/** Outputs of a plan that returns candidates. */
const BEST = { logits: "candidates.logits", ids: "candidates.ids" };

/** The part of a session that decoders use. */
export type Runs = Pick<
  Session,
  "run" | "concurrentRuns" | "runsAhead" | "series"
>;

/** A decoder on its devices. */
export class Decoder {
  readonly shape: DecoderShape;
  /** Whether a sequence can return to the state before the tokens of a step. */
  readonly rollsBack: boolean;
  /** The page table, for paged caches. */
  readonly pages: PageTable | undefined;
  /** Outputs with choices of routers, in the order of layers. */
  readonly routers: readonly string[];
  /** Outputs with a row per token, such as logits and choices of routers. */
  readonly rowOutputs: readonly (readonly [name: string, port: Port])[];
  /** Outputs of `routers` with a row per token. The last layer may have only the selected rows. */
  readonly #routersOfTokens: readonly string[];
  readonly #session: Runs;
  /** Whether a step can continue with the best tokens after the one before, and these steps can be discarded. */
  readonly #continues: boolean;
  /** Number of runs of `next` that pipeline stages execute concurrently. */
  readonly concurrentRuns: number;
  /** Whether a step may start while the device executes the one before, with the best tokens after it. */
  readonly runsAhead: boolean;

  constructor(session: Runs, shape: DecoderShape) {
    this.#session = session;
    this.shape = shape;
    this.concurrentRuns = session.concurrentRuns;
    this.#continues = !shape.recurrent && typeof shape.gives === "object";
    this.runsAhead = session.runsAhead && this.#continues;
    this.rollsBack = !shape.recurrent || shape.pagesShape?.rows !== undefined;
    this.pages = shape.pagesShape && new PageTable(shape.pagesShape);
    this.routers = Object.keys(shape.program.outputs)
      .filter((name) => CHOICES.test(name))
      .toSorted((a, b) => layerOf(a) - layerOf(b));
    this.rowOutputs = rowOutputsOf(shape);
    const perToken = new Set(this.rowOutputs.map(([name]) => name));
    this.#routersOfTokens = this.routers.filter((name) => perToken.has(name));
  }

  /**
   * The candidates after some of the tokens, by index in the step: at most `maxRows`.
   * With several processes, all receive them, so that all choose the same tokens.
   *
   * @param needed best candidates per token; undefined: logits. A plan with both outputs is read accordingly
   * @param normalize whether the log-sum-exp of logits is read too, if the plan computes it
   * @param experts whether the choices of routers are read too
   * @param onHidden receives the hidden states of all tokens, f32 [token, embed], on the processes that receive
   * outputs,
   *   before the candidates are returned
   * @param fed rows of the previous step whose best tokens are the tokens of this step, if the decoder `runsAhead`
   */
  async next(
    tokens: PackedTokens,
    rows: readonly number[],
    { needed, normalize = false, experts = false, fed, onHidden }: {
      readonly needed?: number | undefined;
      readonly normalize?: boolean;
      readonly experts?: boolean;
      readonly fed?: readonly number[] | undefined;
      readonly onHidden?:
        | ((rows: Float32Array) => void | Promise<void>)
        | undefined;
    } = {},
  ): Promise<Candidates[]> {
    const { program, gives, normalizes } = this.shape;
    const picks = gives !== "logits";
    const best = typeof gives === "object" &&
      (!gives.logits || needed !== undefined && needed <= gives.candidates);
    const routers = experts ? this.routers : [];
    const readRows = [
      ...picks ? [] : ["logits"],
      ...experts ? this.#routersOfTokens : [],
    ];
    const outputs = await this.#session.run(program.name, {
      ...this.#inputsOf(tokens, fed !== undefined),
      ...picks ? { rows: integers(Int32Array.from(rows)) } : {},
    }, {
      outputs: [
        ...rows.length === 0 ? [] : [
          ...best ? Object.values(BEST) : ["logits"],
          ...normalize && normalizes ? [NORMALIZER] : [],
          ...routers,
        ],
        ...onHidden ? [HIDDEN] : [],
      ],
      rows: Object.fromEntries(readRows.map((name) => [name, rows])),
      everywhere: true,
      ...fed ? { fed: { input: "ids", output: BEST.ids, rows: fed } } : {},
    });
    const hidden = outputs[HIDDEN]?.data;
    if (hidden) await onHidden?.(hidden as Float32Array);
    return rows.map((_, i) => ({
      ...candidatesAt(i, outputs, rows.length),
      ...experts
        ? { experts: routers.map((name) => rowOf(outputs[name]!, i)) }
        : {},
    }));
  }

  /** The number of steps that `series` should run. */
  get seriesLength(): number {
    const { series } = this.#session;
    return series && this.#continues ? series.length : 1;
  }

  /**
   * Runs steps without the host between them. The tokens of each later step are the best ones after all tokens of the
   * step before; their pages are assigned. Returns these best tokens of each step.
   */
  async series(steps: readonly PackedTokens[]): Promise<Candidates[][]> {
    const rows = Array.from(steps[0]!.ids.keys());
    const selected = integers(Int32Array.from(rows));
    const fed = { input: "ids", output: BEST.ids, rows };
    const outputs = await this.#session.series!.run(
      this.shape.program.name,
      steps.map((tokens, i) => ({
        inputs: { ...this.#inputsOf(tokens, i > 0), rows: selected },
        ...i > 0 ? { fed } : {},
      })),
      { outputs: Object.values(BEST) },
    );
    return outputs.map((each) =>
      rows.map((i) => candidatesAt(i, each, rows.length))
    );
  }

  /** Every output of a step, with choices of experts if the plan takes them. Empty if another process has rank 0. */
  async outputs(
    tokens: PackedTokens,
    choices: { readonly [name: string]: HostTensor } = {},
  ): Promise<{ readonly [name: string]: HostTensor }> {
    return await this.#session.run(this.shape.program.name, {
      ...this.#inputsOf(tokens),
      ...choices,
    });
  }

  #inputsOf(
    tokens: PackedTokens,
    isAssigned = false,
  ): { [name: string]: HostTensor } {
    if (this.pages && !isAssigned) assignTokens(this.pages, tokens);
    const inputs = {
      ...tokenInputs(tokens),
      ...this.pages?.tensors({
        copied: this.concurrentRuns > 1 || this.runsAhead,
      }),
    };
    // The next run continues from the states of this one.
    this.pages?.ran(tokens);
    return inputs;
  }
}

/** Rejects more than the bounds of a plan. */
export function checkRoom(
  shape: DecoderShape,
  need: { readonly sequences: number; readonly context: number },
): void {
  if (need.sequences > shape.maxSequences) {
    throw new DataError(
      `Cannot run ${need.sequences} sequences: the plan allows at most ${shape.maxSequences}. Raise --max-sequences`,
    );
  }
  if (need.context > shape.maxContext) {
    throw new DataError(
      `Cannot run ${need.context} tokens of a sequence: the plan allows at most ${shape.maxContext}. Raise --max-context`,
    );
  }
}

function rowOutputsOf(
  { program, modelAxis }: Pick<DecoderShape, "program" | "modelAxis">,
): [string, Port][] {
  const axisOf = ({ axes }: Port) =>
    axes[0] === undefined ? undefined : modelAxis(axes[0]);
  const token = axisOf(program.inputs["ids"]!);
  return Object.entries(program.outputs).filter(([, port]) =>
    axisOf(port) === token && port.axes.length === 2
  );
}

/** The candidates of a row of outputs with a number of rows. */
function candidatesAt(
  row: number,
  outputs: { readonly [name: string]: HostTensor },
  rows: number,
): Candidates {
  const logits = (outputs[BEST.logits] ?? outputs["logits"])?.data;
  const ids = outputs[BEST.ids]?.data as Int32Array | undefined;
  const width = (logits?.length ?? 0) / rows;
  const [from, to] = [row * width, (row + 1) * width];
  return {
    logits: logits!.subarray(from, to) as Float32Array,
    ids: ids?.subarray(from, to),
    normalizer: outputs[NORMALIZER]?.data[row],
  };
}

function layerOf(router: string): number {
  return Number(/\d+/.exec(router));
}

function rowOf({ shape, data }: HostTensor, row: number): number[] {
  const [, width = 1] = shape;
  return [...data.subarray(row * width, (row + 1) * width)];
}
