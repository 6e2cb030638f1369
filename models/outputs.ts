/** Names of the outputs of decoders that engines read. The file imports nothing: pages read it without the compiler. */

/** The output with the log-sum-exp of each row's logits. */
export const NORMALIZER = "logits.normalizer";
