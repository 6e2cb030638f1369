/** Every picture of a plan, by name. */

import type { PictureName } from "./picture_names.ts";
import type { PlanView } from "./plan_view.ts";
import type { Scene } from "./scene.ts";
import { mainSection } from "./sections.ts";
import { trackPicture } from "./track_picture.ts";

/** How each is drawn. */
export const PICTURES: {
  readonly [N in PictureName]: (view: PlanView) => Scene;
} = {
  tracks: (view) => {
    const [program] = view.programs;
    const section = mainSection(program!.program, program!.sections);
    return trackPicture(view, { program: program!, section, bare: true });
  },
};
