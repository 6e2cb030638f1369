/** A picture, and the frame of a view: a question, its answer, and the picture. */

import type { ComponentChildren, VNode } from "preact";
import {
  useEffect,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} from "preact/hooks";
import { DARK, LIGHT } from "../palette.ts";
import { type Figure, figureSvg, type Point } from "../pictures/figure.ts";
import {
  type FigureNote,
  nextNote,
  notesOf,
} from "../pictures/figure_notes.ts";

/** Further properties of a picture. */
export interface PictureProps {
  readonly figure: Figure;
  /** The initial center in pixels, for a scrolling picture. */
  readonly middle?: number | undefined;
  /** Drawn over the picture at the same size. */
  readonly overlay?: ComponentChildren;
  /** Called with a shape after a click or Enter. Undefined if there is no shape. */
  readonly onPick?: (note: FigureNote | undefined, event: PickEvent) => void;
  /**
   * Called with the range of the picture that the pointer was dragged over, in pixels, and whether the drag is
   * finished.
   */
  readonly onDrag?: (range: Point, done: boolean) => void;
  /** Called first for each key. Returns whether it handled the key. */
  readonly onKey?: (event: KeyboardEvent) => boolean;
  /** Called for wheel events at a position of the picture. Returns whether it handled the event. */
  readonly onWheel?: (event: WheelEvent, x: number) => boolean;
}

/** The event that picked a shape. */
export type PickEvent = Pick<MouseEvent, "shiftKey">;

/** Pixels of movement that make a click a drag. */
const DRAGGED = 4;

/**
 * Shows a figure as SVG, which scrolls if the page is too narrow. The title of the shape at the pointer is shown below
 * the picture. Arrow keys select the next shape. The picture can be saved as a file.
 */
export function Picture(props: PictureProps): VNode {
  const { figure, middle, overlay, onPick, onDrag, onKey, onWheel } = props;
  const svg = useMemo(() => figureSvg(figure), [figure]);
  const notes = useMemo(() => notesOf(figure), [figure]);
  const frame = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLDivElement>(null);
  const pressed = useRef<number | undefined>(undefined);
  const [at, show] = useState<number>();
  // Before the next key, which selects a shape of the new figure.
  useLayoutEffect(() => show(undefined), [figure]);
  const titles = () => [...frame.current!.querySelectorAll("title")];
  const noteAt = (target: EventTarget | null) =>
    titles().findIndex(({ parentElement }) => parentElement === target);
  useEffect(() => {
    const shape = at === undefined ? undefined : titles()[at]?.parentElement;
    shape?.classList.add("at");
    return () => shape?.classList.remove("at");
  }, [at, figure]);
  useEffect(() => {
    const { current } = frame;
    if (middle !== undefined) {
      current!.scrollLeft = middle - current!.clientWidth / 2;
    }
  }, [middle]);
  /** Returns the pixel of the figure at the pointer. */
  const xOf = ({ clientX }: MouseEvent) => {
    const { left, width } = canvas.current!.getBoundingClientRect();
    return (clientX - left) * figure.size[0] / width;
  };
  useEffect(() => {
    if (!onWheel) return;
    const turn = (event: WheelEvent) => {
      if (onWheel(event, xOf(event))) event.preventDefault();
    };
    const { current } = frame;
    current!.addEventListener("wheel", turn, { passive: false });
    return () => current!.removeEventListener("wheel", turn);
  });
  const note = at === undefined ? undefined : notes[at];
  return (
    <>
      <div
        ref={frame}
        class={onDrag ? "picture drags" : "picture"}
        tabIndex={0}
        role="region"
        aria-label={figure.label}
        onKeyDown={(event) => {
          if (onKey?.(event)) {
            event.preventDefault();
            return;
          }
          if (
            event.key === "Enter" && onPick && event.target === frame.current
          ) {
            onPick(note, event);
            return;
          }
          const to = nextNote(notes, at, event.key);
          if (to === undefined) return;
          event.preventDefault();
          show(to);
          titles()[to]?.parentElement?.scrollIntoView({
            block: "nearest",
            inline: "nearest",
          });
        }}
        onPointerOver={({ target }) => {
          const to = noteAt(target);
          if (to >= 0) show(to);
        }}
        onPointerDown={(event) => {
          if (!onDrag || event.button !== 0) return;
          pressed.current = xOf(event);
          canvas.current!.setPointerCapture(event.pointerId);
          event.preventDefault();
          frame.current!.focus({ preventScroll: true });
        }}
        onPointerMove={(event) => {
          const from = pressed.current;
          const to = xOf(event);
          if (from === undefined || Math.abs(to - from) < DRAGGED) return;
          onDrag!([Math.min(from, to), Math.max(from, to)], false);
        }}
        onPointerUp={(event) => {
          const from = pressed.current;
          pressed.current = undefined;
          if (from === undefined) return;
          const to = xOf(event);
          if (Math.abs(to - from) >= DRAGGED) {
            onDrag!([Math.min(from, to), Math.max(from, to)], true);
            return;
          }
          // The pointer is captured, so the event target is always the canvas.
          const target = document.elementFromPoint(
            event.clientX,
            event.clientY,
          );
          onPick?.(notes[noteAt(target)], event);
        }}
      >
        <div ref={canvas} class="canvas">
          <div dangerouslySetInnerHTML={{ __html: svg }} />
          {overlay}
        </div>
      </div>
      <div class="below">
        <output class="note">
          {note?.title.replaceAll("\n", ", ") ??
            (notes.length > 0
              ? "Point at a shape, or use the arrow keys, to read what it is."
              : "")}
        </output>
        <button type="button" onClick={() => save(figure)}>Save as SVG</button>
      </div>
    </>
  );
}

/** Saves a figure as a file in its current colors. */
function save(figure: Figure): void {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const svg = figureSvg(figure, { palette: dark ? DARK : LIGHT });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  link.download = `${figure.label.replace(/[^\w=.]+/g, "_")}.svg`;
  link.click();
  // The browser reads the address later.
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A view answers one question. */
export function View({ id, question, answer, children }: {
  readonly id: string;
  readonly question: string;
  readonly answer: ComponentChildren;
  readonly children: ComponentChildren;
}): VNode {
  return (
    <section id={id} aria-labelledby={`${id}-question`}>
      <h2 id={`${id}-question`}>
        <a href={`#${id}`}>{question}</a>
      </h2>
      <p>{answer}</p>
      {children}
    </section>
  );
}
