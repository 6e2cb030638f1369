/** Names of axes: `expert` of the model, `layers.3.moe/expert` of the block `layers.3.moe`. */

/** The name that a model is written with: `expert` of `layers.3.moe/expert`. */
export function shortAxis(axis: string): string {
  return axis.slice(axis.lastIndexOf("/") + 1);
}

/** The block that an axis is local to; "" for an axis of the model. */
export function blockOfAxis(axis: string): string {
  return axis.slice(0, Math.max(0, axis.lastIndexOf("/")));
}

/** The name in the model of the axis that is called `name` in a block. */
export function axisIn(block: string, name: string): string {
  return block === "" ? name : `${block}/${name}`;
}

/** Whether a block is another one or inside of it. */
export function isWithin(block: string, outer: string): boolean {
  return outer === "" || block === outer || block.startsWith(`${outer}.`);
}
