/** A picture, and the frame of a view: a question, its answer, and what shows it. */

import type { ComponentChildren, VNode } from "preact";
import { useMemo } from "preact/hooks";
import { type Scene, sceneSvg } from "../scene.ts";

/** A scene as SVG, which scrolls where the page is too narrow for it. */
export function Picture({ scene }: { readonly scene: Scene }): VNode {
  const svg = useMemo(() => sceneSvg(scene), [scene]);
  return (
    <div
      class="picture"
      tabIndex={0}
      role="region"
      aria-label={scene.label}
      dangerouslySetInnerHTML={{ __html: svg }}
    />
  );
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
