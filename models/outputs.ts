/**
 * Names of the outputs and inputs of decoders that engines use. The file imports nothing: pages read it without the
 * compiler.
 */

/** The output with the log-sum-exp of each row's logits. */
export const NORMALIZER = "logits.normalizer";

/** The normalized rows before the output matrix: an output, and the input of a layer that predicts further tokens. */
export const HIDDEN = "hidden";
