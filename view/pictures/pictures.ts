/** All pictures of a plan by name, of its most important section. */

import { housePicture } from "./house.ts";
import { memoryPicture } from "./memory.ts";
import type { PictureName } from "./names.ts";
import type { PlanView, ProgramView } from "../plan_view.ts";
import type { Figure } from "./figure.ts";
import { mainSection, type Section } from "../sections.ts";
import { trackPicture } from "./track.ts";
import { mainTraffic, trafficOf } from "../traffic.ts";
import { trafficPicture } from "./traffic.ts";

/** The steps that pictures show. */
export interface Shown {
  readonly program: ProgramView;
  readonly section: Section;
}

/** Returns the first program and its main section. */
function shownFirst({ programs }: PlanView): Shown {
  const [program] = programs as readonly [ProgramView];
  return { program, section: mainSection(program.program, program.sections) };
}

/** The function that draws each picture. It returns undefined if there is nothing to draw. */
export const PICTURES: {
  readonly [N in PictureName]: (view: PlanView) => Figure | undefined;
} = {
  tracks: (view) => trackPicture(view, shownFirst(view)),
  ranks: housePicture,
  traffic: (view) => {
    const { program, section } = shownFirst(view);
    const traffic = mainTraffic(trafficOf(view, program, section));
    return traffic && trafficPicture(view, { traffic });
  },
  memory: (view) => memoryPicture(view, shownFirst(view)),
};
