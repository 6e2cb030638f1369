/** Quantization formats: one row each, with rules for the types of tensors. */

/** A rule: the type of tensors whose names match a pattern. `*` matches any characters. */
export interface Rule {
  readonly pattern: string;
  /** A GGUF type, or `keep` for the checkpoint's own type. */
  readonly type: string;
}

/** A format. */
export interface QuantizeTarget {
  /** The output: a GGUF file, a folder of safetensors files, or either. */
  readonly writes: readonly ("file" | "folder")[];
  /** The value of `general.file_type` in a GGUF file. */
  readonly fileType?: number;
  /** Types of tensors in a GGUF file. The first matching rule is used. */
  readonly rules: readonly Rule[];
}

const OUTER = ["model.embed_tokens.*", "lm_head.*"].map((pattern) => ({
  pattern,
  type: "Q6_K",
}));

/** The formats. */
export const QUANTIZE_TARGETS = {
  q8_0: {
    writes: ["file"],
    fileType: 7,
    rules: [{ pattern: "*", type: "Q8_0" }],
  },
  q4_0: {
    writes: ["file"],
    fileType: 2,
    rules: [...OUTER, { pattern: "*", type: "Q4_0" }],
  },
  q4_k: {
    writes: ["file"],
    fileType: 15,
    rules: [
      ...OUTER,
      { pattern: "*.v_proj.weight", type: "Q6_K" },
      { pattern: "*", type: "Q4_K" },
    ],
  },
  mxfp4: {
    writes: ["file", "folder"],
    fileType: 38,
    rules: [
      { pattern: "*.experts.*", type: "MXFP4" },
      { pattern: "*", type: "Q8_0" },
    ],
  },
  fp8: { writes: ["folder"], rules: [] },
} as const satisfies { readonly [name: string]: QuantizeTarget };

/** A name in the table. */
export type QuantizeTargetName = keyof typeof QUANTIZE_TARGETS;

/** Returns the first rule that matches a tensor. */
export function ruleOf(
  rules: readonly Rule[],
  tensor: string,
): Rule | undefined {
  return rules.find(({ pattern }) => {
    const parts = pattern.split("*").map((part) =>
      part.replace(/[.+?^${}()|[\]\\]/g, "\\$&")
    );
    return new RegExp(`^${parts.join(".*")}$`).test(tensor);
  });
}
