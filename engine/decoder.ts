/** A decoder's plan in use: packed tokens in, logits out. Knows only the plan, so a saved one works alike. */

import type { HostTensor, Session } from "../runtime/mod.ts";
import { DataError } from "../spec/errors.ts";
import type { Plan, Port, Program } from "../spec/plan.ts";
import type { PackedTokens } from "./packing.ts";
import { CHOICES } from "./replay.ts";

/** Bounds and ports of a decoder's plan. */
export interface DecoderShape {
  readonly program: Program;
  readonly vocabulary: number;
  readonly maxTokens: number;
  readonly maxSequences: number;
  readonly maxContext: number;
  /** Experts of a layer; 0 where there are none. */
  readonly experts: number;
  /** Inputs that are choices of experts, where the plan does not choose itself. */
  readonly choices: readonly (readonly [name: string, port: Port])[];
  /** Elements of an input or output for each token. */
  width(port: Port): number;
}

/**
 * The shape of a plan that takes `ids`, `sequence` and `position`, perhaps choices of experts, and gives `logits`;
 * undefined for any other.
 */
export function decoderShape(plan: Plan): DecoderShape | undefined {
  const program = plan.programs[0];
  const logits = program?.outputs["logits"];
  const inputs = Object.entries(program?.inputs ?? {});
  const choices = inputs.filter(([name]) => CHOICES.test(name));
  const others = inputs.map(([name]) => name)
    .filter((name) => !CHOICES.test(name)).sort().join(" ");
  const size = (axis: string | undefined): number | undefined =>
    axis === undefined ? undefined : plan.axes[axis]?.size;
  const [token, vocab] = logits?.axes ?? [];
  const vocabulary = size(vocab);
  const maxTokens = size(token);
  const maxSequences = size("sequence");
  const maxContext = size("context");
  if (
    program === undefined || others !== "ids position sequence" ||
    vocabulary === undefined || maxTokens === undefined ||
    maxSequences === undefined || maxContext === undefined
  ) return undefined;
  const width = (port: Port): number => size(port.axes[1]) ?? 1;
  return {
    ...{ program, vocabulary, maxTokens, maxSequences, maxContext },
    ...{ experts: size("expert") ?? 0, choices, width },
  };
}

/** A decoder on its devices. */
export class Decoder implements DecoderShape {
  readonly program: Program;
  readonly vocabulary: number;
  readonly maxTokens: number;
  readonly maxSequences: number;
  readonly maxContext: number;
  readonly experts: number;
  readonly choices: DecoderShape["choices"];
  readonly width: (port: Port) => number;
  readonly #session: Session;

  constructor(session: Session, shape: DecoderShape) {
    this.#session = session;
    this.program = shape.program;
    this.vocabulary = shape.vocabulary;
    this.maxTokens = shape.maxTokens;
    this.maxSequences = shape.maxSequences;
    this.maxContext = shape.maxContext;
    this.experts = shape.experts;
    this.choices = shape.choices;
    this.width = shape.width;
  }

  /** Outputs that have a row for each token, such as logits and choices of routers. */
  get rowOutputs(): [string, Port][] {
    const token = this.program.outputs["logits"]!.axes[0];
    return Object.entries(this.program.outputs).filter(([, port]) =>
      port.axes[0] === token && port.axes.length === 2
    );
  }

  /**
   * Logits behind some of the tokens, by index in the step: a row of the vocabulary each. Ranks that are processes all
   * get them, so that all choose the same tokens.
   */
  async logits(
    tokens: PackedTokens,
    rows: readonly number[],
  ): Promise<Float32Array> {
    const outputs = await this.#session.run(
      this.program.name,
      inputsOf(tokens),
      rows.length === 0
        ? { outputs: [] }
        : { outputs: ["logits"], rows: { logits: rows }, everywhere: true },
    );
    return (outputs["logits"]?.data ?? new Float32Array(0)) as Float32Array;
  }

  /** Every output of a step, with choices of experts where the plan takes them; none where another process has rank 0. */
  async outputs(
    tokens: PackedTokens,
    choices: { readonly [name: string]: HostTensor } = {},
  ): Promise<{ readonly [name: string]: HostTensor }> {
    return await this.#session.run(this.program.name, {
      ...inputsOf(tokens),
      ...choices,
    });
  }
}

function inputsOf(tokens: PackedTokens): { [name: string]: HostTensor } {
  const tensor = (data: Int32Array): HostTensor => ({
    dtype: "i32",
    shape: [data.length],
    data,
  });
  return {
    ids: tensor(tokens.ids),
    sequence: tensor(tokens.sequence),
    position: tensor(tokens.position),
  };
}

/** Refuse more than a plan has room for. */
export function checkRoom(
  shape: DecoderShape,
  need: { readonly sequences: number; readonly context: number },
): void {
  if (need.sequences > shape.maxSequences) {
    throw new DataError(
      `Cannot run ${need.sequences} sequences: the plan has room for ${shape.maxSequences}. Raise --max-sequences`,
    );
  }
  if (need.context > shape.maxContext) {
    throw new DataError(
      `Cannot run ${need.context} tokens of a sequence: the plan has room for ${shape.maxContext}. Raise --max-context`,
    );
  }
}
