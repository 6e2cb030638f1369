/** A served model. */

import type { ChatTemplate } from "../checkpoint/chat.ts";
import type { Grammars } from "../text/grammar.ts";
import type { DecoderShape } from "../generation/decoder.ts";
import type { Receipt } from "../generation/receipt/receipt.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import type { Metrics } from "./metrics.ts";
import type { RemoteLoop } from "./remote_loop.ts";
import type { TokenTexts } from "./token_texts.ts";

/** A model that is served. */
export interface Served {
  /** The model's id. */
  readonly name: string;
  /** Seconds since 1970. */
  readonly created: number;
  readonly loop: RemoteLoop;
  readonly shape: Pick<DecoderShape, "vocabulary" | "maxContext">;
  /** Stop tokens. */
  readonly stop: ReadonlySet<number>;
  /** Encodes prompts. */
  readonly encoder: Tokenizer;
  /** Decodes texts in another process, so that long prompts do not delay them. */
  readonly decoder: Tokenizer;
  /** Checks grammars in another process than the loop's. */
  readonly openGrammars: () => Promise<Grammars>;
  readonly tokenTexts: TokenTexts;
  readonly metrics: Metrics;
  /**
   * Everything of a receipt besides its sequences. Reads all weights at the first call. Undefined for fast numerics.
   */
  readonly receipt: (() => Promise<Omit<Receipt, "sequences">>) | undefined;
  /** A clock in milliseconds. */
  readonly now: () => number;
  /** The checkpoint's template, or the reason why there is none. */
  readonly chat: ChatTemplate | { readonly missing: string };
}
