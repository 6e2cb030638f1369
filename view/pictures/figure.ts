/**
 * A picture as data: shapes with positions and colors. `figureSvg` writes it. Text is not measured: the caller gives
 * its width.
 */

import type { Ink, Palette } from "../palette.ts";

/** Properties of all shapes: a text for the pointer, and the target of a click. */
export interface ShapeNote {
  readonly title?: string | undefined;
  /** The part of the page's address after `#`. */
  readonly link?: string | undefined;
  /** Description of a click. Default: the title. */
  readonly action?: string;
  /** The time range of the shape, in microseconds. It is not drawn. */
  readonly time?: Point;
}

/** A box. */
export interface Rect extends ShapeNote {
  readonly kind: "rect";
  readonly at: Point;
  readonly size: Point;
  readonly ink: Ink;
  readonly radius?: number;
  readonly opacity?: number;
  /** The color of its border. */
  readonly border?: Ink;
}

/** A curve as SVG path data. */
export interface Path extends ShapeNote {
  readonly kind: "path";
  readonly d: string;
  readonly ink: Ink;
  readonly width: number;
  readonly opacity?: number;
}

/** A line of text with its baseline at a point. */
export interface Text extends ShapeNote {
  readonly kind: "text";
  readonly at: Point;
  readonly text: string;
  readonly ink?: Ink;
  readonly size?: number;
  readonly bold?: boolean;
  readonly anchor?: "start" | "middle" | "end";
}

/** The shapes of a picture. */
export type Shape = Rect | Path | Text;

/** x and y, or a width and a height, in pixels. */
export type Point = readonly [x: number, y: number];

/** A complete picture. */
export interface Figure {
  readonly size: Point;
  /** Description for screen readers. */
  readonly label: string;
  readonly shapes: readonly Shape[];
}

/** Options of `figureSvg`. */
export interface FigureSvgOptions {
  /** Colors of a separate picture. Default: the style properties of the page. */
  readonly palette?: Palette;
}

/** Returns a picture as an SVG element. With a palette, it is a complete file. */
export function figureSvg(
  figure: Figure,
  options: FigureSvgOptions = {},
): string {
  const { palette } = options;
  const [width, height] = figure.size;
  const colorOf = (ink: Ink) => palette ? palette[ink] : `var(--${ink})`;
  // A separate file has no page for links.
  const draw = palette ? shapeSvg : linkedSvg;
  const content = figure.shapes.map((shape) => draw(shape, colorOf));
  const links = palette === undefined &&
    figure.shapes.some(({ link }) => link !== undefined);
  return element(
    "svg",
    {
      ...palette ? { xmlns: "http://www.w3.org/2000/svg" } : {},
      viewBox: `0 0 ${round(width)} ${round(height)}`,
      width: round(width),
      height: round(height),
      // A picture is one image; with links, it stays a group.
      role: links ? "group" : "img",
      "aria-label": figure.label,
      "font-family": "system-ui, sans-serif",
    },
    [
      ...palette
        ? [shapeSvg({
          kind: "rect",
          at: [0, 0],
          size: figure.size,
          ink: "card",
          radius: 9,
        }, colorOf)]
        : [],
      ...content,
    ].join(palette ? "\n" : ""),
  );
}

function linkedSvg(shape: Shape, colorOf: (ink: Ink) => string): string {
  const drawn = shapeSvg(shape, colorOf);
  if (shape.link === undefined) return drawn;
  const name = shape.action ?? shape.title;
  const named = name === undefined ? {} : { "aria-label": name };
  // With a slash, it is no link that skips to a part of the page.
  return element("a", { href: `#/${shape.link}`, ...named }, drawn);
}

function shapeSvg(shape: Shape, colorOf: (ink: Ink) => string): string {
  const title = shape.title === undefined
    ? ""
    : element("title", {}, escaped(shape.title));
  switch (shape.kind) {
    case "rect": {
      const { at: [x, y], size: [width, height], radius, opacity, border } =
        shape;
      return element("rect", {
        x: round(x),
        y: round(y),
        width: round(width),
        height: round(height),
        ...radius === undefined ? {} : { rx: radius },
        ...opacity === undefined ? {} : { opacity },
        ...border === undefined ? {} : { stroke: colorOf(border) },
        fill: colorOf(shape.ink),
      }, title);
    }
    case "path":
      return element("path", {
        d: shape.d,
        fill: "none",
        stroke: colorOf(shape.ink),
        "stroke-width": round(shape.width),
        ...shape.opacity === undefined ? {} : { opacity: shape.opacity },
      }, title);
    case "text": {
      const { at: [x, y], text, ink = "ink", size = 12, bold, anchor } = shape;
      return element("text", {
        x: round(x),
        y: round(y),
        "font-size": size,
        fill: colorOf(ink),
        ...bold ? { "font-weight": 600 } : {},
        ...anchor === undefined ? {} : { "text-anchor": anchor },
      }, title + escaped(text));
    }
    default:
      return shape satisfies never;
  }
}

/** Shortens a text to a maximum number of characters. */
export function shortened(text: string, max: number): string {
  return text.length > max ? `${text.slice(0, max - 1)}…` : text;
}

/** Returns path data of a curve with horizontal ends. */
export function curve([x0, y0]: Point, [x1, y1]: Point): string {
  const middle = round((x0 + x1) / 2);
  const [from, to] = [`${round(x0)} ${round(y0)}`, `${round(x1)} ${round(y1)}`];
  return `M${from} C${middle} ${round(y0)} ${middle} ${round(y1)} ${to}`;
}

/** Returns path data of a straight line. */
export function line([x0, y0]: Point, [x1, y1]: Point): string {
  return `M${round(x0)} ${round(y0)} L${round(x1)} ${round(y1)}`;
}

function element(
  name: string,
  attributes: { readonly [name: string]: string | number },
  content: string,
): string {
  const written = Object.entries(attributes)
    .map(([key, value]) => ` ${key}="${escaped(String(value))}"`).join("");
  return content === ""
    ? `<${name}${written}/>`
    : `<${name}${written}>${content}</${name}>`;
}

/** Escapes text for XML. Characters that XML does not allow are removed. */
export function escaped(text: string): string {
  return text.replace(/(?![\t\n])[\p{Cc}\ufffe\uffff]/gu, "")
    .replaceAll("&", "&amp;").replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

function round(value: number): number {
  return Number(value.toFixed(1));
}
