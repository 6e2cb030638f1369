/**
 * The picture of the arena: the address range and the steps of each buffer. Memory that only other parts of the program
 * use is omitted.
 */

import { sizeText } from "../../spec/size_text.ts";
import { typeText } from "../../spec/text/parts.ts";
import { stepLink } from "../links.ts";
import { type LiveBuffer, liveBuffers } from "../memory.ts";
import { type PlanView, type ProgramView, stepsOf } from "../plan_view.ts";
import type { Figure, Shape } from "./figure.ts";
import type { Section } from "../sections.ts";

/** Options of an arena picture. */
export interface MemoryPictureOptions {
  readonly program: ProgramView;
  readonly section: Section;
  /** The rank. Default: 0. */
  readonly rank?: number;
}

const WIDTH = 1180;
const LEFT = 84;
const TOP = 14;
const HEIGHT = 300;

/**
 * Draws the scratch allocations over the steps of one layer of a section. Steps are horizontal and addresses are
 * vertical.
 */
export function memoryPicture(
  view: PlanView,
  { program, section, rank = 0 }: MemoryPictureOptions,
): Figure {
  const { start, length } = section;
  const all = liveBuffers(view, program, rank);
  const bases = stacked(all);
  const shown = all.filter(({ first, last }) =>
    first < start + length && last >= start
  );
  const { top, below } = usedBy(shown, bases);
  const scaleX = (step: number) =>
    LEFT + (WIDTH - LEFT - 8) * (step - start) / length;
  const scaleY = (bytes: number) => TOP + HEIGHT * (1 - bytes / top);
  return {
    size: [WIDTH, TOP + HEIGHT + 40],
    label: `scratch memory of rank ${rank} over ${length} steps, which use ${
      sizeText(top)
    }`,
    shapes: [
      ...[0, 0.25, 0.5, 0.75, 1].flatMap((part): Shape[] => [
        {
          kind: "path",
          ink: "line",
          width: 1,
          d: `M${LEFT} ${scaleY(top * part)} H${WIDTH - 8}`,
        },
        {
          kind: "text",
          anchor: "end",
          size: 11,
          ink: "soft",
          at: [LEFT - 8, scaleY(top * part) + 4],
          text: sizeText(Math.round(top * part)),
        },
      ]),
      ...shown.flatMap((one) => {
        const from = scaleX(Math.max(one.first, start));
        const to = scaleX(Math.min(one.last + 1, start + length));
        const { allocation, offset } = one.buffer;
        const low = below(bases.get(allocation)! + offset);
        return bufferShapes(view, program, {
          one,
          from,
          to,
          high: scaleY(low + one.bytes),
          low: scaleY(low),
        });
      }),
      ...stepsOf(program.steps, section).flatMap(({ index }, i): Shape[] =>
        length > 40 && i % 5 > 0 ? [] : [{
          kind: "text",
          anchor: "middle",
          size: 10.5,
          ink: "soft",
          at: [scaleX(index + 0.5), TOP + HEIGHT + 18],
          text: `${index}`,
        }]
      ),
      {
        kind: "text",
        at: [LEFT, TOP + HEIGHT + 35],
        size: 11,
        ink: "soft",
        text: "step of the program →",
      },
    ],
  };
}

/** Returns the start of each allocation if they are stacked. */
function stacked(buffers: readonly LiveBuffer[]): ReadonlyMap<number, number> {
  const ends = new Map<number, number>();
  for (const { buffer: { allocation, offset }, bytes } of buffers) {
    ends.set(allocation, Math.max(ends.get(allocation) ?? 0, offset + bytes));
  }
  const bases = new Map<number, number>();
  let top = 0;
  for (const [allocation, end] of ends) {
    bases.set(allocation, top);
    top += end;
  }
  return bases;
}

/** Returns the maximum memory in use at any step, and the part of it below an address. */
function usedBy(
  buffers: readonly LiveBuffer[],
  bases: ReadonlyMap<number, number>,
): { readonly top: number; readonly below: (address: number) => number } {
  const used: { from: number; to: number }[] = [];
  const ranges = buffers.map(({ buffer: { allocation, offset }, bytes }) => {
    const from = bases.get(allocation)! + offset;
    return { from, to: from + bytes };
  });
  for (const { from, to } of ranges.sort((a, b) => a.from - b.from)) {
    const last = used.at(-1);
    if (last && from <= last.to) last.to = Math.max(last.to, to);
    else used.push({ from, to });
  }
  const below = (address: number) =>
    used.reduce(
      (n, { from, to }) => n + Math.max(0, Math.min(address, to) - from),
      0,
    );
  return { top: Math.max(1, below(Infinity)), below };
}

/** Width of a label's character, in pixels. */
const CHARACTER = 6.6;

function bufferShapes(
  { plan }: PlanView,
  program: ProgramView,
  { one, from, to, high, low }: {
    readonly one: LiveBuffer;
    readonly from: number;
    readonly to: number;
    readonly high: number;
    readonly low: number;
  },
): Shape[] {
  const { buffer, bytes, first, last } = one;
  const name = buffer.name.replace(/^layers\.\d+\./, "");
  const text = `${name} ${sizeText(bytes)}`;
  const room = to - from - 12;
  const shown = text.length * CHARACTER < room
    ? text
    : name.length * CHARACTER < room
    ? name
    : undefined;
  const tall = low - high;
  return [
    {
      kind: "rect",
      at: [from + 1, high],
      radius: 2,
      size: [Math.max(2, to - from - 2), Math.max(1, tall - 1)] as const,
      ink: program.roles[first] ?? "dense",
      opacity: 0.42,
      border: program.roles[first] ?? "dense",
      link: stepLink(program, first),
      title: `${buffer.name}: ${sizeText(bytes)}\n${
        typeText(plan, buffer)
      }\nsteps ${first} to ${Math.min(last, program.steps.length - 1)}`,
    },
    ...shown === undefined || tall < 12 ? [] : [{
      kind: "text" as const,
      size: 11,
      text: shown,
      at: [from + 6, high + Math.min(15, (tall - 1) / 2 + 3.8)] as const,
    }],
  ];
}
