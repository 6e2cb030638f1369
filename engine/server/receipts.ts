/** Receipts of responses. */

import { type Receipt, receiptOf } from "../generation/receipt/receipt.ts";
import { RequestError } from "./errors.ts";
import type { Collected, Prepared, PreparedCompletion } from "./format.ts";
import type { Served } from "./served.ts";

/** Whether a response has a receipt. */
export function hasReceipt({ choices }: Prepared): boolean {
  return choices.some(({ options }) => options.receipt);
}

/** Throws RequestError for a receipt that could not be replayed. */
export function checkReceipt(
  prepared: Prepared,
  { receipt }: Served,
): void {
  if (!hasReceipt(prepared)) return;
  const refuse = (state: string) =>
    new RequestError(`Cannot use 'receipt': ${state}. Leave it out`, {
      param: "receipt",
    });
  if (!receipt) {
    throw refuse("with fast numerics, bits depend on the server's mesh");
  }
  for (const { options: { grammar, forced } } of prepared.choices) {
    if (grammar) throw refuse("a replay does not restrict tokens to a grammar");
    if (forced) {
      throw refuse(
        "with 'echo' and 'logprobs', tokens of the prompt are new ones",
      );
    }
  }
}

/** The field `receipt` of a response. Empty if it has none. */
export async function receiptFields(
  prepared: PreparedCompletion,
  collected: readonly Collected[],
  { served }: { readonly served: Served },
): Promise<{ readonly receipt?: Receipt }> {
  if (!hasReceipt(prepared)) return {};
  const sequences = prepared.choices.map(({ prompt, options }, i) => {
    const { pieces } = collected[i]!;
    return receiptOf({
      prompt,
      tokens: pieces.map(({ token }) => token),
      hashes: pieces.flatMap(({ hash }) => hash ? [hash] : []),
    }, { ...options, stream: options.stream! });
  });
  return { receipt: { ...await served.receipt!(), sequences } };
}
