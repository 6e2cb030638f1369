/** The third view: the program, step by step. */

import type { ComponentChildren, VNode } from "preact";
import { useMemo, useState } from "preact/hooks";
import { printWgsl } from "../../spec/kernel/wgsl/wgsl.ts";
import { stepLink } from "../links.ts";
import { type PlanView, type ProgramView, stepsOf } from "../plan_view.ts";
import { provedOf } from "../proved.ts";
import { layerOfStep, rangeOf } from "../sections.ts";
import { describeStep, shortType, type UsedBuffer } from "../step_detail.ts";
import type { Shown } from "./app.tsx";
import { View } from "./picture.tsx";

type Sources = { readonly [source: string]: string };

/** Shows the steps of a section, and the details of one step. */
export function StepsView(
  { view, program, section, step, parts, sources }: Shown & {
    readonly parts: ComponentChildren;
    readonly sources: Sources;
  },
): VNode {
  const { length, times, layers } = section;
  // The layer of the section with the chosen step.
  const k = step === undefined ? 0 : layerOfStep(section, step) ?? 0;
  const [from, end] = rangeOf(section, k);
  const list = useMemo(
    () =>
      stepsOf(program.steps, { start: from, length: end - from })
        .map((at) => ({ index: at.index, ...describeStep(view, at) })),
    [program, from, end],
  );
  const roles = program.roles;
  return (
    <View
      id="steps"
      question="What is computed, step by step?"
      answer={`Every rank executes the same ${
        length === 1 ? "step" : "steps"
      }. Each line states the kernel and the result: its dtype, and its axes with the mesh axes that they are sharded over.`}
    >
      {parts}
      {times > 1 && (
        <label class="layer">
          layer{" "}
          <select
            value={k}
            onChange={({ currentTarget }) => {
              const inLayer = (step ?? from) - from;
              const index = rangeOf(section, Number(currentTarget.value))[0] +
                inLayer;
              location.hash = `#${stepLink(program, index)}`;
            }}
          >
            {layers.map((layer, i) => <option value={i}>{layer}</option>)}
          </select>
        </label>
      )}
      <div class={step === undefined ? "steps" : "steps open"}>
        <ol start={from}>
          {list.map(({ index, name, result, kernel, over }) => (
            <li>
              <a
                href={`#${stepLink(program, index)}`}
                aria-current={index === step ? "step" : undefined}
              >
                <i class={`ink ${roles[index]}`} />
                <span class="number">{index}</span>
                <span class="name">{name}</span>
                <span class="how">{kernel ?? over}</span>
                <code title={result}>{shortType(result)}</code>
              </a>
            </li>
          ))}
        </ol>
        {step !== undefined && <Detail {...{ view, program, step, sources }} />}
      </div>
    </View>
  );
}

function Detail({ view, program, step, sources }: {
  readonly view: PlanView;
  readonly program: ProgramView;
  readonly step: number;
  readonly sources: Sources;
}) {
  const at = program.steps[step]!;
  const detail = describeStep(view, at);
  const { span } = at.step;
  const source = span && `${span.file}:${span.line}`;
  const kernel = detail.kernel === undefined
    ? undefined
    : view.plan.kernels[detail.kernel];
  return (
    <aside class="detail" aria-label={`Step ${step}`}>
      <h3>
        {step}. {detail.name} <span class="soft">{detail.over}</span>
      </h3>
      <p>
        <a
          href="#steps"
          class="close"
          aria-label="Close the step"
        >
          ×
        </a>
      </p>
      {span && (
        <figure>
          <figcaption>{source}:{span.column}</figcaption>
          {sources[source!] !== undefined && (
            <pre tabIndex={0}><code>{sources[source!]!.trim()}</code></pre>
          )}
        </figure>
      )}
      <Buffers title="reads" buffers={detail.reads} />
      <Buffers title="writes" buffers={detail.writes} />
      <p>The verifier proved of it:</p>
      <ul class="proved">
        {provedOf(view, program, at).map(({ rule, text }) => (
          <li>
            {text} <span class="soft">{rule}</span>
          </li>
        ))}
      </ul>
      {detail.kernel && (
        <p>
          Kernel <code>{detail.kernel}</code>, workgroups{" "}
          <code>{detail.workgroups}</code>
        </p>
      )}
      {kernel && (
        <>
          <Unfolding
            title="The kernel as WGSL"
            text={() => printWgsl(kernel.tree)}
          />
          <Unfolding
            title="The kernel as a tree"
            text={() => JSON.stringify(kernel.tree, null, 1)}
          />
        </>
      )}
    </aside>
  );
}

/** A text that is computed when it is opened. */
function Unfolding({ title, text }: {
  readonly title: string;
  readonly text: () => string;
}) {
  const [open, setOpen] = useState(false);
  return (
    <details onToggle={({ currentTarget }) => setOpen(currentTarget.open)}>
      <summary>{title}</summary>
      {open && <pre tabIndex={0}><code>{text()}</code></pre>}
    </details>
  );
}

function Buffers({ title, buffers }: {
  readonly title: string;
  readonly buffers: readonly UsedBuffer[];
}) {
  if (buffers.length === 0) return null;
  return (
    <table>
      <caption>It {title}</caption>
      <tbody>
        {buffers.map(({ name, kind, type, size }) => (
          <tr>
            <th scope="row">
              {name} <span class="soft">{kind}</span>
              <br />
              <code>{type}</code>
            </th>
            <td>{size}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
