/** Where the code that runs is stored. This file is one folder below that place, as are the chunks of bundled code. */

/** The folder of the code that runs: that of the package, its `dist`, or what a clone has compiled. */
export const RUNNING_ROOT = new URL("../", import.meta.url);
