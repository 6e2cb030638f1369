/** Policy gradients of `switchyard train --reward`. */

import {
  loadReward,
  openTokenizer,
  type PolicyPrompt,
  type PolicySettings,
  type Reward,
  type TrainSettings,
} from "../../engine/mod.ts";
import { sha256 } from "../../engine/digest.ts";
import type { PlanFlags } from "../flags/flags.ts";
import type { CliIo } from "../io.ts";
import { encodePrompts, readPrompts, requireTokenizer } from "../prompts.ts";
import { refuseFlags, UsageError } from "../flags/values.ts";
import {
  POLICY_SETTINGS,
  policySettingsOf,
  type SettingFlags,
  SETTINGS,
} from "./train_settings.ts";

/** Flags of policy gradients. */
export interface PolicyFlags
  extends SettingFlags, Pick<PlanFlags, "kvCacheDtype"> {
  readonly reward?: string;
  readonly prompts?: string;
  readonly chat?: boolean;
  readonly rolloutMesh?: NonNullable<PlanFlags["mesh"]>;
  readonly data?: readonly string[];
  readonly validate?: readonly string[];
}

/** A training with policy gradients as given. */
export interface GivenPolicy {
  readonly folder: string;
  readonly settings: TrainSettings & Partial<PolicySettings>;
  readonly prompts: readonly PolicyPrompt[];
  readonly reward: Reward;
  readonly rewardIdentity: string;
}

/** Reads prompts and the reward. Throws UsageError for flags of other trainings. */
export async function givenPolicy(
  io: CliIo,
  folder: string,
  { flags, settings }: {
    readonly flags: PolicyFlags;
    readonly settings: TrainSettings & Partial<PolicySettings>;
  },
): Promise<GivenPolicy> {
  const { reward, prompts: file, chat = false } = flags;
  if (reward === undefined || file === undefined) {
    throw new UsageError(
      `Cannot train with policy gradients without ${
        reward === undefined ? "a reward" : "prompts"
      }. Give ${reward === undefined ? "--reward" : "--prompts"} FILE`,
    );
  }
  refuseFlags(
    {
      "--data": flags.data,
      "--validate": flags.validate,
      "--train-on": flags.trainOn,
      "--no-packing": flags.packing === false ? true : undefined,
    },
    "with --reward: samples are the data. Leave it out",
  );
  const lines = [{ lines: file }];
  const texts = await readPrompts(io, lines);
  const tokenizer = requireTokenizer(await openTokenizer(folder, io.files));
  try {
    const tokens = await encodePrompts(io, {
      folder,
      tokenizer,
      flags: { prompts: lines, chat },
    });
    return {
      folder,
      settings: { ...settings, ...policySettingsOf(flags) },
      prompts: texts.map((prompt, i) => ({
        text: "text" in prompt ? prompt.text : "",
        tokens: tokens[i]!,
      })),
      reward: await loadReward(reward),
      rewardIdentity: await sha256(
        await io.files.readText(reward.split("#")[0]!),
      ),
    };
  } finally {
    tokenizer.close();
  }
}

/** Throws UsageError for a flag of policy gradients in another training. */
export function refusePolicyFlags(flags: PolicyFlags): void {
  refuseFlags(
    {
      "--prompts": flags.prompts,
      "--chat": flags.chat,
      "--rollout-mesh": flags.rolloutMesh,
      "--kv-cache-dtype": flags.kvCacheDtype,
      ...Object.fromEntries(
        Object.keys(POLICY_SETTINGS).map((name) => {
          const flag = name as keyof typeof POLICY_SETTINGS;
          return [SETTINGS[flag], flags[flag]];
        }),
      ),
    },
    "without --reward: it is for policy gradients. Leave it out, or give --reward",
  );
}
