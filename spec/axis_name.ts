/** Names of axes: `expert` of the model, `layers.3.moe.expert` of the block `layers.3.moe`. */

/** The name in the source of the model: `expert` for `layers.3.moe.expert`. */
export function shortAxis(axis: string): string {
  return axis.slice(axis.lastIndexOf(".") + 1);
}

/** The block of a local axis; "" for an axis of the model. */
export function blockOfAxis(axis: string): string {
  return axis.slice(0, Math.max(0, axis.lastIndexOf(".")));
}

/** The global name of the axis `name` of a block. */
export function axisIn(block: string, name: string): string {
  return block === "" ? name : `${block}.${name}`;
}

/** Whether a block equals another one or is nested in it. */
export function isWithin(block: string, outer: string): boolean {
  return outer === "" || block === outer || block.startsWith(`${outer}.`);
}
