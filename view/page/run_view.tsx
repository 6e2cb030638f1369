/** Runs the plan in this page. */

import type { VNode } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { PageData, TraceEvent } from "../page_data.ts";
import { dragsFiles, droppedFiles } from "./dropped_files.ts";
import { View } from "./picture.tsx";

type Device = "auto" | "gpu" | "cpu";

/** The used part of `switchyard-moe/browser`, which is a separate program. */
interface Browser {
  readonly Tracer: new (now: () => number) => Tracer;
  /** Creates a checkpoint from the files that the page was given. */
  fileFolder(files: readonly File[]): object;
  openModel(options: {
    readonly plan: string;
    readonly checkpoint: string | object;
    readonly device: Device;
    readonly tracer?: Tracer;
    readonly onProgress: (progress: {
      readonly stage: string;
      readonly done: number;
      readonly total: number;
    }) => void;
  }): Promise<Model>;
}

interface Tracer {
  toTrace(): { readonly traceEvents: readonly TraceEvent[] };
}

interface Model {
  readonly device: { readonly name: string };
  generate(
    prompt: string,
    options: {
      readonly maxNewTokens: number;
      readonly onText: (piece: string) => void;
    },
  ): Promise<string>;
  close(): void;
}

/** Number of new tokens of a text. */
const NEW_TOKENS = 48;

/** Addresses of the program that runs plans, and of the checkpoint. */
const MODULE = "./browser.js", CHECKPOINT = "checkpoint/";

/** Milliseconds between reads of the recording. */
const LOOK = 500;

/** The parameters of a loaded model. */
interface Loaded {
  readonly model: Model;
  readonly device: Device;
  readonly files: readonly File[] | undefined;
  readonly tracer: Tracer | undefined;
}

/** Continues a text with the page's plan, on the visitor's GPU or processor. The recording is passed to `record`. */
export function RunView({ plan, record }: Pick<PageData, "plan"> & {
  readonly record: (trace: readonly TraceEvent[]) => void;
}): VNode {
  const loaded = useRef<Loaded | undefined>(undefined);
  const [files, setFiles] = useState<readonly File[]>();
  const [records, setRecords] = useState(false);
  const [prompt, setPrompt] = useState("Once upon a time there was a");
  const [device, setDevice] = useState<Device>("auto");
  const [status, setStatus] = useState("");
  const [text, setText] = useState("");
  const [state, setState] = useState<"idle" | "busy" | "failed">("idle");
  const give = (given: readonly File[]) => {
    setFiles(given.length > 0 ? given : undefined);
    setStatus(given.length > 0 ? `${given.length} files are given` : "");
  };
  useDrop(give, setStatus);
  const load = async (): Promise<Loaded> => {
    const before = loaded.current;
    if (
      before?.device === device && before.files === files && !before.tracer &&
      !records
    ) return before;
    before?.model.close();
    loaded.current = undefined;
    const browser = await import(MODULE) as Browser;
    const tracer = records
      ? new browser.Tracer(() => performance.now())
      : undefined;
    const model = await browser.openModel({
      plan: JSON.stringify(plan),
      device,
      checkpoint: files ? browser.fileFolder(files) : CHECKPOINT,
      ...tracer ? { tracer } : {},
      onProgress: ({ stage, done, total }) =>
        setStatus(`Loading ${stage}: ${Math.floor(100 * done / total)} %`),
    });
    return loaded.current = { model, device, files, tracer };
  };
  const run = async () => {
    setState("busy");
    setText("");
    try {
      const { model, tracer } = await load();
      setStatus(`All ranks on ${model.device.name}`);
      let seen = performance.now();
      const look = () => {
        seen = performance.now();
        // A copy, so that the views update.
        if (tracer) record([...tracer.toTrace().traceEvents]);
      };
      await model.generate(prompt, {
        maxNewTokens: NEW_TOKENS,
        onText: (piece) => {
          setText((before) => before + piece);
          if (performance.now() - seen > LOOK) look();
        },
      });
      look();
      setState("idle");
    } catch (error) {
      // The memory of a lost device is lost too.
      loaded.current?.model.close();
      loaded.current = undefined;
      setStatus(error instanceof Error ? error.message : String(error));
      setState("failed");
    }
  };
  return (
    <View
      id="run"
      question="What does it say?"
      answer="This page runs the plan, on your own device; all ranks share it."
    >
      <form
        class="parts"
        onSubmit={(event) => {
          event.preventDefault();
          void run();
        }}
      >
        <input
          aria-label="Text to continue"
          size={48}
          value={prompt}
          onInput={({ currentTarget }) => setPrompt(currentTarget.value)}
        />
        <select
          aria-label="Device"
          value={device}
          onChange={({ currentTarget }) =>
            setDevice(currentTarget.value as Device)}
        >
          <option value="auto">the best there is</option>
          <option value="gpu">the GPU, by WebGPU</option>
          <option value="cpu">the processor, by WebAssembly</option>
        </select>
        <button type="submit" disabled={state === "busy"}>
          {state === "failed" ? "Load again" : "Run"}
        </button>
        <label>
          <input
            type="checkbox"
            checked={records}
            onChange={({ currentTarget }) => setRecords(currentTarget.checked)}
          />{" "}
          show its time and traffic below (slower)
        </label>
        <label>
          weights of your own, or drop their folder on the page{" "}
          <input
            type="file"
            multiple
            onChange={({ currentTarget }) =>
              give([...currentTarget.files ?? []])}
          />
        </label>
      </form>
      <p role="status">{status}</p>
      {text !== "" && <p class="text">{prompt}{text}</p>}
    </View>
  );
}

/** Passes on files that are dropped anywhere on the page, or explains why they cannot be read. */
function useDrop(
  give: (files: readonly File[]) => void,
  say: (problem: string) => void,
): void {
  useEffect(() => {
    const over = (event: DragEvent) => {
      if (dragsFiles(event)) event.preventDefault();
    };
    const drop = (event: DragEvent) => {
      if (!dragsFiles(event)) return;
      event.preventDefault();
      droppedFiles(event).then(give, (error) => say(String(error)));
    };
    addEventListener("dragover", over);
    addEventListener("drop", drop);
    return () => {
      removeEventListener("dragover", over);
      removeEventListener("drop", drop);
    };
  }, []);
}
