/** The program of a thread that encodes rows for `quantize`. */

import { parentPort } from "node:worker_threads";
import { type EncodeTask, encodeTask } from "../engine/quantize/encode.ts";

const port = parentPort!;
port.on("message", (task: EncodeTask) => {
  const encoded = encodeTask(task);
  port.postMessage(encoded, [
    encoded.codes.buffer as ArrayBuffer,
    encoded.scales.buffer as ArrayBuffer,
  ]);
});
