/** Pictures of a running training: the loss by step and the load of its experts. */

import type { LossPoint } from "./live.ts";
import type { Scene, Shape } from "./scene.ts";

const WIDTH = 1180;
const LEFT = 64;
const HEIGHT = 260;
const TOP = 14;
const BOTTOM = 34;

/** Draws the loss by step. Evaluation losses are dots. */
export function lossPicture(
  losses: readonly LossPoint[],
  validations: readonly LossPoint[],
): Scene {
  const all = [...losses, ...validations].map(([, loss]) => loss)
    .filter(Number.isFinite);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const first = losses[0]?.[0] ?? 0;
  const last = Math.max(losses.at(-1)?.[0] ?? 1, first + 1);
  const x = (step: number) =>
    LEFT + (WIDTH - LEFT - 16) * (step - first) / (last - first);
  const y = (loss: number) =>
    HEIGHT - BOTTOM -
    (HEIGHT - BOTTOM - TOP) * (loss - low) / Math.max(1e-9, high - low);
  const marks = [0, 0.5, 1].flatMap((part): Shape[] => {
    const loss = low + part * (high - low);
    return [
      {
        kind: "path",
        ink: "line",
        width: 1,
        d: `M${LEFT} ${y(loss).toFixed(1)} H${WIDTH - 16}`,
      },
      {
        kind: "text",
        anchor: "end",
        size: 11,
        ink: "soft",
        at: [LEFT - 8, y(loss) + 4],
        text: loss.toFixed(3),
      },
    ];
  });
  const points = losses.filter(([, loss]) => Number.isFinite(loss))
    .map(([step, loss]) => `${x(step).toFixed(1)} ${y(loss).toFixed(1)}`);
  return {
    size: [WIDTH, HEIGHT],
    label: `the loss of steps ${first} to ${last}`,
    shapes: [
      ...marks,
      {
        kind: "path",
        ink: "attention",
        width: 1.6,
        d: `M${points.join(" L")}`,
      },
      ...validations.map(([step, loss]): Shape => ({
        kind: "rect",
        ink: "combine",
        radius: 4,
        size: [8, 8] as const,
        at: [x(step) - 4, y(loss) - 4] as const,
        title: `step ${step}: ${loss.toFixed(4)} on what is not trained on`,
      })),
      ...[first, last].map((step, i): Shape => ({
        kind: "text",
        size: 11,
        ink: "soft",
        text: `step ${step}`,
        at: [x(step), HEIGHT - 12],
        anchor: i === 0 ? "start" : "end",
      })),
    ],
  };
}

/** Draws experts by layer. A stronger color means a larger part of the choices. */
export function loadPicture(load: readonly (readonly number[])[]): Scene {
  const experts = Math.max(...load.map((layer) => layer.length));
  const cell = Math.min(60, (WIDTH - LEFT - 16) / experts);
  const height = 22;
  return {
    size: [WIDTH, TOP + 14 + load.length * height],
    label: `the load of ${experts} experts in ${load.length} layers`,
    shapes: load.flatMap((layer, l): Shape[] => [
      {
        kind: "text",
        anchor: "end",
        size: 11,
        ink: "soft",
        at: [LEFT - 8, TOP + l * height + 15],
        text: `layer ${l}`,
      },
      ...layer.map((share, e): Shape => ({
        kind: "rect",
        ink: "experts",
        radius: 3,
        at: [LEFT + e * cell + 1, TOP + l * height + 1] as const,
        size: [cell - 2, height - 2] as const,
        // A fair share has a third of the full opacity.
        opacity: Number(
          Math.min(1, 0.05 + share * layer.length / 3).toFixed(2),
        ),
        title: `expert ${e} of layer ${l}: ${
          (share * layer.length).toFixed(2)
        } of a fair share`,
      })),
    ]),
  };
}
