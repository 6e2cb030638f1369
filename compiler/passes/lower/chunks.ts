/**
 * Chunked dispatch: the experts of every rank are cut into parts, and the rows of one part travel while those of another
 * are computed. Work on dispatched rows is kept until a combine needs it, and then lowered once for each chunk.
 */

import { ModelError } from "../../../spec/errors.ts";
import { storedDType } from "../../../spec/dtype.ts";
import type { StepPart } from "../../../spec/plan.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import {
  about,
  addScratch,
  amendBuffer,
  bufferAxes,
  freshName,
  type Lowering,
  type RoutingBuffers,
  type Storage,
} from "./context.ts";
import { emitExchange } from "./exchange.ts";
import type { Pipeline, Travelling } from "./lowering.ts";
import { restAxes } from "./places.ts";
import { rowsAxis } from "./storage.ts";

/** Lowers one node, in the lowering of one chunk. */
export type LowerNode = (lowering: Lowering, node: Node) => void;

/** Whether a node was kept for later: it works on dispatched rows that come in chunks. */
export function keepForChunks(lowering: Lowering, node: Node): boolean {
  const own = lowering.dispatched.get(node);
  const pipeline = own && lowering.pipelines.get(own);
  if (pipeline && node.primitive !== "dispatch") {
    pipeline.kept.push(node);
    return true;
  }
  if (!own && node.primitive !== "combine") refuseRows(lowering, node);
  return false;
}

function refuseRows({ dispatched, pipelines }: Lowering, node: Node): void {
  const rows = node.inputs.some((input) => {
    const route = dispatched.get(input);
    return route !== undefined && pipelines.has(route);
  });
  if (!rows) return;
  throw new ModelError(
    `Cannot cut a dispatch into chunks: '${node.primitive}' needs all of its rows at once. Compile with one chunk`,
    node.span,
  );
}

/** Send off the first chunk of a dispatched value; the others follow when it is computed on. */
export function startDispatch(
  lowering: Lowering,
  pipeline: Pipeline,
  value: Travelling,
): void {
  pipeline.travelling.push(value);
  startChunk(lowering, pipeline, value, 0);
}

function startChunk(
  lowering: Lowering,
  pipeline: Pipeline,
  value: Travelling,
  c: number,
): void {
  const { node, sent, words } = value;
  const chunk = pipeline.chunks[c]!;
  const axes = restAxes(node, chunk.node);
  const dtype = storedDType(node.dtype);
  const received = addScratch(lowering, "received", dtype, [
    { axis: rowsAxis(chunk), size: chunk.receiveBound, dynamic: true },
    ...bufferAxes(lowering, axes),
  ]);
  const inner = ofChunk(lowering, pipeline, c);
  const handle = freshName(lowering, `dispatch ${chunk.number} ${inner.chunk}`);
  value.handles.push(handle);
  emitExchange(inner, node, chunk, {
    from: sent,
    to: received,
    words,
    direction: "forward",
    handle,
    part: { verb: "dispatch", routing: chunk.number, part: "exchange" },
  });
  pipeline.storages[c]!.set(node, {
    buffer: received,
    dtype,
    axes,
    rows: { routing: chunk, through: chunk.rowOf },
  });
}

/** The lowering in which the nodes of one chunk are lowered: values on rows are those of the chunk. */
function ofChunk(
  lowering: Lowering,
  { chunks, storages }: Pipeline,
  c: number,
): Lowering {
  const chunk = chunks[c]!;
  return {
    ...lowering,
    chunk: `chunk ${c + 1} of ${chunks.length}`,
    routings: new Map([...lowering.routings, [chunk.node, chunk]]),
    storages: new Map([...lowering.storages, ...storages[c]!]),
  };
}

/** What travels back for a combine. */
interface Return {
  readonly node: NodeOf<"combine"> | NodeOf<"collect">;
  readonly words: number;
  readonly to: string;
}

/**
 * Work on every chunk as it arrives, while the next one travels, and send back what the combine takes of it. Returns when
 * all of it is back in `to`.
 */
export function runChunks(
  lowering: Lowering,
  pipeline: Pipeline,
  back: Return,
  lowerNode: LowerNode,
): void {
  const { chunks, storages } = pipeline;
  const travelling = pipeline.travelling.splice(0);
  const kept = pipeline.kept.splice(0);
  const waitForReturn = (c: number, handle: string) =>
    addWait(ofChunk(lowering, pipeline, c), back.node, handle, {
      verb: "combine",
      routing: chunks[c]!.number,
      part: "wait",
    });
  amendBuffer(lowering, back.to, { writers: chunks.length });
  let last: string | undefined;
  for (const [c, chunk] of chunks.entries()) {
    for (const value of travelling) {
      if (c + 1 < chunks.length) startChunk(lowering, pipeline, value, c + 1);
    }
    for (const { node, handles } of travelling) {
      addWait(ofChunk(lowering, pipeline, c), node, handles[c]!, {
        verb: "dispatch",
        routing: chunk.number,
        part: "wait",
      });
    }
    const inner = ofChunk(lowering, pipeline, c);
    for (const node of kept) {
      lowerNode(inner, node);
      const storage = inner.storages.get(node);
      if (storage) storages[c]!.set(node, storage);
    }
    // One returns while the next is computed: more under way would only take more memory to stage them.
    if (last !== undefined) waitForReturn(c - 1, last);
    last = sendBack(inner, chunk, back);
  }
  waitForReturn(chunks.length - 1, last!);
}

function sendBack(
  lowering: Lowering,
  chunk: RoutingBuffers,
  { node, words, to }: Return,
): string {
  const handle = freshName(
    lowering,
    `combine ${chunk.number} ${lowering.chunk}`,
  );
  emitExchange(lowering, node, chunk, {
    from: (lowering.storages.get(node.inputs[0]!) as Storage).buffer,
    to,
    words,
    direction: "back",
    handle,
    part: { verb: "combine", routing: chunk.number, part: "exchange" },
  });
  return handle;
}

function addWait(
  lowering: Lowering,
  node: Node,
  handle: string,
  part: StepPart,
): void {
  lowering.steps.push({
    op: "wait",
    ranks: "all",
    handle,
    ...about(lowering, node, part),
  });
}
