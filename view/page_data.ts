/** The data of a page: the document of a plan and related data, inside one HTML file. */

import { documentOf } from "../spec/document/document.ts";
import type { RankPlacement } from "../spec/machine.ts";
import type { Plan } from "../spec/plan/plan.ts";
import type {
  PhaseCosts,
  PlanSummary,
  PredictedTimeline,
} from "../spec/plan_summary.ts";
import { DARK, LIGHT, paletteStyle } from "./palette.ts";
import { escaped } from "./pictures/figure.ts";
import type { SearchResult } from "./search_result.ts";
import type { SentPerToken } from "./traffic.ts";

/** An event of a recorded run, as `run --trace` writes it. Times are in microseconds. */
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

/** The experts that the tokens of a recorded run chose. */
export interface LayerChoices {
  readonly layer: number;
  /** The output of the model that holds them. */
  readonly output: string;
  /** The experts of each token. */
  readonly chosen: readonly (readonly number[])[];
  /** The weights of each token's experts, if the run recorded them. */
  readonly weights?: readonly (readonly number[])[];
}

/** The differences between two plans. */
export interface PageDiff {
  /** Name of the other plan. */
  readonly name: string;
  readonly summary: PlanSummary;
  readonly sent: SentPerToken;
  /** Lines that only one of the plans has, under their sections. Lines of the page's plan begin with `-`. */
  readonly text: string;
}

/** The placement of a rank, as far as it determines the link between two ranks. */
export type HostPlacement = Pick<RankPlacement, "host" | "rack">;

/** The data of a page. */
export interface PageData {
  readonly title: string;
  /** The document of the plan. */
  readonly plan: { readonly [field: string]: unknown };
  readonly summary: PlanSummary;
  /** Source lines of the model, by `file:line`. */
  readonly sources: { readonly [location: string]: string };
  /** Predicted steps of the first program on the summary's machine. */
  readonly predicted: readonly PredictedTimeline[];
  /** The costs of these steps. */
  readonly costs: readonly PhaseCosts[];
  /** The host and rack of each rank on the summary's machine. */
  readonly placements?: readonly HostPlacement[];
  readonly trace?: readonly TraceEvent[];
  readonly choices?: readonly LayerChoices[];
  readonly against?: PageDiff;
  /** The search that found the plan. */
  readonly search?: SearchResult;
  /** The page is served with a checkpoint, and runs the plan. */
  readonly run?: boolean;
}

/** The initial data of a live page. */
export interface LiveData {
  readonly title: string;
}

/** The initial data of the page of a server. */
export interface ServedData {
  readonly title: string;
  readonly served: {
    /** The id of the model. */
    readonly model: string;
    /** Whether it has a chat template. */
    readonly chat: boolean;
    /** Whether requests need an API key. */
    readonly keyed: boolean;
    /** Experts per layer. */
    readonly experts: number;
    readonly maxContext: number;
  };
}

/** The built program and style of the page. */
export interface PageAssets {
  readonly script: string;
  readonly style: string;
}

/** Returns a complete page: one file that works without network and opens from disk. */
export function pageHtml(
  plan: Plan,
  data: Omit<PageData, "plan">,
  { script, style }: PageAssets,
): string {
  return htmlOf(
    { ...data, plan: documentOf(plan) },
    { script, style },
    data.run
      // Schemas and kernels are compiled to code.
      ? "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; worker-src blob:"
      : "script-src 'unsafe-inline'",
  );
}

/** Returns the page of a live run or of a server. It connects only to the process that serves it. */
export function livePageHtml(
  data: LiveData | ServedData,
  assets: PageAssets,
): string {
  return htmlOf(
    data,
    assets,
    "script-src 'unsafe-inline'; connect-src 'self'",
  );
}

function htmlOf(
  data: LiveData | PageData | ServedData,
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
