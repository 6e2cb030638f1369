/** Location of the running code. This file is one folder below it, like the chunks of bundled code. */

/** The folder of the running code: that of the package, its `dist`, or the build of a clone. */
export const RUNNING_ROOT = new URL("../", import.meta.url);
