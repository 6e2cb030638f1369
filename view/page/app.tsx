/** The complete page: facts, a search, and one view per question. */

import type { VNode } from "preact";
import { useEffect, useLayoutEffect, useMemo, useState } from "preact/hooks";
import { layerOfStep, mainSection, type Section } from "../sections.ts";
import type { PlanView, ProgramView } from "../plan_view.ts";
import type { PageData } from "../page_data.ts";
import { recordedOf } from "../recorded.ts";
import { readAddress } from "./address.ts";
import { DiffView } from "./diff_view.tsx";
import { Facts } from "./facts.tsx";
import { FlowView } from "./flow_view.tsx";
import { MemoryView } from "./memory_view.tsx";
import { RanksView } from "./ranks_view.tsx";
import { RunView } from "./run_view.tsx";
import { SearchBox } from "./search_box.tsx";
import { SearchView } from "./search_view.tsx";
import { StepsView } from "./steps_view.tsx";
import { TableView } from "./table_view.tsx";
import { TimeView } from "./time_view.tsx";
import { useTimeline } from "./timeline_state.ts";
import { TokenView } from "./token_view.tsx";
import { TracksView } from "./tracks_view.tsx";
import { TrafficView } from "./traffic_view.tsx";

/** Parameters of the views of a part of a program. */
export interface Shown {
  readonly view: PlanView;
  readonly program: ProgramView;
  readonly section: Section;
  readonly step: number | undefined;
  readonly rank: number | undefined;
}

/** The page. */
export function App(
  { data, view }: { readonly data: PageData; readonly view: PlanView },
): VNode {
  const [hash, setHash] = useState(currentHash());
  useEffect(() => {
    const follow = () => setHash(currentHash());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  const { program: number, step, rank } = useMemo(
    () => readAddress(view, hash),
    [hash],
  );
  const program = view.programs[number]!;
  const [chosen, choose] = useState<Section>();
  const section = step === undefined
    ? chosen && program.sections.includes(chosen)
      ? chosen
      : mainSection(program.program, program.sections)
    : sectionOf(program, step);
  const [trace, record] = useState(data.trace);
  const recorded = useMemo(
    () => trace && recordedOf(trace, program.program),
    [program, trace],
  );
  const timeline = useTimeline(view, { trace, predicted: data.predicted });
  const shown: Shown = { view, program, section, step, rank };
  useKeys(shown);
  useEffect(() => {
    if (step !== undefined) {
      document.getElementById("steps")?.scrollIntoView({ block: "start" });
    }
    if (/^#(rank|open)\//.test(hash)) {
      const view = hash.startsWith("#open") ? "tracks" : "ranks";
      document.getElementById(view)?.scrollIntoView({ block: "start" });
    }
  }, [hash]);
  const parts = (
    <Parts
      program={program}
      section={section}
      choose={(section) => {
        choose(section);
        if (step !== undefined) location.hash = "#steps";
      }}
    />
  );
  return (
    <>
      <header>
        <a class="skip" href="#tracks">Skip to the pictures</a>
        <h1>{data.title}</h1>
        <SearchBox view={view} />
      </header>
      <main>
        <Facts view={view} />
        {data.search && <SearchView search={data.search} />}
        {data.run && <RunView plan={data.plan} record={record} />}
        <TracksView {...shown} parts={parts} />
        <RanksView {...shown} />
        <StepsView {...shown} parts={parts} sources={data.sources} />
        <FlowView {...shown} parts={parts} />
        <TrafficView
          {...{ ...shown, recorded, placements: data.placements }}
          parts={parts}
        />
        <MemoryView {...shown} parts={parts} />
        {(trace || data.predicted.length > 0) && (
          <TimeView {...shown} timeline={timeline} />
        )}
        <TableView {...shown} costs={data.costs} timeline={timeline} />
        {data.choices && (
          <TokenView {...shown} trace={data.trace} choices={data.choices} />
        )}
        {data.against && <DiffView {...shown} against={data.against} />}
      </main>
      <footer>
        <p>
          Keys: <kbd>/</kbd> search, <kbd>j</kbd> and <kbd>k</kbd>{" "}
          next and previous step, <kbd>Esc</kbd> close a step.
        </p>
      </footer>
    </>
  );
}

/** The part of the address from `#` on. Links of pictures have a slash after it, which is left out. */
function currentHash(): string {
  return location.hash.replace(/^#\//, "#");
}

/** Returns the section that a step belongs to. */
function sectionOf({ sections }: ProgramView, step: number): Section {
  return sections.find((section) => layerOfStep(section, step) !== undefined) ??
    sections[0]!;
}

/** Shows one button per section of the program. */
function Parts({ program, section, choose }: {
  readonly program: ProgramView;
  readonly section: Section;
  readonly choose: (section: Section) => void;
}) {
  if (program.sections.length < 2) return null;
  return (
    <div class="parts" role="group" aria-label="Part of the program">
      {program.sections.map((one) => (
        <button
          type="button"
          aria-pressed={one === section}
          onClick={() => choose(one)}
        >
          {one.name}
          {one.times > 1 && <small>{one.times} ×</small>}
        </button>
      ))}
    </div>
  );
}

/** Handles keys on the whole page except while the user types text. */
function useKeys({ program, section, step }: Shown): void {
  // Synchronous, so that a key pressed directly afterwards continues from this step.
  useLayoutEffect(() => {
    const press = (event: KeyboardEvent) => {
      const typing = event.target instanceof HTMLInputElement ||
        event.target instanceof HTMLSelectElement;
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      const to = (index: number) => {
        const last = program.steps.length - 1;
        location.hash = `#${encodeURIComponent(program.program.name)}/${
          Math.max(0, Math.min(last, index))
        }`;
      };
      if (event.key === "/") {
        event.preventDefault();
        document.getElementById("search")?.focus();
      } else if (event.key === "j") to((step ?? section.start - 1) + 1);
      else if (event.key === "k") to((step ?? section.start + 1) - 1);
      else if (event.key === "Escape" && step !== undefined) {
        location.hash = "#steps";
      }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, [program, section, step]);
}
