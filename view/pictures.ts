/** Every picture of a plan, by name, of the section that people want to see first. */

import { housePicture } from "./house_picture.ts";
import { memoryPicture } from "./memory_picture.ts";
import type { PictureName } from "./picture_names.ts";
import type { PlanView, ProgramView } from "./plan_view.ts";
import type { Scene } from "./scene.ts";
import { mainSection, type Section } from "./sections.ts";
import { trackPicture } from "./track_picture.ts";
import { mainTraffic, trafficOf } from "./traffic.ts";
import { trafficPicture } from "./traffic_picture.ts";

/** Of which steps pictures are. */
export interface Shown {
  readonly program: ProgramView;
  readonly section: Section;
}

/** The first program, and its main section. */
function shownFirst({ programs }: PlanView): Shown {
  const [program] = programs as readonly [ProgramView];
  return { program, section: mainSection(program.program, program.sections) };
}

/** How each is drawn; undefined where there is nothing to draw. */
export const PICTURES: {
  readonly [N in PictureName]: (view: PlanView) => Scene | undefined;
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
