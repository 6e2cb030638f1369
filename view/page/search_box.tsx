/** Search by typing. */

import type { VNode } from "preact";
import { useMemo, useState } from "preact/hooks";
import type { PlanView } from "../plan_view.ts";
import { search } from "../search.ts";

/** Shows a box for search words, with the results below. */
export function SearchBox({ view }: { readonly view: PlanView }): VNode {
  const [words, setWords] = useState("");
  const found = useMemo(() => search(view, words), [words]);
  const close = () => setWords("");
  return (
    <search>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (found[0]) location.hash = `#${found[0].link}`;
          close();
          // Returns the keyboard focus to the page.
          document.getElementById("search")?.blur();
        }}
      >
        <label for="search">Find</label>
        <input
          id="search"
          type="search"
          autocomplete="off"
          placeholder="all-to-all, experts.3, layers.2, rank 1 …"
          value={words}
          onInput={({ currentTarget }) => setWords(currentTarget.value)}
          onKeyDown={({ key, currentTarget }) => {
            if (key !== "Escape") return;
            close();
            currentTarget.blur();
          }}
        />
      </form>
      {words !== "" && (
        <ul class="found" aria-label="Found">
          {found.map(({ kind, text, link }) => (
            <li>
              <a href={`#${link}`} onClick={close}>
                <span class="soft">{kind}</span> {text}
              </a>
            </li>
          ))}
          {found.length === 0 && <li class="soft">nothing has these words</li>}
        </ul>
      )}
    </search>
  );
}
