/** What a page is made of: the document of a plan and what else is known of it, inside one HTML file. */

import { documentOf } from "../spec/document/document.ts";
import type { RankPlacement } from "../spec/machine.ts";
import type { Plan } from "../spec/plan/plan.ts";
import type {
  PhaseCosts,
  PlanSummary,
  PredictedTimeline,
} from "../spec/plan_summary.ts";
import { DARK, LIGHT, paletteStyle } from "./palette.ts";
import { escaped } from "./scene.ts";
import type { SearchResult } from "./search_result.ts";
import type { SentPerToken } from "./traffic.ts";

/** An event of a recorded run, as `run --trace` writes them. Times in microseconds. */
export interface TraceEvent {
  readonly name: string;
  readonly cat: string;
  readonly ph: string;
  readonly pid: number;
  readonly tid: number;
  readonly ts: number;
  readonly dur?: number;
  readonly args: { readonly [name: string]: string | number };
}

/** Experts that tokens of a recorded run chose. */
export interface LayerChoices {
  readonly layer: number;
  /** The output of the model that they are. */
  readonly output: string;
  /** Of each token, its experts. */
  readonly chosen: readonly (readonly number[])[];
  /** Of each token, what each of its experts counts for; where the run recorded that. */
  readonly weights?: readonly (readonly number[])[];
}

/** What two plans have otherwise. */
export interface PageDiff {
  /** What the page's plan is compared with. */
  readonly name: string;
  readonly summary: PlanSummary;
  readonly sent: SentPerToken;
  /** Lines that only one of them has, those of the page's plan with `-`, under their sections. */
  readonly text: string;
}

/** Where a rank lives, as far as it says which link two ranks use. */
export type Place = Pick<RankPlacement, "host" | "rack">;

/** What the page knows. */
export interface PageData {
  readonly title: string;
  /** The document of the plan. */
  readonly plan: { readonly [field: string]: unknown };
  readonly summary: PlanSummary;
  /** Lines of the model's source, by `file:line`. */
  readonly sources: { readonly [place: string]: string };
  /** Steps of the first program on the machine of the summary. */
  readonly predicted: readonly PredictedTimeline[];
  /** What these steps move and compute. */
  readonly costs: readonly PhaseCosts[];
  /** The host and the rack of each rank on the machine of the summary. */
  readonly places?: readonly Place[];
  readonly trace?: readonly TraceEvent[];
  readonly choices?: readonly LayerChoices[];
  readonly against?: PageDiff;
  /** The search that found the plan. */
  readonly search?: SearchResult;
  /** The page is served beside a checkpoint, and runs the plan. */
  readonly run?: boolean;
}

/** What the page of a run that goes on knows at first. */
export interface LiveData {
  readonly title: string;
}

/** The program of the page and its style, as they were built. */
export interface PageAssets {
  readonly script: string;
  readonly style: string;
}

/** A whole page: one file that needs no network and opens from disk. */
export function pageHtml(
  plan: Plan,
  data: Omit<PageData, "plan">,
  { script, style }: PageAssets,
): string {
  return htmlOf(
    { ...data, plan: documentOf(plan) },
    { script, style },
    data.run
      // Schemas and kernels become code.
      ? "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; worker-src blob:"
      : "script-src 'unsafe-inline'",
  );
}

/** The page of a run that goes on, which its process serves. It asks that process only. */
export function livePageHtml(data: LiveData, assets: PageAssets): string {
  return htmlOf(
    data,
    assets,
    "script-src 'unsafe-inline'; connect-src 'self'",
  );
}

function htmlOf(
  data: LiveData | PageData,
  { script, style }: PageAssets,
  policy: string,
): string {
  const json = JSON.stringify(data).replaceAll("<", "\\u003c");
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; ${policy}; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>${escaped(data.title)}</title>
<style>
:root { color-scheme: light dark; ${paletteStyle(LIGHT)} }
@media screen and (prefers-color-scheme: dark) { :root { ${
    paletteStyle(DARK)
  } } }
@media print { :root { color-scheme: light; } }
${style}</style>
</head>
<body>
<div id="page"><noscript>This page draws a plan with JavaScript.</noscript></div>
<script type="application/json" id="data">${json}</script>
<script>${script}</script>
</body>
</html>
`;
}
