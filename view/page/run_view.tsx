/** The plan at work, in this page. */

import type { VNode } from "preact";
import { useRef, useState } from "preact/hooks";
import type { PageData } from "../page_data.ts";
import { View } from "./picture.tsx";

type Device = "auto" | "gpu" | "cpu";

/** What the page uses of `switchyard-moe/browser`, which is a program of its own beside it. */
interface Browser {
  openModel(options: {
    readonly plan: string;
    readonly checkpoint: string;
    readonly device: Device;
    readonly onProgress: (progress: {
      readonly stage: string;
      readonly done: number;
      readonly total: number;
    }) => void;
  }): Promise<Model>;
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

/** New tokens of a text. */
const NEW_TOKENS = 48;

/** Where the program that runs plans is served, and the checkpoint. */
const MODULE = "./browser.js", CHECKPOINT = "checkpoint/";

/** Continues a text by the plan of the page, on the visitor's GPU or processor. */
export function RunView({ plan }: Pick<PageData, "plan">): VNode {
  const loaded = useRef<{ model: Model; device: Device } | undefined>(
    undefined,
  );
  const [prompt, setPrompt] = useState("Once upon a time there was a");
  const [device, setDevice] = useState<Device>("auto");
  const [status, setStatus] = useState("");
  const [text, setText] = useState("");
  const [state, setState] = useState<"idle" | "busy" | "failed">("idle");
  const load = async (): Promise<Model> => {
    if (loaded.current?.device === device) return loaded.current.model;
    loaded.current?.model.close();
    loaded.current = undefined;
    const browser = await import(MODULE) as Browser;
    const model = await browser.openModel({
      ...{ plan: JSON.stringify(plan), checkpoint: CHECKPOINT, device },
      onProgress: ({ stage, done, total }) =>
        setStatus(`Loading ${stage}: ${Math.floor(100 * done / total)} %`),
    });
    loaded.current = { model, device };
    return model;
  };
  const run = async () => {
    setState("busy");
    setText("");
    try {
      const model = await load();
      setStatus(`All ranks on ${model.device.name}`);
      await model.generate(prompt, {
        maxNewTokens: NEW_TOKENS,
        onText: (piece) => setText((before) => before + piece),
      });
      setState("idle");
    } catch (error) {
      // What a lost device had in memory is gone with it.
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
      </form>
      <p role="status">{status}</p>
      {text !== "" && <p class="text">{prompt}{text}</p>}
    </View>
  );
}
