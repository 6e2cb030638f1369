/** Plans with errors in asynchronous or chunked exchanges. */

import {
  type Broken,
  broken,
  type Draft,
  exchange,
  stepAt,
  steps,
  swap,
} from "./break_plan.ts";

// Steps of the layer on ep=2 in two chunks: 5 and 8 send the chunks, 9 and 13 wait for them, 10 to 11 and 14 to 15
// compute the experts, 12 and 17 return rows, 16 and 18 wait, 19 combines.
const [SEND, REGROUP, SEND_NEXT, ARRIVED, HIDDEN] = [5, 6, 8, 9, 10];
const [BACK, RETURNED, BACK_NEXT, RETURNED_NEXT] = [12, 16, 17, 18];
const wait = (plan: Draft, index: number) => stepAt(plan, "wait", index);

/** Inserts a step before the second regroup that writes the first word of a buffer. */
const writeTo = (plan: Draft, buffer: string) =>
  steps(plan).splice(REGROUP, 0, {
    op: "copy",
    ranks: "all",
    from: "x",
    to: buffer,
    bytes: 4,
  });

export const BROKEN_FLIGHTS: readonly Broken[] = [
  broken(
    "exchange without a wait",
    "handles",
    BACK_NEXT,
    /no step waits for it/,
    (p) => steps(p).splice(RETURNED_NEXT, 1),
  ),
  broken(
    "two waits for one exchange",
    "handles",
    ARRIVED + 1,
    /none of that name is in flight/,
    (p) => steps(p).splice(ARRIVED, 0, { ...wait(p, ARRIVED) }),
  ),
  broken(
    "wait before the start",
    "handles",
    SEND,
    /none of that name is in flight/,
    (p) => {
      const [moved] = steps(p).splice(ARRIVED, 1);
      steps(p).splice(SEND, 0, moved!);
    },
  ),
  broken(
    "two exchanges with one handle",
    "handles",
    SEND_NEXT,
    /another one of the program has that name/,
    (p) => exchange(p, SEND_NEXT).handle = exchange(p, SEND).handle!,
  ),
  broken(
    "wait on fewer ranks than the exchange",
    "handles",
    ARRIVED,
    /starts it on ranks \[all\], and here \[on ep 0\] wait/,
    (p) => wait(p, ARRIVED).ranks = { ep: [0] },
  ),
  broken(
    "received rows read before the wait",
    "flight",
    ARRIVED,
    /Cannot read buffer 'received'.*in flight and writes it$/,
    (p) => swap(p, ARRIVED, HIDDEN),
  ),
  broken(
    "sent rows overwritten in flight",
    "flight",
    REGROUP,
    /Cannot write buffer 'sent'.*in flight and reads it$/,
    (p) => writeTo(p, "sent"),
  ),
  broken(
    "received rows overwritten in flight",
    "flight",
    REGROUP,
    /Cannot write buffer 'received'.*in flight and writes it too$/,
    (p) => writeTo(p, "received"),
  ),
  broken(
    "two concurrent exchanges into one range",
    "flight",
    RETURNED,
    /Cannot write buffer 'returned'.*in flight and writes it too$/,
    (p) => {
      swap(p, RETURNED, BACK_NEXT);
      exchange(p, RETURNED).experts = exchange(p, BACK).experts!;
    },
  ),
  broken(
    "wait labeled as another part",
    "parts",
    ARRIVED,
    /wait is no 'exchange' of a dispatch/,
    (p) => wait(p, ARRIVED).part!.part = "exchange",
  ),
  broken(
    "exchange of another rank's experts",
    "shapes",
    SEND,
    /experts \[0 to 5, 4 to 6\] are not of 2 ranks/,
    (p) => exchange(p, SEND).experts![0] = [0, 5],
  ),
  broken(
    "experts sent twice",
    "chunks",
    SEND_NEXT,
    /experts 0 to 4 of group rank 0 are sent as \[0 to 2, 0 to 2\]/,
    (p) => exchange(p, SEND_NEXT).experts = exchange(p, SEND).experts!,
  ),
  broken(
    "rows returned with other experts' counts",
    "chunks",
    BACK,
    /did not come by these experts/,
    (p) => {
      const [first, second] = [exchange(p, BACK), exchange(p, BACK_NEXT)];
      [first.experts, second.experts] = [second.experts!, first.experts!];
    },
  ),
].map((kind) => ({ ...kind, chunks: 2 }));
