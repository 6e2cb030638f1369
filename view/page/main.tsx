/** The page: reads its data from its own file and shows it. */

import { render } from "preact";
import { expandDocument } from "../../spec/document/document.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import type { LiveData, PageData, ServedData } from "../page_data.ts";
import { viewPlan } from "../plan_view.ts";
import { App } from "./app.tsx";
import { LivePage } from "./live_page.tsx";
import { ServedPage } from "./served_page.tsx";
import "./style.css";

const data = JSON.parse(
  document.getElementById("data")!.textContent!,
) as PageData | LiveData | ServedData;
const root = document.getElementById("page")!;
root.textContent = "";
if ("plan" in data) {
  const view = viewPlan(expandDocument(data.plan) as Plan, data.summary);
  render(<App data={data} view={view} />, root);
} else if ("served" in data) render(<ServedPage data={data} />, root);
else render(<LivePage data={data} />, root);
