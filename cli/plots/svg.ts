/** An SVG chart: a frame with two axes, their ticks, and contents. Text is not measured: the caller gives its width. */

/** A range of values along an axis, and the pixel positions of its ends. */
export interface Scale {
  readonly from: number;
  readonly to: number;
  readonly start: number;
  readonly end: number;
}

/** Returns the pixel position of a value. */
export function placeAt(scale: Scale, value: number): number {
  const share = (value - scale.from) / (scale.to - scale.from || 1);
  return round(scale.start + share * (scale.end - scale.start));
}

/** Returns about `count` values between `from` and `to`, at a distance of 1, 2 or 5 times a power of ten. */
export function ticks(from: number, to: number, count: number): number[] {
  const rough = (to - from) / count;
  if (!(rough > 0)) return [from];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power *
    ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const found: number[] = [];
  for (let i = Math.ceil(from / step); i * step <= to; i++) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

/** Attributes of an element. */
export type Attributes = { readonly [name: string]: string | number };

/** Formats an element. Its content is text or other formatted elements. */
export function element(
  name: string,
  attributes: Attributes,
  content?: string,
): string {
  const written = Object.entries(attributes)
    .map(([key, value]) => ` ${key}="${value}"`).join("");
  return content === undefined
    ? `<${name}${written}/>`
    : `<${name}${written}>${content}</${name}>`;
}

/** Formats a text at a position. */
export function label(
  content: string,
  [x, y]: readonly [number, number],
  attributes: Attributes = {},
): string {
  const escaped = content.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return element("text", { x, y, ...attributes }, escaped);
}

/** Formats a line through points, in pixels. */
export function polyline(
  points: readonly (readonly [x: number, y: number])[],
  attributes: Attributes,
): string {
  const written = points.map(([x, y]) => `${round(x)},${round(y)}`).join(" ");
  return element("polyline", { points: written, fill: "none", ...attributes });
}

/** Formats a complete document on a white background. */
export function svg(
  { width, height }: { readonly width: number; readonly height: number },
  content: readonly string[],
): string {
  return `${
    element(
      "svg",
      {
        xmlns: "http://www.w3.org/2000/svg",
        width,
        height,
        viewBox: `0 0 ${width} ${height}`,
        "font-family": "sans-serif",
        "font-size": 12,
        fill: "#333",
      },
      ["", element("rect", { width, height, fill: "#fff" }), ...content, ""]
        .join("\n"),
    )
  }\n`;
}

/** Draws ticks, their numbers and a name along the bottom. */
export function bottomAxis(
  scale: Scale,
  y: number,
  name: string,
): string[] {
  const marks = ticks(scale.from, scale.to, 8).flatMap((value) => {
    const x = placeAt(scale, value);
    return [
      element("line", { x1: x, x2: x, y1: y, y2: y + 4, stroke: "#999" }),
      label(String(value), [x, y + 17], { "text-anchor": "middle" }),
    ];
  });
  const middle = round((scale.start + scale.end) / 2);
  return [...marks, label(name, [middle, y + 34], { "text-anchor": "middle" })];
}

function round(value: number): number {
  return Number(value.toFixed(1));
}
