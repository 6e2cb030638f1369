/** Device keys of kernels: plans that share a device may use one name for different kernels. */

import { invariant } from "../spec/errors.ts";
import { cachedWith } from "../spec/bounded_cache.ts";
import { kernelHead, kernelText } from "../spec/kernel/exact_json.ts";
import type { Kernel } from "../spec/kernel/tree.ts";
import type { Plan, PlanKernel } from "../spec/plan/plan.ts";
import type { DeviceKernel } from "./device.ts";

const keys = new WeakMap<PlanKernel, string>();

/**
 * The key of a plan's kernel: its name, a hash of its text, and `fast` numerics. Equal kernels of two plans have equal
 * keys.
 */
export function kernelKey(plan: Plan, name: string): string {
  const kernel = plan.kernels[name];
  invariant(kernel, `no kernel '${name}'`);
  return `${keyOf(name, kernel)}${isFused(plan) ? "+fused" : ""}`;
}

/** The key of a kernel with the name `name`. */
export function keyOf(name: string, kernel: PlanKernel): string {
  let key = keys.get(kernel);
  if (!key) {
    keys.set(kernel, key = `${name}#${hashOf(kernel.tree)}`);
  }
  return key;
}

/** Hashes by body, then by name and the rest: plans compiled one after the other share most bodies. */
const hashes = new WeakMap<Kernel["body"], Map<string, string>>();

function hashOf(tree: Kernel): string {
  return cachedWith(hashes, tree.body, {
    key: kernelHead(tree),
    create: () => hash(kernelText(tree)),
  });
}

/** The launched kernels of a plan by key, for devices. */
export function kernelsByKey(plan: Plan): { [key: string]: DeviceKernel } {
  const fused = isFused(plan);
  const launched = new Set(
    plan.programs.flatMap(({ steps }) =>
      steps.flatMap((step) => step.op === "launch" ? [step.kernel] : [])
    ),
  );
  return Object.fromEntries(
    Object.entries(plan.kernels).filter(([name]) => launched.has(name)).map((
      [name, kernel],
    ) => [
      kernelKey(plan, name),
      fused ? { ...kernel, fused } : kernel,
    ]),
  );
}

/** Whether kernels of a plan may use fused multiply-add. */
function isFused({ numerics }: Plan): boolean {
  return numerics.class === "fast";
}

/** Two independent 32-bit multiplicative hashes (FNV-1a with two primes), in hexadecimal. */
function hash(text: string): string {
  let [a, b] = [0x811c9dc5, 0x9e3779b9];
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    a = Math.imul(a ^ c, 0x01000193);
    b = Math.imul(b ^ c, 0x85ebca6b);
  }
  return [a, b].map((n) => (n >>> 0).toString(16).padStart(8, "0")).join("");
}
