/**
 * Causal depthwise convolution: a lane processes one channel and the tokens of a block of sequences one after another.
 */

import type { Expr, Grid, Kernel } from "./kernel.ts";
import { bindings, foldGrid, GROUP_XZ, kernelOf, wgsl } from "./kernel.ts";
import {
  eachRun,
  sequenceBlocks,
  type Sequences,
  stateRow,
} from "./pieces/sequences.ts";

/** Channels per workgroup. */
const LANES = 64;

/** A convolution. Its grid is `conv1dGrid`. */
export interface Conv1dOptions extends Sequences {
  readonly name: string;
  readonly tokens: Expr;
  readonly channels: number;
  /** Taps per channel. */
  readonly width: number;
}

/** One workgroup per group of channels and block of sequences. */
export function conv1dGrid(o: Conv1dOptions): Grid {
  const [x, z] = foldGrid(Math.ceil(o.channels / LANES));
  return [x, sequenceBlocks(o), z];
}

/**
 * y[token, channel] = sum of weight[channel, tap] * the channel's input width - 1 - tap tokens earlier, in the order of
 * taps; the state contains the inputs before the first token of a run.
 */
export function conv1d(o: Conv1dOptions): Kernel {
  const { channels, width } = o;
  const slots = width - 1;
  const slotOf = (use: "read" | "write", slot: string) =>
    wgsl`(${stateRow(o, use)} * ${slots} + ${slot}) * ${channels} + channel`;
  return kernelOf({
    name: o.name,
    workgroupSize: LANES,
    bindings: bindings({
      x: "f32 [token, channel]",
      weight: "f32 [channel, tap]",
      sequence: "i32 [token]",
      position: "i32 [token]",
      states: "i32 [sequence, use]",
    }, {
      y: "f32 [token, channel]",
      state: "f32 [sequence, slot, channel]",
    }),
    body: wgsl`
      let channel = ${GROUP_XZ} * ${LANES} + lane;
      if (channel < ${channels}) {
        @unroll (j < ${width}) {
          let tap[j] = weight[channel * ${width} + j];
          var input[j] = 0.0;
        }
        ${
      eachRun(o, {
        begin: wgsl`
          @unroll (j < ${slots}) {
            input[j + 1] = select(state[${
          slotOf("read", "j")
        }], 0.0, position[t] == 0);
          }`,
        token: wgsl`
          @unroll (j < ${slots}) { input[j] = input[j + 1]; }
          input[${slots}] = x[t * ${channels} + channel];
          var sum = 0.0;
          @unroll (j < ${width}) { sum = fma(tap[j], input[j], sum); }
          y[t * ${channels} + channel] = sum;`,
        end: wgsl`
          @unroll (j < ${slots}) { state[${
          slotOf("write", "j")
        }] = input[j + 1]; }`,
      })
    }
      }`,
  });
}
