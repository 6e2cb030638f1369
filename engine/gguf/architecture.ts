/** A row of the table of architectures: the fields of config.json and the tensor names of GGUF files. */

import type { Tiled } from "./value_heads.ts";
import type { GgufHeader } from "./header.ts";
import type { Values } from "./values.ts";
import type { GgufValues } from "./write.ts";

/** Mapping from a tensor of llama.cpp to tensors of a checkpoint. */
export interface TensorName {
  /** `{layer}` and, for stacked experts, `{expert}` are replaced by numbers. */
  readonly name: string;
  /** Another name in checkpoints. */
  readonly also?: string;
  /** Rows are in the order of interleaved rotary dims: the key with their number of heads. */
  readonly interleaved?: "head_count" | "head_count_kv";
  /** A vector that is a matrix of one row in a checkpoint. */
  readonly row?: true;
  /** A matrix that has a second axis of length 1 in a checkpoint. */
  readonly middle?: true;
  /** The name in a checkpoint is complete. Only names in files have this ending. */
  readonly bare?: "weight" | "bias" | "";
  /** Sizes of axes in a checkpoint. -1: the number of elements. */
  readonly axes?: readonly number[];
  /** A vector that is a matrix in files: of one column, or of a row per group of a Mamba-2 layer. */
  readonly filed?: "column" | "groups";
  /** A vector with zeros after its elements in a checkpoint: the key with the number of elements. */
  readonly padded?: "head_count";
  /** The product of two vectors of a checkpoint: `NAME_norm`, and `NAME_proj` of one row. */
  readonly product?: true;
  /** A tensor of the layers of checkpoints that have this one. In other layers the name has another meaning. */
  readonly beside?: string;
  /** The name in layers without the tensor `beside`. */
  readonly otherwise?: string;
  /** Elements are changed. */
  readonly values?: Values;
  /** Value heads are in another order. */
  readonly tiled?: Tiled;
}

/** A tensor with all experts of a checkpoint whose files have one tensor for each part. */
export interface FusedTensor {
  /**
   * Names of the parts. `{expert}` is replaced by the number of the expert. Without it, all experts share the parts.
   */
  readonly parts: readonly string[];
  /** Rows of the parts alternate. Default: parts follow each other. */
  readonly interleaved?: true;
  /** The last two axes are exchanged. */
  readonly transposed?: true;
}

/** A row of the table. */
export interface GgufArchitecture {
  /** `general.architecture`. Default: the key of the row. Rows with equal names differ in `mark` or `keys`. */
  readonly name?: string;
  /** Name of the architecture in config.json. */
  readonly architecture: string;
  /**
   * Other names whose models are written as such files, such as models of text and images, of which the text model is.
   */
  readonly others?: readonly string[];
  /**
   * Fields of config.json besides the common ones, with the keys that they are read from. The first existing key is
   * used.
   */
  readonly fields: ConfigFields;
  /** Fields of config.json with the same value in all models of the architecture, or in files without their key. */
  readonly constants?: { readonly [field: string]: unknown };
  /** Other values of constants that mean the same in files. */
  readonly equivalents?: { readonly [field: string]: unknown };
  /** Fields of config.json that say whether a tensor is there. */
  readonly present?: { readonly [field: string]: string };
  /** Keys with the same value in all files of the architecture. */
  readonly keys?: { readonly [key: string]: number | boolean };
  /** A key that files of the row have, and files of later rows of the same name do not. */
  readonly mark?: string;
  /** Keys that are products of fields of config.json. */
  readonly products?: { readonly [key: string]: readonly string[] };
  /** Only a part of the dims of heads is rotated. */
  readonly rotatesPart?: true;
  /** `alpha` of dynamic scaling is in the base of the rotary frequencies. */
  readonly raisesBase?: true;
  /**
   * Attention is latent: heads have other sizes for keys and values, and `kv_b_proj` may be two tensors. `split`: it
   * always is.
   */
  readonly latent?: true | "split";
  /** The field of config.json with the numbers of layers without experts, or with the types of all layers. */
  readonly listsDense?: "mlp_only_layers" | "mlp_layer_types";
  /** `layer_types` of config.json, repeated. */
  readonly pattern?: readonly string[];
  /** `layer_types` of layers with and without key heads, whose numbers files list by layer. */
  readonly listsKeyHeads?: readonly [attention: string, other: string];
  /** Checkpoints have one tensor of the projections `in_proj_qkv` and `in_proj_z`, grouped by key head. */
  readonly splitsProjections?: true;
  /**
   * The default of `mrope_section` of config.json. All sections have the same positions in texts. Without a default,
   * files have sections if config.json does.
   */
  readonly sections?: readonly number[];
  /**
   * Queries grow with the position (`llama_4_scaling_beta`), and positions of a config.json without scaling are scaled.
   */
  readonly hasTemperature?: true;
  /** Positions of a config.json without scaling are scaled, and the bounds of YaRN are not rounded. */
  readonly scalesByDefault?: true;
  /**
   * The layer that predicts a further token is a module of its own in checkpoints, `mtp`. Default: a layer after the
   * last one, as in files.
   */
  readonly predictorModule?: true;
  /** Start of the names of layers in checkpoints. Default: `model.layers`. */
  readonly layers?: string;
  /** `rope_scaling` of files with the tensor `rope_freqs`. */
  readonly scaling?: { readonly [field: string]: unknown };
  /** Names of tensors that add to or replace the common ones, without `blk.N.` and `.weight`. */
  readonly tensors: { readonly [name: string]: string | TensorName };
  /** Names of tensors outside of layers that precede the common ones. */
  readonly outer?: { readonly [name: string]: string | TensorName };
  /** Names of fused tensors in a layer of a checkpoint. */
  readonly fused?: { readonly [name: string]: FusedTensor };
  /** Tensors of files that no parameter is read from. */
  readonly unused?: readonly string[];
  /** Fields and keys that other properties of a row cannot express. */
  readonly config?: {
    read(
      name: string,
      header: GgufHeader,
    ): { readonly [field: string]: unknown };
    /** Returns keys, without the name of the architecture. */
    write(name: string, config: ReadonlyMap<string, unknown>): GgufValues;
  };
  /** Vectors of files that no parameter has, by name. Undefined: files do not have it. */
  readonly added?: (
    config: ReadonlyMap<string, unknown>,
  ) => { readonly [name: string]: readonly number[] | undefined };
  /** llama.cpp uses the embeddings where the file has no output matrix. */
  readonly ties?: true;
}

/** Keys of fields of config.json, without the name of the architecture. */
export type ConfigFields = {
  readonly [field: string]: string | readonly string[];
};
