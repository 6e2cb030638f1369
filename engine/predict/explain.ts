/** Why more devices help or do not: what stands between a mesh and its share of the first one's time. */

import type { Parts, Prediction } from "./predict.ts";

/** A prediction beside the first of a comparison. */
export interface Compared {
  readonly prediction: Prediction;
  /** How many times as fast as the first. */
  readonly speed: number;
  /** One sentence. */
  readonly why: string;
}

/** Compare predictions with the first of them. */
export function comparePredictions(
  predictions: readonly Prediction[],
): Compared[] {
  const [first] = predictions;
  return predictions.map((prediction) => ({
    prediction,
    speed: first!.seconds / prediction.seconds,
    why: prediction === first
      ? describeAlone(prediction)
      : describeAgainst(prediction, first!),
  }));
}

/** `ep=4` */
export function meshName({ mesh }: Pick<Prediction, "mesh">): string {
  return mesh.map(({ name, size }) => `${name}=${size}`).join(",");
}

const REASONS: { readonly [P in keyof Parts]: string } = {
  launch: "what every launch takes, however little it does",
  arithmetic: "arithmetic",
  memory: "reading and writing memory",
  exchange: "exchanging rows between ranks",
  waiting: "waiting for ranks with more to do",
  run: "what the host takes besides, for a run and at its exchanges",
};

/** From where on an imbalance is worth a word. */
const UNEVEN = 1.15;

function percent(part: number, whole: number): string {
  return `${Math.round(100 * part / whole)} %`;
}

function largest(parts: Parts): keyof Parts {
  return (Object.keys(parts) as (keyof Parts)[]).reduce((best, part) =>
    parts[part] > parts[best] ? part : best
  );
}

function describeAlone(prediction: Prediction): string {
  const { parts, seconds, expertBytes } = prediction;
  const part = largest(parts);
  const read = part === "memory" && expertBytes > 0
    ? `, ${sizeText(expertBytes)} of it expert weights`
    : "";
  return `${meshName(prediction)}: most of a step is ${REASONS[part]} (${
    percent(parts[part], seconds)
  })${read}`;
}

function describeAgainst(prediction: Prediction, first: Prediction): string {
  const { parts, seconds, ranks, devices } = prediction;
  const name = meshName(prediction);
  const speed = first.seconds / seconds;
  const result = speed >= 1
    ? `${speed.toFixed(2)} times as fast as`
    : `${(1 / speed).toFixed(2)} times as slow as`;
  const head = `${name} is ${result} ${meshName(first)}`;
  // What a step takes beyond its share of the first mesh's time; on as many devices, more or less than that took.
  const share = first.devices / devices;
  const excess = Object.fromEntries(
    (Object.keys(parts) as (keyof Parts)[]).map((part) => [
      part,
      parts[part] - share * first.parts[part],
    ]),
  ) as unknown as Parts;
  if (devices === first.devices) {
    const shared = ranks > devices
      ? `${ranks} ranks share ${
        devices === 1 ? "one device" : `${devices} devices`
      }, and `
      : "";
    if (speed > 1) return `${head}: ${shared}it saves ${saved(excess)}`;
    const part = largest(excess);
    return `${head}: ${shared}most of what is added is ${REASONS[part]}, ${
      growth(part, prediction, first)
    }`;
  }
  const part = largest(excess);
  const uneven = prediction.imbalance > UNEVEN
    ? `; the busiest device computes ${
      prediction.imbalance.toFixed(1)
    } times as long as the mean one`
    : "";
  const gained = first.expertBytes > prediction.expertBytes
    ? `; each rank reads ${
      sizeText(prediction.expertBytes)
    } of expert weights instead of ${sizeText(first.expertBytes)}`
    : "";
  return `${head} on ${devices} devices instead of ${first.devices}: most of what it takes beyond an even share is ${
    REASONS[part]
  }, ${growth(part, prediction, first)}${uneven}${gained}`;
}

/** What has become least. */
function saved(excess: Parts): string {
  const parts = Object.keys(excess) as (keyof Parts)[];
  const part = parts.reduce((best, next) =>
    excess[next] < excess[best] ? next : best
  );
  return `most on ${REASONS[part]}`;
}

function growth(
  part: keyof Parts,
  prediction: Prediction,
  first: Prediction,
): string {
  const { parts, seconds, launches } = prediction;
  const counts = part === "launch"
    ? ` (${launches} launches on a device, ${
      launches === first.launches
        ? `as many as with ${meshName(first)}`
        : `instead of ${first.launches}`
    })`
    : part === "exchange"
    ? ` (${sizeText(prediction.sentBytes)} between ranks)`
    : "";
  return `${percent(parts[part], seconds)} of the step${counts}`;
}

/** `12.3 MiB` */
export function sizeText(bytes: number): string {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}
