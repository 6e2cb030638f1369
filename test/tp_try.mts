import { createHash } from "node:crypto";
import { runOpened, writeSafetensors } from "../engine/mod.ts";
import { loadCheckpoint, padBatch, readReference } from "./helpers/checkpoints.ts";
const [names, meshes] = [process.argv[2]!.split("/"), process.argv.slice(3)];
for (const name of names) {
  const reference = await readReference(name);
  const prompts: number[][] = [];
  for (let i = 0; `p${i}.input_ids` in reference; i++) prompts.push([...reference[`p${i}.input_ids`]!.data]);
  let first: string | undefined; let base: any;
  for (const mesh of meshes) {
    try {
      const loaded = await loadCheckpoint(name, { mesh, sharing: "shared", adapter: "cpu" } as never);
      const out = await runOpened(loaded, padBatch(prompts));
      const d = createHash("sha256").update(writeSafetensors(out)).digest("hex").slice(0, 12);
      first ??= d; base ??= out;
      let worst = 0; let bad = 0;
      for (const k of Object.keys(base)) { const a = base[k].data, b = out[k]?.data; let n = 0; for (let i = 0; i < a.length; i++) if (!b || !Object.is(a[i], b[i])) n++; if (n) console.log("   differs", k, n, a.length, base[k].shape, out[k]?.shape); }
      const l = out["logits"]!.data, m = base["logits"].data;
      for (let i = 0; i < l.length; i++) { if (!Object.is(l[i], m[i])) bad++; worst = Math.max(worst, Math.abs(l[i]! - m[i])); }
      console.log(name, mesh, d === first ? "SAME" : "DIFF", bad, worst);
      loaded.session.close?.(); await (loaded as any).close?.();
    } catch (e) { console.log(name, mesh, "ERROR", String((e as Error).stack).slice(0, 900)); }
  }
}
process.exit(0);
