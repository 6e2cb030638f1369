/** An OpenAI-compatible server: its routes and its batch. The caller provides connections. */

export { type AppOptions, createApp, type ServerApp } from "./app.ts";
export type { Connection } from "./connection.ts";
export { loadingResponse, malformedResponse } from "./errors.ts";
export { createLeader, follow, HEARTBEAT_MS } from "./followers.ts";
export { type BatchLoop, type LoopOptions } from "./loop.ts";
export { Metrics, type PageCount, pageCounts } from "./metrics.ts";
export { createLoop } from "./create_loop.ts";
export { type LoopPort } from "./loop_messages.ts";
export { RemoteLoop } from "./remote_loop.ts";
export { type Served } from "./served.ts";
export { TokenTexts } from "./token_texts.ts";
