/** Settings of the Hugging Face hub, from the environment variables of its own programs. */

import { homedir } from "node:os";
import path from "node:path";
import process from "node:process";
import { userCache } from "../runtime/cache/folders.ts";

/** The source of downloads and the location of the cache. */
export interface HubSettings {
  /** URL without a trailing slash: `HF_ENDPOINT`. */
  readonly endpoint: string;
  /** Cache folder, `HF_HUB_CACHE`. Undefined for a user without a home folder. */
  readonly cache: string | undefined;
  /** Access token: `HF_TOKEN`, otherwise the contents of the file in `HF_TOKEN_PATH`. */
  readonly token: string | undefined;
  /** Path of the token that `hf auth login` saved. */
  readonly tokenFile: string | undefined;
  /** Use only cached files: `HF_HUB_OFFLINE`. */
  readonly offline: boolean;
  /** Milliseconds before the first retry of a failed request. The time doubles with each retry. */
  readonly retryMs: number;
}

type Environment = { readonly [name: string]: string | undefined };

/** Reads the settings. Empty variables count as unset. */
export function hubSettings(env: Environment = process.env): HubSettings {
  const home = folderOf(env);
  const at = (name: string) => home && path.join(home, name);
  return {
    endpoint: (env["HF_ENDPOINT"] || "https://huggingface.co").replace(
      /\/+$/,
      "",
    ),
    cache: env["HF_HUB_CACHE"] || env["HUGGINGFACE_HUB_CACHE"] || at("hub"),
    token: (env["HF_TOKEN"] || env["HUGGING_FACE_HUB_TOKEN"])?.trim() ||
      undefined,
    tokenFile: env["HF_TOKEN_PATH"] || at("token"),
    offline: /^(1|on|yes|true)$/i.test(
      env["HF_HUB_OFFLINE"] || env["TRANSFORMERS_OFFLINE"] || "",
    ),
    retryMs: 1000,
  };
}

/** `HF_HOME`, otherwise `huggingface` in the user's cache folder. */
function folderOf(env: Environment): string | undefined {
  const named = env["HF_HOME"];
  if (named) {
    return named.startsWith("~/")
      ? path.join(homedir(), named.slice(2))
      : path.resolve(named);
  }
  const cache = userCache();
  return cache && path.join(cache, "huggingface");
}
