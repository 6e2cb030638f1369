/** A picture, and the frame of a view: a question, its answer, and what shows it. */

import type { ComponentChildren, VNode } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { DARK, LIGHT } from "../palette.ts";
import { type Scene, sceneSvg } from "../scene.ts";
import { nextNote, notesOf } from "../scene_notes.ts";

/**
 * A scene as SVG, which scrolls where the page is too narrow for it. What a shape is stands below the picture while the
 * pointer is on it; arrow keys go from shape to shape. It can be saved as a file.
 */
export function Picture({ scene }: { readonly scene: Scene }): VNode {
  const svg = useMemo(() => sceneSvg(scene), [scene]);
  const notes = useMemo(() => notesOf(scene), [scene]);
  const frame = useRef<HTMLDivElement>(null);
  const [at, show] = useState<number>();
  useEffect(() => show(undefined), [scene]);
  const titles = () => [...frame.current!.querySelectorAll("title")];
  useEffect(() => {
    const shape = at === undefined ? undefined : titles()[at]?.parentElement;
    shape?.classList.add("at");
    return () => shape?.classList.remove("at");
  }, [at, scene]);
  const note = at === undefined ? undefined : notes[at];
  return (
    <>
      <div
        ref={frame}
        class="picture"
        tabIndex={0}
        role="region"
        aria-label={scene.label}
        onKeyDown={(event) => {
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
          const to = titles().findIndex(({ parentElement }) =>
            parentElement === target
          );
          if (to >= 0) show(to);
        }}
        dangerouslySetInnerHTML={{ __html: svg }}
      />
      <div class="below">
        <output class="note">
          {note?.title.replaceAll("\n", ", ") ??
            (notes.length > 0
              ? "Point at a shape, or use the arrow keys, to read what it is."
              : "")}
        </output>
        <button type="button" onClick={() => save(scene)}>Save as SVG</button>
      </div>
    </>
  );
}

/** Save a scene as a file, in the colors that it is seen in. */
function save(scene: Scene): void {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const svg = sceneSvg(scene, { palette: dark ? DARK : LIGHT });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  link.download = `${scene.label.replace(/[^\w=.]+/g, "_")}.svg`;
  link.click();
  // The browser reads it after this.
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
