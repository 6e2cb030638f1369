/** Rows of all ranks that share a device, one rank's after another's: a launch, and nothing waits for the host. */

import { invariant } from "../errors.ts";
import {
  add,
  and,
  binary,
  for_,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  mul,
  set,
  store,
  sub,
  u32,
  var_,
} from "../kernel/build.ts";
import type { Kernel } from "../kernel/tree.ts";
import { ELEMENTWISE_LANES } from "../kernel/elementwise.ts";
import { SOURCES } from "./exchange.ts";
import { groupXY, kernelOf, reads, writes } from "../kernel/make.ts";

/**
 * A part of a gather of rows. Bindings: `counts` u32 [position], the rows of each; `dst`, written, and `src0`, `src1`, …
 * of the group positions `sources`. Its grid is `elementwiseGrid(words of all rows)`.
 */
export interface GatherRowsOptions {
  readonly name: string;
  readonly rowWords: number;
  /** Group positions of the sources, one after another, at most four. */
  readonly sources: readonly number[];
}

function u(name: string) {
  return local(name, "u32");
}

/** The words of the sources' rows, after those of the positions before them. */
export function gatherRows(o: GatherRowsOptions): Kernel {
  invariant(o.sources.length <= SOURCES, "at most four sources");
  const numbers = o.sources.map((_, f) => f);
  const words = (position: number) =>
    mul(load("counts", u32(position), "u32"), u32(o.rowWords));
  return kernelOf({
    name: o.name,
    workgroupSize: ELEMENTWISE_LANES,
    bindings: [
      reads("counts", "u32"),
      ...numbers.map((f) => reads(`src${f}`, "u32")),
      writes("dst", "u32"),
    ],
    body: [
      let_("i", add(mul(groupXY(), u32(ELEMENTWISE_LANES)), id("local"))),
      var_("before", u32(0)),
      for_("p", u32(0), u32(o.sources[0]!), [
        set("before", add(u("before"), load("counts", u("p"), "u32"))),
      ]),
      let_("start0", mul(u("before"), u32(o.rowWords))),
      ...numbers.flatMap((f) => [
        let_(`start${f + 1}`, add(u(`start${f}`), words(o.sources[f]!))),
        if_(
          and(
            binary("ge", u("i"), u(`start${f}`)),
            lt(u("i"), u(`start${f + 1}`)),
          ),
          [
            store(
              "dst",
              u("i"),
              load(`src${f}`, sub(u("i"), u(`start${f}`)), "u32"),
            ),
          ],
        ),
      ]),
    ],
  });
}
