/** Tiles of the grouped matmuls, listed per expert. */

import { type KernelText, wgsl } from "../../../spec/kernel/text/text.ts";

/**
 * One lane per expert `e` lists its tiles in `tiles`, (expert, first row, rows) each, after the `tile` earlier tiles:
 * `of_expert` rows from `first_row` on, at most `tileRows` per tile.
 */
export function listTiles(
  { expert, lanes, tileRows, listed }: {
    readonly expert: KernelText;
    readonly lanes: number;
    readonly tileRows: number;
    /**
     * Declares `of_lane`: `of_expert`, but loaded from a binding, so that predictions can evaluate it. Default: none,
     * for an `of_expert` that they can evaluate.
     */
    readonly listed?: KernelText | undefined;
  },
): KernelText {
  const tilesOf = (rows: string) =>
    wgsl`(${rows} + ${tileRows - 1}) / ${tileRows}`;
  const count = tilesOf("of_expert");
  return wgsl`
    if (e % ${lanes} == lane) {
      ${listed}
      for (var t = 0u; t < ${listed ? tilesOf("of_lane") : count}; t++) {
        let word = (tile + t) * 3 + 1;
        let done = t * ${tileRows};
        tiles[word] = ${expert};
        tiles[word + 1] = first_row + done;
        tiles[word + 2] = min(${tileRows}u, of_expert - done);
      }
    }
    tile += ${count};`;
}
